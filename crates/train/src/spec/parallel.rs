//! How the model and the data are spread over devices.

use std::num::NonZeroUsize;

use serde::{Serialize, Serializer};
use tessera_dist::Wire;

use super::keyword::keyword;
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
    pub reshard_after_forward: ReshardAfterForward,
    /// The type in which gradients travel to the ranks that sum them.
    pub reduce_dtype: ReduceDType,
}

keyword! {
    /// The type in which a rank's part of a gradient leaves it; sums are taken in fp32 in any case.
    ReduceDType {
        /// As it is.
        Fp32 = "fp32",
        /// Rounded, in half of the bytes.
        Bf16 = "bf16",
    }
}

impl From<ReduceDType> for Wire {
    fn from(dtype: ReduceDType) -> Self {
        match dtype {
            ReduceDType::Fp32 => Self::Fp32,
            ReduceDType::Bf16 => Self::Bf16,
        }
    }
}

/// Whether gathered weights are given up once they have been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReshardAfterForward {
    /// Unless one process trains on GPUs that have room for them.
    Auto,
    /// As it says.
    Given(bool),
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
            reshard_after_forward: ReshardAfterForward::Auto,
            reduce_dtype: ReduceDType::Fp32,
        }
    }
}

impl Serialize for ReshardAfterForward {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Given(given) => given.serialize(serializer),
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
                .optional("reshard_after_forward", reshard_after_forward)
                .unwrap_or(default.reshard_after_forward),
            reduce_dtype: map.optional("reduce_dtype", reader::keyword).unwrap_or(default.reduce_dtype),
        }
    }
}

fn reshard_after_forward(node: &Node) -> Read<ReshardAfterForward> {
    match &node.value {
        Value::Text(text) if text == "auto" => Ok(ReshardAfterForward::Auto),
        _ => reader::boolean(node)
            .map(ReshardAfterForward::Given)
            .map_err(|_| "auto, true or false".to_owned()),
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
