//! What can go wrong while a run is recorded or read back.

use std::path::PathBuf;

use tessera_files::FileError;

/// An event, a metric, a generation or a report could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),

    /// A whole line of a JSON Lines file is not what this crate writes there.
    #[error(
        "{path}, line {line}: {reason}; expected {expected}; remove the line or restore the file",
        path = path.display()
    )]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What a line of this file holds.
        expected: &'static str,
        /// What the parser found.
        reason: String,
    },

    /// A training record was not that of the batch whose turn it is: each batch has exactly one line.
    #[error("metrics.jsonl: the next line belongs to batch {expected}, found a record of batch {found}")]
    BatchOrder {
        /// The batch that has no line yet.
        expected: u64,
        /// The batch of the refused record.
        found: u64,
    },

    /// A field of an event would break the rule that a line is one flat object.
    #[error(
        "event field {name:?}: {reason}; expected another name than type, time, message, and a value that is neither list nor map"
    )]
    EventField {
        /// The field's name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A folder is not that of a run.
    #[error("{folder} holds no events.jsonl; expected a run folder, <save_folder>/<run_name>", folder = folder.display())]
    NotARun {
        /// The folder.
        folder: PathBuf,
    },

    /// A run's `run.yaml` is not what was written there.
    #[error("{path} is no YAML: {reason}; restore it", path = path.display())]
    RunFile {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },

    /// Metrics cannot be offered to Prometheus.
    #[error(
        "metrics_port: cannot listen at port {port}: {source}; expected a port that no other program uses"
    )]
    Port {
        /// The port.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },

    /// The report's template could not be rendered.
    #[error("cannot render report.html: {0:#}")]
    Template(#[from] minijinja::Error),
}

impl TrackError {
    /// Whether the device has no room left: the user can make room and go on.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, Self::File(error) if error.is_storage_full())
    }
}
