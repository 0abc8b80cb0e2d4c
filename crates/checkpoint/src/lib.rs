//! Weights and training state on disk: sharded checkpoints in the format of PyTorch's distributed checkpoints
//! (DCP) with Composer's key layout, and models in Hugging Face's layout, read and written.
//!
//! Nothing here knows a model family or an operator: tensors are names, shapes and ranges of elements.

pub mod dcp;
pub mod huggingface;
mod weights;

pub use weights::{StoredDType, TensorInfo, WeightSource};
