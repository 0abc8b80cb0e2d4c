//! How the ranks of a run are cut into groups.
//!
//! Rank = (replica · shard + s) · context + c. The shard · context ranks of one replica are consecutive, so that
//! weights and gradients stay inside a node where nodes are that large; together they share one copy of the model. The
//! ranks at the same place of every replica hold the same slice of it. The `context` ranks that share a sequence are
//! neighbours.

use std::sync::Arc;

use crate::error::DistError;
use crate::group::Group;
use crate::single::Single;

/// The degrees of parallelism, which multiply to the number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Degrees {
    /// Ranks with rows of their own that share one copy of the model.
    pub shard: usize,
    /// Copies of the model.
    pub replicate: usize,
    /// Ranks that share one sequence; they share one copy of the model too.
    pub context: usize,
}

/// A run's ranks and the groups that one of them is in.
#[derive(Clone)]
pub struct Mesh {
    world: Arc<dyn Group>,
    shard: Arc<dyn Group>,
    replicate: Arc<dyn Group>,
    context: Arc<dyn Group>,
}

impl Mesh {
    /// Cuts `world`. All ranks call this together.
    pub fn new(world: Box<dyn Group>, degrees: Degrees) -> Result<Self, DistError> {
        let Degrees { shard, replicate, context } = degrees;
        let (rank, world_size) = (world.rank(), world.world_size());
        let ranks = [shard, replicate, context].into_iter().try_fold(1, usize::checked_mul);
        if ranks != Some(world_size) {
            return Err(DistError::Degrees { shard, replicate, context, world_size });
        }
        let copy = shard * context;
        let mut mesh = Self::from(world);
        if replicate > 1 {
            mesh.shard = mesh.world.split("shard", rank / copy)?.into();
            mesh.replicate = mesh.world.split("replicate", rank % copy)?.into();
        }
        if context > 1 {
            mesh.context = mesh.world.split("context", rank / context)?.into();
        }
        Ok(mesh)
    }

    /// All ranks.
    pub fn world(&self) -> &dyn Group {
        self.world.as_ref()
    }

    /// The ranks that share one copy of the model with this one.
    pub fn shard(&self) -> &dyn Group {
        self.shard.as_ref()
    }

    /// The ranks that hold the same slice as this one, one of each copy. Its rank is the number of this rank's copy.
    pub fn replicate(&self) -> &dyn Group {
        self.replicate.as_ref()
    }

    /// The ranks that share this one's sequences.
    pub fn context(&self) -> &dyn Group {
        self.context.as_ref()
    }
}

/// One copy of the model, shared by all.
impl From<Box<dyn Group>> for Mesh {
    fn from(world: Box<dyn Group>) -> Self {
        let world: Arc<dyn Group> = world.into();
        Self { shard: world.clone(), replicate: Arc::new(Single), context: Arc::new(Single), world }
    }
}

/// The mesh of one rank.
impl From<Single> for Mesh {
    fn from(single: Single) -> Self {
        let world: Box<dyn Group> = Box::new(single);
        world.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn degrees_must_make_up_the_ranks() {
        let mesh = |shard, replicate, context| {
            Mesh::new(Box::new(Single), Degrees { shard, replicate, context })
                .map(|mesh| mesh.world().world_size())
        };
        assert_eq!(mesh(1, 1, 1).unwrap(), 1);
        for (shard, replicate, context) in [(2, 1, 1), (1, 2, 1), (1, 1, 2), (0, 1, 1), (usize::MAX, 2, 2)] {
            let error = mesh(shard, replicate, context).unwrap_err();
            assert!(error.to_string().ends_with("does not make 1 ranks"), "{error}");
        }
    }
}
