//! What can go wrong with a model in Hugging Face's layout. Each message names the place, what was found there, and
//! the fix where there is one.

use std::path::{Path, PathBuf};

use tessera_files::FileError;

use super::check::TensorMismatch;

/// An error of importing or exporting a model.
#[derive(Debug, thiserror::Error)]
pub enum HuggingFaceError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),

    /// A JSON file does not parse.
    #[error("{path}: not valid JSON: {source}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },

    /// A file parses but says something impossible, or its bytes do not add up.
    #[error("{path}: {problem}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found and expected, and the fix.
        problem: String,
    },

    /// A file holds something that is well formed but that cannot be used here.
    #[error("{path}: {problem}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is, what can be used, and the fix.
        problem: String,
    },

    /// A folder lacks a file that is needed.
    #[error("{folder}: {problem}", folder = folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// What is missing and where to get it.
        problem: String,
    },

    /// The text given as a model is neither an existing path nor a hub id.
    #[error("model {text:?}: {problem}")]
    Location {
        /// What was given.
        text: String,
        /// Why it cannot be used, and what can.
        problem: String,
    },

    /// The hub refused, cannot be reached, or sent something else than it announced.
    #[error("{id} on the Hugging Face hub: {problem}")]
    Hub {
        /// The repository, with its revision if one was given.
        id: String,
        /// What happened and what to do.
        problem: String,
    },

    /// The hub does not let this user write, or may not be asked.
    #[error("{id} on the Hugging Face hub: {problem}")]
    HubRefuses {
        /// The repository.
        id: String,
        /// What the hub said, and what to do.
        problem: String,
    },

    /// A data set of the hub has not what was asked for.
    #[error("{id} on the Hugging Face hub: {problem}")]
    DataSet {
        /// The data set.
        id: String,
        /// What is there and what is not, and what to do.
        problem: String,
    },

    /// A tensor was asked for that the source does not have.
    #[error("{place}: there is no tensor {tensor:?}")]
    UnknownTensor {
        /// Where it was looked for.
        place: String,
        /// Its name.
        tensor: String,
    },

    /// A range of elements passes the end of its tensor.
    #[error("{place}: elements {start}..{end} of tensor {tensor:?} were asked for, which has {elements}")]
    Range {
        /// Where the tensor lies.
        place: String,
        /// Its name.
        tensor: String,
        /// First element of the range.
        start: usize,
        /// One past the last element of the range.
        end: usize,
        /// How many elements there are.
        elements: usize,
    },

    /// The tensors of a source are not those of the model.
    #[error(transparent)]
    Tensors(#[from] TensorMismatch),

    /// The values or ranges given to an export cannot be written.
    #[error("export to {folder}: {problem}", folder = folder.display())]
    Export {
        /// The folder being written.
        folder: PathBuf,
        /// What was wrong.
        problem: String,
    },
}

impl HuggingFaceError {
    pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), problem: problem.into() }
    }

    pub(super) fn unsupported(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), problem: problem.into() }
    }

    pub(super) fn missing(folder: &Path, problem: impl Into<String>) -> Self {
        Self::Missing { folder: folder.to_owned(), problem: problem.into() }
    }
}
