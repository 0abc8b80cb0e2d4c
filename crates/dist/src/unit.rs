//! The flat sharded unit: what a rank owns of it.

use std::sync::{Arc, Mutex, RwLock};

use tessera_ops::{Buffer, DType, Queue};

use crate::error::DistError;

/// The extents of a unit, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitSize {
    /// Elements of the whole unit, gaps between its segments included.
    pub elements: usize,
    /// The first elements, to which weight decay applies.
    pub decayed: usize,
}

impl UnitSize {
    /// Elements of each rank's slice: the unit padded to a multiple of the world size.
    pub fn shard(&self, world_size: usize) -> usize {
        self.elements.div_ceil(world_size)
    }

    /// Elements of the whole unit with that padding.
    pub fn padded(&self, world_size: usize) -> usize {
        self.shard(world_size) * world_size
    }
}

/// What training changes, and only in the optimizer's step: the masters and the optimizer's moments, fp32, all with the
/// geometry of the shard. Padding is zero and stays zero.
pub struct UnitState {
    /// The master weights.
    pub master: Buffer,
    /// The optimizer's moments, in the order the optimizer names them.
    pub moments: Vec<Buffer>,
}

/// The optimizer's moments of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// How many the optimizer keeps of each parameter.
    pub count: usize,
    /// Whether they lie in the host's memory, where the update reads and writes them over the bus.
    pub on_host: bool,
}

/// One rank's share of a unit. The state is shared with the collectives that gather it and with the thread that copies
/// it for a checkpoint, the gradient with the collectives that add to it.
pub struct Unit {
    pub(crate) size: UnitSize,
    pub(crate) state: Arc<RwLock<UnitState>>,
    pub(crate) gradient: Arc<Mutex<Buffer>>,
}

impl Unit {
    /// Allocates a rank's share where `queue` works, all zero.
    pub fn zeroed(
        queue: &Queue,
        size: UnitSize,
        world_size: usize,
        moments: Moments,
    ) -> Result<Self, DistError> {
        let bytes = size.shard(world_size) * DType::F32.size();
        let allocate = || Buffer::on(queue, bytes);
        let moment = || if moments.on_host { Buffer::mapped(queue, bytes) } else { allocate() };
        let moments = (0..moments.count).map(|_| moment()).collect::<Result<_, _>>()?;
        let state = UnitState { master: allocate()?, moments };
        Ok(Self { size, state: Arc::new(RwLock::new(state)), gradient: Arc::new(Mutex::new(allocate()?)) })
    }

    /// The unit's extents.
    pub fn size(&self) -> UnitSize {
        self.size
    }

    /// The masters and moments, for reading and writing under their lock.
    pub fn state(&self) -> &Arc<RwLock<UnitState>> {
        &self.state
    }

    /// This rank's slice of the gradient, summed over what has been reduced since it was cleared.
    pub fn gradient(&self) -> &Arc<Mutex<Buffer>> {
        &self.gradient
    }
}
