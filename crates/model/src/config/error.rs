//! What can be wrong with a `config.json`.

use std::io;
use std::path::PathBuf;

/// A model's `config.json` cannot be read, or describes a model that cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The `config.json`.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is no JSON. The source names the line and column.
    #[error("{path}: not valid JSON: {source}; fetch the file again or mend it", path = path.display())]
    Json {
        /// The `config.json`.
        path: PathBuf,
        /// Where and why the parser stopped.
        source: serde_json::Error,
    },
    /// A key that the architecture cannot do without is not there.
    #[error("{path}: `{key}` is missing; expected {expected}", path = path.display())]
    Missing {
        /// The `config.json`.
        path: PathBuf,
        /// The absent key, with dots between levels.
        key: String,
        /// The form of its value.
        expected: String,
    },
    /// A key's value has another type than `transformers` writes, or lies outside its range.
    #[error("{path}: `{key}` is {found}; expected {expected}", path = path.display())]
    Unfit {
        /// The `config.json`.
        path: PathBuf,
        /// The key, with dots between levels.
        key: String,
        /// The value as the file has it.
        found: String,
        /// The form and range of its value.
        expected: String,
    },
    /// A value that `transformers` knows and this engine does not train.
    #[error("{path}: `{key}` is {found}, which is not supported: {supported}", path = path.display())]
    Unsupported {
        /// The `config.json`.
        path: PathBuf,
        /// The key, with dots between levels.
        key: String,
        /// The value as the file has it.
        found: String,
        /// What is supported, and the fix.
        supported: String,
    },
    /// Two fields say different things.
    #[error("{path}: {first} contradicts {second}; {fix}", path = path.display())]
    Contradiction {
        /// The `config.json`.
        path: PathBuf,
        /// One key with its value.
        first: String,
        /// The other key with its value.
        second: String,
        /// Which to change.
        fix: String,
    },
}
