//! A Hugging Face `config.json` as a typed, complete, checked [`ModelConfig`]: every default filled as
//! `transformers` fills it, every field checked for what the engine can train.
//!
//! What cannot be trained exactly as `transformers` would (dropout, other activations, other rotary scalings,
//! quantised weights) is refused here by name: a field that is skipped only shows as a slightly worse loss.

mod cost;
mod dbrx;
mod error;
mod family;
mod fields;
mod llama;
mod model_config;
mod rope;
mod shared;
#[cfg(test)]
mod tests;

pub use cost::{TrainingFlops, TrainingWork};
pub use error::ConfigError;
pub use family::Family;
pub use model_config::{ExpertsConfig, ModelConfig, NormKind, TorchDType};
pub use rope::{RopeConfig, RopeScaling};
