//! How the model and the data are spread over devices.

use std::num::NonZeroUsize;

use serde::{Serialize, Serializer};

use super::reader::{self, MapReader, Read};
use super::tree::{Node, Value};

/// The degrees of parallelism; complete once it is written at all. Their product is the number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parallel {
    /// Ranks that share one copy of weights, gradients and optimizer state.
    pub shard: ShardDegree,
    /// Copies of that group, each with its own share of the batch.
    pub replicate: NonZeroUsize,
    /// Ranks that share one sequence.
    pub context: NonZeroUsize,
    /// Whether gathered weights are given up after the forward pass and gathered again for the backward.
    pub reshard_after_forward: bool,
}

/// How many ranks share one copy of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardDegree {
    /// All that the other degrees leave: `-1`.
    Remaining,
    /// So many.
    Ranks(NonZeroUsize),
}

impl Default for Parallel {
    fn default() -> Self {
        Self {
            shard: ShardDegree::Remaining,
            replicate: NonZeroUsize::MIN,
            context: NonZeroUsize::MIN,
            reshard_after_forward: true,
        }
    }
}

impl Serialize for ShardDegree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Remaining => serializer.serialize_i64(-1),
            Self::Ranks(ranks) => ranks.serialize(serializer),
        }
    }
}

impl Parallel {
    /// Reads the map `parallel`.
    pub(super) fn read(map: &mut MapReader<'_>) -> Self {
        let default = Self::default();
        Self {
            shard: map.optional("shard", shard).unwrap_or(default.shard),
            replicate: map.optional("replicate", reader::count).unwrap_or(default.replicate),
            context: map.optional("context", reader::count).unwrap_or(default.context),
            reshard_after_forward: map
                .optional("reshard_after_forward", reader::boolean)
                .unwrap_or(default.reshard_after_forward),
        }
    }
}

fn shard(node: &Node) -> Read<ShardDegree> {
    match node.value {
        Value::Integer(-1) => Ok(ShardDegree::Remaining),
        _ => reader::count(node)
            .map(ShardDegree::Ranks)
            .map_err(|_| "-1 (all remaining ranks) or a whole number of at least 1".to_owned()),
    }
}
