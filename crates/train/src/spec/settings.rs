//! The settings of a run that are one of a few values.

use std::num::NonZeroUsize;

use serde::{Serialize, Serializer};

use super::keyword::keyword;
use super::reader::{self, Read};
use super::tree::{Node, Value};

keyword! {
    /// What an example is, and which of its tokens have loss.
    TaskType {
        /// Conversations: `messages` with roles.
        ChatCompletion = "CHAT_COMPLETION",
        /// A `prompt` with its `response` or `completion`.
        InstructionFinetune = "INSTRUCTION_FINETUNE",
        /// Plain text.
        ContinuedPretrain = "CONTINUED_PRETRAIN",
    }
}

keyword! {
    /// Where the first weights come from.
    Init {
        /// The model's own.
        Pretrained = "pretrained",
        /// Drawn from the seed; the model's config and tokenizer are enough.
        Random = "random",
    }
}

keyword! {
    /// The element type of exported weights.
    HfSavePrecision {
        /// The source's.
        Auto = "auto",
        /// Single precision.
        Fp32 = "fp32",
        /// bfloat16.
        Bf16 = "bf16",
    }
}

keyword! {
    /// What the arithmetic of a step is done in.
    Precision {
        /// `fp32` on CPUs, `amp_bf16` on GPUs.
        Auto = "auto",
        /// Single precision throughout.
        Fp32 = "fp32",
        /// bf16 products on fp32 master weights: on GPUs activations are bf16 too, on CPUs only the factors of products.
        AmpBf16 = "amp_bf16",
    }
}

keyword! {
    /// Which assistant turns of a conversation have loss.
    TargetResponses {
        /// Every one.
        All = "all",
        /// The last one only.
        Last = "last",
    }
}

keyword! {
    /// How examples share the rows of a batch.
    Packing {
        /// As many whole examples as fit, none seeing another.
        BestFit = "best_fit",
        /// One example a row.
        None = "none",
    }
}

keyword! {
    /// What the forward pass keeps for the backward.
    ActivationCheckpointing {
        /// Everything where one process trains on GPUs that have room for it, else each block's input.
        Auto = "auto",
        /// Each block's input; the rest is computed again.
        Block = "block",
        /// Everything.
        None = "none",
    }
}

keyword! {
    /// What GPUs keep in the memory of the host.
    Offload {
        /// Nothing.
        None = "none",
        /// The optimizer's moments.
        Optimizer = "optimizer",
    }
}

/// Packed rows that one device computes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicrobatchSize {
    /// As many as the memory plan allows.
    Auto,
    /// So many.
    Rows(NonZeroUsize),
}

impl MicrobatchSize {
    pub(super) fn read(node: &Node) -> Read<Self> {
        match &node.value {
            Value::Text(text) if text == "auto" => Ok(Self::Auto),
            _ => reader::count(node).map(Self::Rows).map_err(|expected| format!("auto or {expected}")),
        }
    }
}

impl Serialize for MicrobatchSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Rows(rows) => rows.serialize(serializer),
        }
    }
}

/// How many checkpoints stay on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointsToKeep {
    /// All of them: `-1`.
    All,
    /// The newest so many.
    Newest(NonZeroUsize),
}

impl CheckpointsToKeep {
    pub(super) fn read(node: &Node) -> Read<Self> {
        match node.value {
            Value::Integer(-1) => Ok(Self::All),
            _ => reader::count(node).map(Self::Newest).map_err(|expected| format!("-1 (all) or {expected}")),
        }
    }
}

impl Serialize for CheckpointsToKeep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_i64(-1),
            Self::Newest(count) => count.serialize(serializer),
        }
    }
}
