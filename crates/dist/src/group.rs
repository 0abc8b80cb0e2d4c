//! Groups of ranks and their collectives.

use tessera_ops::{Queue, View, ViewMut, fill};

use crate::error::DistError;

/// A collective under way.
#[must_use = "a collective is complete only when it has been waited for"]
pub struct Handle(Option<Box<dyn FnOnce() -> Result<(), DistError> + Send>>);

impl Handle {
    /// A collective that was complete when its call returned.
    pub fn completed() -> Self {
        Self(None)
    }

    /// A collective that is complete when `wait` returns.
    pub fn pending(wait: impl FnOnce() -> Result<(), DistError> + Send + 'static) -> Self {
        Self(Some(Box::new(wait)))
    }

    /// Waits for the collective to complete.
    pub fn wait(self) -> Result<(), DistError> {
        self.0.map_or(Ok(()), |wait| wait())
    }
}

/// Ranks that hold one model together. Every rank makes the same calls in the same order.
pub trait Group: Send + Sync {
    /// This rank.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn world_size(&self) -> usize;

    /// Whether a rank's shard is the whole unit in the dtype of the compute, so that weights and gradients are used
    /// where they lie and nothing is gathered or reduced.
    fn lends(&self) -> bool;

    /// full = the shards of all ranks, in the order of the ranks.
    fn all_gather(&self, queue: &Queue, shard: View<'_>, full: ViewMut<'_>) -> Result<Handle, DistError>;

    /// shard += this rank's slice of the sum of `full` over all ranks.
    fn reduce_scatter(&self, queue: &Queue, full: View<'_>, shard: ViewMut<'_>) -> Result<Handle, DistError>;

    /// values = the sum of `values` over all ranks.
    fn all_reduce(&self, queue: &Queue, values: ViewMut<'_>) -> Result<Handle, DistError>;
}

/// The group of one rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Single;

impl Group for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn lends(&self) -> bool {
        true
    }

    fn all_gather(&self, queue: &Queue, shard: View<'_>, full: ViewMut<'_>) -> Result<Handle, DistError> {
        fill::copy(queue, shard, full)?;
        Ok(Handle::completed())
    }

    fn reduce_scatter(&self, queue: &Queue, full: View<'_>, shard: ViewMut<'_>) -> Result<Handle, DistError> {
        fill::add(queue, full, shard)?;
        Ok(Handle::completed())
    }

    fn all_reduce(&self, _queue: &Queue, _values: ViewMut<'_>) -> Result<Handle, DistError> {
        Ok(Handle::completed())
    }
}
