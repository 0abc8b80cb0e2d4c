//! How the ranks of a run write one checkpoint together.
//!
//! They begin together: rank 0 makes the folder, and all make sure that they hold the same state. Then each writes its shard
//! whenever it comes to it, and beside it a note of what is in it. Rank 0 collects the notes, writes `.metadata` and gives the
//! folder its name. The notes are files, not collectives: they come beside the training, at a time that differs from rank
//! to rank. They bear the number of the attempt, so that what a rank of an earlier one leaves late is nobody's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tessera_checkpoint::dcp::{RankMetadata, shard_file, write_metadata};
use tessera_dist::{DistError, Group};
use tessera_files::{AtomicFolder, write_atomic};
use tessera_ops::{DType, transfer};

use crate::engine::{Engine, OptimizerCounts, bit_sum};
use crate::error::TrainError;
use crate::plan::file_error;
use crate::state::Position;

/// How long rank 0 sleeps between two looks for a note.
const PAUSE: Duration = Duration::from_millis(20);
/// How long it still waits for a note when the run has ended meanwhile.
const HURRIED_PATIENCE: Duration = Duration::from_secs(3);

/// A rank's part in a checkpoint.
pub(super) struct Assembly {
    path: PathBuf,
    /// The rank among those that write, one for each slice of the model.
    rank: usize,
    ranks: usize,
    /// The folder as rank 0 has it.
    whole: Option<AtomicFolder>,
    /// The same on all ranks, and in no other attempt.
    attempt: u64,
    patience: Patience,
    /// Whether rank 0 knows what became of this rank's shard.
    handed_in: bool,
}

/// How long rank 0 waits for a shard that does not grow.
#[derive(Debug, Clone)]
pub struct Patience {
    /// While the run goes on.
    pub patience: Duration,
    /// Set when it has ended: whoever else is left must not be waited for.
    pub hurried: Arc<AtomicBool>,
}

impl Patience {
    fn get(&self) -> Duration {
        if self.hurried.load(Ordering::Relaxed) { HURRIED_PATIENCE.min(self.patience) } else { self.patience }
    }
}

/// What a rank has to say of its shard.
#[derive(Serialize, Deserialize)]
enum Note {
    Written(RankMetadata),
    Failed(String),
}

impl Assembly {
    /// Begins a checkpoint that is to lie at `path`. All ranks call it. `None`: this rank has nothing to write, because
    /// another holds the same slice or because rank 0 could not make the folder.
    ///
    /// # Errors
    /// Rank 0's, when it cannot make the folder; on all ranks, when one is missing or they do not hold the same state.
    pub(super) fn begin(
        engine: &Engine,
        position: &Position,
        path: PathBuf,
        patience: Patience,
    ) -> Result<Option<Self>, TrainError> {
        let (world, shard) = (engine.units().mesh().world(), engine.units().group());
        let folder = path.parent().unwrap_or(Path::new("."));
        let whole = (world.rank() == 0).then(|| {
            std::fs::create_dir_all(folder).map_err(|source| file_error("create", folder, source))?;
            Ok::<_, TrainError>(AtomicFolder::create(&path)?)
        });
        let made = !matches!(whole, Some(Err(_)));
        let Agreed { ready: all_made, attempt } = same_state(engine, position, "at a checkpoint", made)?;
        let whole = whole.transpose()?;
        let writes = all_made && engine.units().mesh().replicate().rank() == 0;
        let (rank, ranks) = (shard.rank(), shard.world_size());
        Ok(writes.then(|| Self { path, rank, ranks, whole, attempt, patience, handed_in: false }))
    }

    /// Where the checkpoint will lie.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the shards are written.
    pub(super) fn folder(&self) -> PathBuf {
        AtomicFolder::partial(&self.path)
    }

    /// The number of this rank's shard.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// How many shards there are.
    pub(super) fn ranks(&self) -> usize {
        self.ranks
    }

    fn note(&self, rank: usize) -> PathBuf {
        self.folder().join(format!("{rank}-{:x}.note", self.attempt))
    }

    /// Hands in this rank's shard; rank 0 waits for the others' and makes the checkpoint whole. Whether this rank did so.
    ///
    /// # Errors
    /// When a shard could not be written or does not come, the shards do not make up the tensors, or the disk is full.
    pub(super) fn complete(mut self, own: RankMetadata) -> Result<bool, TrainError> {
        let Some(whole) = self.whole.take() else {
            self.hand_in(&Note::Written(own))?;
            self.handed_in = true;
            return Ok(false);
        };
        let mut shards = vec![own];
        for rank in 1..self.ranks {
            shards.push(self.wait_for(rank)?);
        }
        write_metadata(whole.folder(), shards)?;
        whole.finish()?;
        Ok(true)
    }

    /// Tells rank 0 that this rank's shard will not come. What stopped it is no failure where rank 0 has given up before.
    ///
    /// # Errors
    /// Why it will not come.
    pub(super) fn give_up(mut self, error: TrainError) -> Result<(), TrainError> {
        if self.whole.is_none() && !self.folder().exists() {
            self.handed_in = true;
            return Ok(());
        }
        self.leave_failure(error.to_string());
        Err(error)
    }

    fn leave_failure(&mut self, message: String) {
        if self.whole.is_none() && !self.handed_in {
            // Where not even this can be written rank 0 stops waiting when its patience is over.
            let _ = self.hand_in(&Note::Failed(message));
            self.handed_in = true;
        }
    }

    /// Leaves a note for rank 0. If it has given up, the folder is gone, and that is no fault of this rank.
    fn hand_in(&self, note: &Note) -> Result<(), TrainError> {
        match write_atomic(&self.note(self.rank), &serde_json::to_vec(note)?) {
            Err(_) if !self.folder().exists() => Ok(()),
            written => Ok(written?),
        }
    }

    /// The note of another rank, which is then removed.
    fn wait_for(&self, rank: usize) -> Result<RankMetadata, TrainError> {
        let path = self.note(rank);
        let shard = self.folder().join(shard_file(rank));
        let size = || std::fs::metadata(&shard).map_or(0, |metadata| metadata.len());
        let failed = |message: String| TrainError::ShardFailed { rank, message };
        let (mut grown, mut last) = (Instant::now(), size());
        while !path.exists() {
            let (patience, now) = (self.patience.get(), size());
            if now != last {
                (grown, last) = (Instant::now(), now);
            }
            if grown.elapsed() > patience {
                return Err(failed(format!("it has not grown for {} s", patience.as_secs_f64())));
            }
            thread::sleep(PAUSE);
        }
        let bytes = std::fs::read(&path).map_err(|source| file_error("read", &path, source))?;
        std::fs::remove_file(&path).map_err(|source| file_error("remove", &path, source))?;
        match serde_json::from_slice(&bytes)? {
            Note::Written(metadata) => Ok(metadata),
            Note::Failed(message) => Err(failed(message)),
        }
    }
}

impl Drop for Assembly {
    /// However a rank's part ends, rank 0 does not wait for it in vain.
    fn drop(&mut self) {
        self.leave_failure("its thread ended".to_owned());
    }
}

/// What all ranks hold alike.
#[derive(PartialEq, Serialize, Deserialize)]
struct Replicated {
    /// Epoch, batch, sample, token.
    position: [u64; 4],
    counts: OptimizerCounts,
}

/// What a rank tells the others of its state.
#[derive(Serialize, Deserialize)]
struct Report {
    replicated: Replicated,
    /// The number of the rank's slice, and what its weights add up to: alike in all copies of the model.
    slice: (usize, u64),
    /// Whether the rank is ready for what comes next.
    ready: bool,
    /// A number that the rank has not said before.
    number: u64,
}

/// What ranks that hold the same state agree on besides.
pub(super) struct Agreed {
    /// Whether all are ready for what comes next.
    pub ready: bool,
    /// A number for what comes next.
    pub attempt: u64,
}

/// Checks that all ranks hold the same state, which is named as of some `moment`. All ranks call it, and say whether they are
/// `ready` for what comes next.
///
/// # Errors
/// When a rank is missing, or holds another state than rank 0 or than the rank with the same slice.
pub(super) fn same_state(
    engine: &Engine,
    position: &Position,
    moment: &'static str,
    ready: bool,
) -> Result<Agreed, TrainError> {
    let mesh = engine.units().mesh();
    let own = Report {
        replicated: Replicated {
            position: [position.epoch, position.batch, position.sample, position.token],
            counts: engine.optimizer_counts()?,
        },
        slice: (mesh.shard().rank(), if mesh.replicate().world_size() > 1 { weight_sum(engine)? } else { 0 }),
        ready,
        number: unused_number(),
    };
    let reports = exchange(mesh.world(), moment, &own)?;
    let differing = |found: String, expected: String, rank: usize, other: usize| {
        Err(TrainError::Diverged { rank, other, moment, found, expected })
    };
    let show = |replicated: &Replicated| Ok::<_, TrainError>(serde_json::to_string(replicated)?);
    for (rank, report) in reports.iter().enumerate() {
        if report.replicated != reports[0].replicated {
            return differing(show(&report.replicated)?, show(&reports[0].replicated)?, rank, 0);
        }
        let first = reports.iter().position(|other| other.slice.0 == report.slice.0).unwrap_or(rank);
        if reports[first].slice.1 != report.slice.1 {
            let sum = |slice: (usize, u64)| format!("weights that add up to {:016x}", slice.1);
            return differing(sum(report.slice), sum(reports[first].slice), rank, first);
        }
    }
    Ok(Agreed { ready: reports.iter().all(|report| report.ready), attempt: reports[0].number })
}

/// A number that no process says twice: the time and the process.
fn unused_number() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (time.as_nanos() as u64).rotate_left(16) ^ u64::from(std::process::id())
}

/// What every rank says, in their order.
pub(crate) fn exchange<T: Serialize + for<'a> Deserialize<'a>>(
    group: &dyn Group,
    label: &'static str,
    own: &T,
) -> Result<Vec<T>, TrainError> {
    let all = group.all_gather_bytes(label, serde_json::to_vec(own)?)?.wait()?;
    Ok(all.iter().map(|bytes| serde_json::from_slice(bytes)).collect::<Result<_, _>>()?)
}

/// What all weights of this rank add up to, see [`bit_sum`].
fn weight_sum(engine: &Engine) -> Result<u64, TrainError> {
    let mut sum = 0_u64;
    for (index, unit) in engine.units().iter().enumerate() {
        let state = unit.state().read().map_err(|_| DistError::Abandoned { unit: index })?;
        let weights = transfer::to_host::<f32>(engine.queue(), state.master.view(DType::F32))?;
        sum = sum.wrapping_add(bit_sum(&weights, 0));
    }
    Ok(sum)
}
