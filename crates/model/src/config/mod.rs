//! A Hugging Face `config.json` as a typed, complete, checked [`LlamaConfig`]: every default filled as
//! `transformers` fills it, every field checked for what the engine can train.
//!
//! What cannot be trained exactly as `transformers` would (dropout, other activations, other rotary scalings,
//! quantised weights) is refused here by name: a field that is skipped only shows as a slightly worse loss.

mod cost;
mod error;
mod fields;
mod llama;
mod rope;
#[cfg(test)]
mod tests;

pub use cost::{TrainingFlops, TrainingWork};
pub use error::ConfigError;
pub use llama::{Family, LlamaConfig, TorchDType};
pub use rope::{RopeConfig, RopeScaling};
