//! Models in Hugging Face's layout: opened from a folder, a `.gguf` file or the hub, written as an export, and put into
//! a repository of the hub. Data sets of the
//! hub, as files, since they come the same way.
//!
//! A source gives its `config.json` and tokenizer as they are, and its weights as a [`WeightSource`] of tensors under
//! their Hugging Face names; what the keys and names mean is the model's business, not ours.
//!
//! [`WeightSource`]: crate::WeightSource

mod check;
mod data_set;
mod error;
mod export;
mod gguf;
mod hub;
mod model;
mod safetensors;
mod upload;

pub use check::{Extras, TensorDifferences, TensorMismatch, TiedHead, check_tensors};
pub use data_set::{HubSplit, SplitFiles};
pub use error::HuggingFaceError;
pub use export::{DEFAULT_SHARD_BYTES, Export, ExportDType, ExportOptions};
pub use gguf::{GgufFile, GgufTokenizer, GgufWeights};
pub use hub::{HubOptions, HubProgress, HubProgressCallback};
pub use model::{ModelLocation, ModelSource};
pub use safetensors::SafetensorsSource;
pub use upload::HubTarget;
