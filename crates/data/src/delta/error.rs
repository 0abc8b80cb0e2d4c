//! What can keep a Delta table from being read, and what helps.

use crate::error::DataError;

/// What is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableProblem {
    /// Nothing there is a table.
    #[error(
        "no Delta table is there: that is a folder with a _delta_log in it; check the path, or name files without `delta:`"
    )]
    NoTable,
    /// The log does not reach to a version, or no longer.
    #[error(
        "version {wanted} cannot be read: those from {oldest} to {newest} can; name one of them behind an `@`, or none for \
         the newest; a run that began with {wanted} cannot go on"
    )]
    NoVersion {
        /// The version that was asked for.
        wanted: u64,
        /// The first that the log can tell of.
        oldest: u64,
        /// The last.
        newest: u64,
    },
    /// A part of the log is not there.
    #[error(
        "its log lacks version {missing}, without which version {wanted} is not known; restore that file in \
         _delta_log, or a checkpoint that sums it up"
    )]
    Gap {
        /// The version to be read.
        wanted: u64,
        /// That of the missing file.
        missing: u64,
    },
    /// Files of an older version have been removed.
    #[error(
        "version {wanted} cannot be read any more: {file}, which is part of it, has been removed, as VACUUM does; the newest version \
         is {newest}. Restore the file, or read that version: in a new run (another run_name), if this one began with {wanted}"
    )]
    Vacuumed {
        /// The version to be read.
        wanted: u64,
        /// One of the files.
        file: String,
        /// The newest version.
        newest: u64,
    },
    /// A file of the newest version is not there.
    #[error(
        "{file}, which is part of its version {version}, is not there; restore the file, or the table to an earlier version"
    )]
    FileMissing {
        /// The version.
        version: u64,
        /// The file.
        file: String,
    },
    /// A file is not the one that the log means.
    #[error(
        "{file} has {found} bytes, but {expected} by the log; the file is damaged or another, restore it"
    )]
    FileSize {
        /// The file.
        file: String,
        /// Its size.
        found: u64,
        /// What the log says.
        expected: u64,
    },
    /// Files lie elsewhere.
    #[error(
        "{file}, which is part of it, lies outside of the table's folder, as those of a shallow clone do, which is not read; \
         make a deep clone, or name the table that was cloned"
    )]
    Outside {
        /// The file.
        file: String,
    },
    /// The table needs what is not known.
    #[error(
        "it needs what is not known here: {0}. Copy it into a table without that (CREATE TABLE … AS SELECT), or drop the feature \
         (ALTER TABLE … DROP FEATURE)"
    )]
    Unsupported(String),
    /// None of the columns that are read is there.
    #[error("none of the columns that are read, {wanted}, is there; it has {found}: name them in `columns`")]
    NoColumns {
        /// The columns that are read.
        wanted: String,
        /// Those of the table.
        found: String,
    },
    /// The log does not say what a log says.
    #[error("its version {version} cannot be understood: {said}; the log is damaged, restore it")]
    Log {
        /// The version.
        version: u64,
        /// What its reader says.
        said: String,
    },
}

impl TableProblem {
    /// A file of a version that is not there.
    pub fn missing(version: u64, newest: u64, file: String) -> Self {
        match newest > version {
            true => Self::Vacuumed { wanted: version, file, newest },
            false => Self::FileMissing { version, file },
        }
    }

    /// This problem as that of the table `name`.
    pub fn of(self, name: &str) -> DataError {
        DataError::Table { name: name.to_owned(), problem: self }
    }
}
