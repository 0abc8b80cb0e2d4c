//! Groups of ranks and their collectives.
//!
//! A collective runs beside the caller, so it owns what it works on: buffers are moved in and come back when it is
//! waited for, and what a rank keeps (masters, the reduced gradient) is shared under its lock. Nothing here says
//! whether a thread, a library or a stream does the work. On a device, "after `queue`" means after what was issued
//! there before the call, and waiting makes `queue` wait, not the host.

use std::sync::{Arc, Mutex, RwLock};

use tessera_ops::{Buffer, DType, Queue, ViewMut};

use crate::error::DistError;
use crate::recorder::{Call, Recorder};
use crate::unit::UnitState;
use crate::wire::Wire;

/// A collective under way, and the `T` that it gives back.
#[must_use = "a collective is complete only when it has been waited for"]
pub struct Pending<T>(State<T>);

enum State<T> {
    Complete(T),
    UnderWay(Box<dyn FnOnce() -> Result<T, DistError> + Send>),
}

impl<T> Pending<T> {
    /// A collective that was complete when its call returned.
    pub fn completed(value: T) -> Self {
        Self(State::Complete(value))
    }

    /// A collective that is complete when `wait` returns.
    pub fn under_way(wait: impl FnOnce() -> Result<T, DistError> + Send + 'static) -> Self {
        Self(State::UnderWay(Box::new(wait)))
    }

    /// Waits for the collective to complete.
    pub fn wait(self) -> Result<T, DistError> {
        match self.0 {
            State::Complete(value) => Ok(value),
            State::UnderWay(wait) => wait(),
        }
    }
}

/// Fails unless `root` is a rank of a group of `ranks`.
pub(crate) fn check_root(call: impl FnOnce() -> Call, root: usize, ranks: usize) -> Result<(), DistError> {
    if root < ranks {
        return Ok(());
    }
    let expected = format!("more than {root}, the rank whose bytes are wanted");
    Err(DistError::Extent { call: call(), what: "the group", found: ranks, expected })
}

/// The buffers of an all-to-all, fp32.
pub struct Exchange {
    /// What this rank gives: as many equal blocks as there are ranks, the i-th for rank i.
    pub given: Buffer,
    /// What it gets: the i-th block from rank i.
    pub got: Buffer,
}

impl Exchange {
    /// Fails unless the buffers have room for `elements`, in equal blocks for `ranks` ranks.
    pub(crate) fn check(
        &self,
        call: impl Fn() -> Call,
        elements: usize,
        ranks: usize,
    ) -> Result<(), DistError> {
        let extent = |what, found, expected| DistError::Extent { call: call(), what, found, expected };
        if !elements.is_multiple_of(ranks) {
            return Err(extent("the exchange", elements, format!("a multiple of {ranks}, the ranks")));
        }
        for (what, buffer) in [("what is given", &self.given), ("what is got", &self.got)] {
            let room = buffer.len() / DType::F32.size();
            if room < elements {
                return Err(extent(what, room, format!("at least {elements}")));
            }
        }
        Ok(())
    }
}

/// Ranks that act together. Every rank makes the same calls in the same order, over all groups that it is in: the
/// collectives of one rank run one after another. Sums are taken in the order of the ranks.
pub trait Group: Send + Sync {
    /// This rank, in the group.
    fn rank(&self) -> usize;

    /// The number of ranks in the group.
    fn world_size(&self) -> usize;

    /// Whether a rank's shard is the whole unit: its gradients are added where they lie and none is reduced, and its masters
    /// are used where they lie unless the compute is in another dtype.
    fn lends(&self) -> bool;

    /// What this rank has called, in all its groups; `None` where nothing is ever moved.
    fn recorder(&self) -> Option<&Arc<Recorder>>;

    /// Fails if a collective of this rank has failed. On a device that is known only when its work has run, after the call
    /// that issued it: whoever reads on the host what came of collectives asks before using it.
    fn check(&self) -> Result<(), DistError> {
        Ok(())
    }

    /// The first `elements` of `full` = the masters of all ranks in `dtype`, in the order of the ranks; after `queue`.
    fn all_gather(
        &self,
        queue: &Queue,
        unit: usize,
        dtype: DType,
        elements: usize,
        shard: &Arc<RwLock<UnitState>>,
        full: Buffer,
    ) -> Result<Pending<Buffer>, DistError>;

    /// shard += this rank's slice of the sum over all ranks of the first `elements` of `full`, which travel as `wire` says;
    /// `full` then holds anything. After `queue`.
    fn reduce_scatter(
        &self,
        queue: &Queue,
        unit: usize,
        elements: usize,
        full: Buffer,
        shard: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<Pending<Buffer>, DistError>;

    /// gradient = the sum of `gradient` over all ranks, the same on each; contributions and sums travel as `wire` says. After
    /// `queue`, and after the reductions that were issued before.
    fn all_reduce_gradient(
        &self,
        queue: &Queue,
        unit: usize,
        gradient: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<Pending<()>, DistError>;

    /// values = the sum of `values` (f64, a few of them) over all ranks, in the order of `queue` as an operator's
    /// output: they are final for whatever is issued there next.
    fn all_reduce(&self, queue: &Queue, values: ViewMut<'_>) -> Result<Pending<()>, DistError>;

    /// Every rank's i-th block goes to rank i. The blocks make up the first `elements` elements; after `queue`.
    fn all_to_all(
        &self,
        queue: &Queue,
        label: &'static str,
        elements: usize,
        exchange: Exchange,
    ) -> Result<Pending<Exchange>, DistError>;

    /// The bytes that rank `root` passes; those of the others are dropped.
    fn broadcast(
        &self,
        label: &'static str,
        root: usize,
        bytes: Vec<u8>,
    ) -> Result<Pending<Vec<u8>>, DistError>;

    /// The bytes of all ranks, in their order; they may differ in length.
    fn all_gather_bytes(
        &self,
        label: &'static str,
        bytes: Vec<u8>,
    ) -> Result<Pending<Vec<Vec<u8>>>, DistError>;

    /// Complete when all ranks have called it.
    fn barrier(&self, label: &'static str) -> Result<Pending<()>, DistError>;

    /// The group of the ranks that pass the same `colour`, in the order of this one. `name` stands in messages.
    fn split(&self, name: &'static str, colour: usize) -> Result<Box<dyn Group>, DistError>;
}
