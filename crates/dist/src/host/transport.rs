//! What the communication thread needs of a way between ranks: blocking collectives on what it owns.

use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use half::bf16;
use half::slice::HalfFloatSliceExt;
use tessera_ops::{Buffer, DType, OpError, ViewMut};

use crate::error::DistError;
use crate::group::Exchange;
use crate::recorder::Call;
use crate::unit::UnitState;
use crate::wire::Wire;

/// Why a group makes no more collectives. Ranks are those of the world.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// A rank is gone, or has failed.
    Lost { rank: usize, reason: String },
    /// Ranks did not come in time.
    Late { ranks: Vec<usize>, seconds: f64 },
    /// Ranks make different collectives: two of them, and what they call.
    Parted { one: (usize, Call), other: (usize, Call) },
}

impl Failure {
    /// What `rank` has to tell of the error that ended its collectives: whoever was named first stays the culprit.
    pub fn of(error: &DistError, rank: usize) -> Self {
        match error {
            DistError::Lost { rank, reason, .. } => Failure::Lost { rank: *rank, reason: reason.clone() },
            DistError::Late { ranks, seconds, .. } => {
                Failure::Late { ranks: ranks.clone(), seconds: *seconds }
            }
            DistError::Mismatch { one, other } => Failure::Parted { one: one.clone(), other: other.clone() },
            error => Failure::Lost { rank, reason: error.to_string() },
        }
    }

    /// The same, told to whoever makes `call`.
    pub fn error(self, call: &Call) -> DistError {
        let call = call.clone();
        match self {
            Failure::Lost { rank, reason } => DistError::Lost { rank, reason, call },
            Failure::Late { ranks, seconds } => DistError::Late { ranks, call, seconds },
            Failure::Parted { one, other } => DistError::Mismatch { one, other },
        }
    }
}

/// What can be known and said of a group's ranks from outside the communication thread.
pub(crate) trait Peers: Send + Sync {
    /// Ranks of the world that the collective under way still lacks.
    fn absent(&self) -> Vec<usize>;

    /// Tells the others that this rank makes no more collectives.
    fn give_up(&self, failure: Failure);
}

/// One group's way between ranks, used by one thread. Collectives are those of [`crate::Group`]; `call` is what the
/// other ranks must be calling too. Elements are fp32.
pub(crate) trait Transport {
    /// This rank, in the group.
    fn rank(&self) -> usize;

    /// The number of ranks in the group.
    fn world_size(&self) -> usize;

    /// What is known of the others, if anything.
    fn peers(&self) -> Option<Arc<dyn Peers>>;

    /// Bytes sent to other ranks since this was last asked.
    fn take_sent(&mut self) -> u64;

    /// The masters come rounded to `dtype`, fp32 or bf16.
    fn all_gather(
        &mut self,
        call: &Call,
        dtype: DType,
        elements: usize,
        shard: &Arc<RwLock<UnitState>>,
        full: Buffer,
    ) -> Result<Buffer, DistError>;

    fn reduce_scatter(
        &mut self,
        call: &Call,
        elements: usize,
        full: Buffer,
        shard: &Mutex<Buffer>,
        wire: Wire,
    ) -> Result<Buffer, DistError>;

    fn all_reduce_gradient(
        &mut self,
        call: &Call,
        gradient: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<(), DistError>;

    fn all_reduce(&mut self, call: &Call, values: Vec<f64>) -> Result<Vec<f64>, DistError>;

    /// `block` elements for each rank.
    fn all_to_all(&mut self, call: &Call, block: usize, exchange: Exchange) -> Result<Exchange, DistError>;

    /// `root` is a rank of the group.
    fn broadcast(&mut self, call: &Call, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, DistError>;

    fn all_gather_bytes(&mut self, call: &Call, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, DistError>;

    fn barrier(&mut self, call: &Call) -> Result<(), DistError>;

    fn split(&mut self, call: &Call, colour: usize) -> Result<Box<dyn Transport>, DistError>;
}

/// Fails unless `what` has `expected` elements.
pub(crate) fn check_extent(
    call: &Call,
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), DistError> {
    if found == expected {
        return Ok(());
    }
    Err(DistError::Extent { call: call.clone(), what, found, expected: expected.to_string() })
}

/// to = from, rounded to the nearest where `to` is bf16. The thread does it by itself: the compute needs the others.
pub(crate) fn narrow(from: &[f32], to: &mut ViewMut<'_>) -> Result<(), OpError> {
    match to.dtype() {
        DType::BF16 => to.as_slice_mut::<bf16>()?.convert_from_f32_slice(from),
        _ => to.as_slice_mut::<f32>()?.copy_from_slice(from),
    }
    Ok(())
}

/// Locks what the caller shares with its collectives.
pub(crate) fn lock<'a>(call: &Call, buffer: &'a Mutex<Buffer>) -> Result<MutexGuard<'a, Buffer>, DistError> {
    buffer.lock().map_err(|_| DistError::Held { call: call.clone() })
}

/// Locks masters for reading.
pub(crate) fn read<'a>(
    call: &Call,
    state: &'a RwLock<UnitState>,
) -> Result<RwLockReadGuard<'a, UnitState>, DistError> {
    state.read().map_err(|_| DistError::Held { call: call.clone() })
}
