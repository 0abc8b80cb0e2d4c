//! Where a micro-batch lies while stages work on it: on the CPU as it came, on a GPU in memory that is there for it.

use tessera_dist::DistError;
use tessera_model::{MicroBatch, Model};
use tessera_ops::transfer::Staging;
use tessera_ops::{Arena, Buffer, DType, Home, OpError, Queue, View, ViewMut};

use super::EngineSettings;

/// Room for the numbers that a step is told.
const TOLD_BYTES: usize = 64;

/// Room for one micro-batch.
pub(super) struct BatchRoom {
    /// Empty on the CPU.
    memory: Buffer,
    staging: Staging,
    /// Below which token ids, and positions, must be.
    bounds: Bounds,
}

#[derive(Clone, Copy)]
struct Bounds {
    tokens: usize,
    positions: usize,
}

impl BatchRoom {
    /// Bytes of the room.
    pub(super) fn bytes(settings: &EngineSettings, home: Home) -> usize {
        if home == Home::Host {
            return 0;
        }
        let (tokens, rows) = (settings.micro_batch_tokens, settings.micro_batch_rows);
        let cost = |count| Arena::cost(DType::U32, count);
        // Tokens, positions, rows with a target, targets; where documents begin, of which each has a token, and rows. Ranks
        // that share a sequence see the documents of all of it.
        4 * cost(tokens) + cost(rows * settings.positions + 1) + cost(rows + 1)
    }

    pub(super) fn new(queue: &Queue, settings: &EngineSettings, model: &Model) -> Result<Self, OpError> {
        let memory = Buffer::on(queue, Self::bytes(settings, model.compute().home))?;
        let bounds = Bounds { tokens: model.config().vocab_size, positions: settings.positions };
        let staging = Staging::new(queue, memory.len().max(TOLD_BYTES))?;
        Ok(Self { memory, staging, bounds })
    }

    /// The micro-batch where the operators of `queue` can read it. They cannot look whether its indices are right, so that is
    /// seen here.
    ///
    /// # Errors
    /// When an index is too large.
    pub(super) fn upload<'a>(&'a mut self, batch: MicroBatch<'a>) -> Result<MicroBatch<'a>, DistError> {
        if self.memory.is_empty() {
            return Ok(batch);
        }
        self.bounds.check(&batch)?;
        let (mut arena, mut sending) = (self.memory.arena(), self.staging.begin()?);
        let mut place = |host: View<'_>| {
            let mut room = arena.take(DType::U32, host.shape())?;
            sending.send(host, room.reborrow())?;
            Ok::<_, OpError>(room.into_view())
        };
        Ok(MicroBatch {
            tokens: place(batch.tokens)?,
            positions: place(batch.positions)?,
            row_starts: place(batch.row_starts)?,
            cu_seqlens: place(batch.cu_seqlens)?,
            loss_rows: place(batch.loss_rows)?,
            targets: place(batch.targets)?,
        })
    }

    /// Copies a few numbers to where operators can read them, on the way that micro-batches take.
    pub(super) fn tell(&mut self, numbers: &[f64], to: ViewMut<'_>) -> Result<(), OpError> {
        self.staging.begin()?.send(View::of(numbers), to)
    }
}

/// Fails unless stretches begin at 0 and none ends before it begins. Where the last ends is checked by whoever cut the batch.
fn rises(starts: View<'_>) -> Result<(), OpError> {
    let starts = starts.as_slice::<u32>()?;
    let falls = starts.windows(2).find(|pair| pair[0] > pair[1]).map(|pair| (pair[1], pair[0]));
    match falls.or(starts.first().filter(|&&first| first > 0).map(|&first| (first, 1))) {
        Some((index, bound)) => Err(OpError::Index {
            operator: "the documents of a micro-batch",
            index: index as usize,
            bound: bound as usize,
        }),
        None => Ok(()),
    }
}

impl Bounds {
    fn check(self, batch: &MicroBatch<'_>) -> Result<(), OpError> {
        let below = |view: View<'_>, bound: usize| {
            let indices = view.as_slice::<u32>()?.iter();
            match indices.max().map(|&index| index as usize).filter(|&index| index >= bound) {
                Some(index) => Err(OpError::Index { operator: "a micro-batch", index, bound }),
                None => Ok(()),
            }
        };
        below(batch.tokens, self.tokens)?;
        below(batch.targets, self.tokens)?;
        below(batch.loss_rows, batch.tokens())?;
        below(batch.positions, self.positions)?;
        rises(batch.row_starts)?;
        rises(batch.cu_seqlens)
    }
}
