//! Delta tables: Parquet files, and a log that says which of them make up each version.
//!
//! [`TableAddress`] is a table as run files name it, [`Log`] tells of the log's own files what versions there are and which of
//! them a version needs, so that no others have to be brought from elsewhere, and [`names_of_version`] tells the same of its
//! data. What the log says is understood by the crate `delta_kernel` (the feature `delta`): versions, checkpoints, partition
//! columns, mapped columns, deleted rows; a table that needs more is refused by the name of what it needs.
//!
//! A version never changes, so its rows have a fixed order: that of the paths of its files, and in each that of the file.
//! One path reads all of it: a table is in a folder of this machine, or was brought to one.

mod address;
mod error;
mod log;
#[cfg(not(feature = "delta"))]
mod not_built;
#[cfg(feature = "delta")]
mod rows;
#[cfg(feature = "delta")]
mod table;

use std::fs;
use std::path::Path;

use tessera_files::IoContext;

pub use address::TableAddress;
pub use error::TableProblem;
pub use log::Log;
#[cfg(not(feature = "delta"))]
pub(crate) use not_built::Table;
#[cfg(feature = "delta")]
pub(crate) use rows::Reader as TableReader;
#[cfg(feature = "delta")]
pub(crate) use table::Table;

use crate::error::DataError;

/// The folder of the log within a table's.
pub const LOG_FOLDER: &str = "_delta_log";

/// The folder of the table in whose log a file is, told from the file's name with `/` between its parts; `None`: it is in no log.
pub fn table_of_log(name: &str) -> Option<&str> {
    let at = format!("/{name}").find(&format!("/{LOG_FOLDER}/"))?;
    // In the name itself the slash is one place before.
    Some(&name[..at.saturating_sub(1)])
}

/// The version of the table in a folder of this machine that is to be read: the one that is `wanted`, or the newest.
///
/// # Errors
/// When there is no table, or no such version of it any more. `name` is what messages call the table.
pub fn version_here(name: &str, folder: &Path, wanted: Option<u64>) -> Result<u64, DataError> {
    let log = folder.join(LOG_FOLDER);
    if !log.is_dir() {
        return Err(TableProblem::NoTable.of(name));
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&log).context("list", &log)? {
        let entry = entry.context("list", &log)?.file_name();
        names.push(format!("{LOG_FOLDER}/{}", entry.to_string_lossy()));
    }
    let log = Log::choose(&names, wanted).map_err(|problem| problem.of(name))?;
    Ok(log.version)
}

/// The files that make up a version of the table in a folder, told from there, with `/` between their parts: data, and what says
/// which rows of it are deleted. Only the log has to be there.
///
/// # Errors
/// When the log cannot be understood, or needs what is not known. `name` is what messages call the table.
pub fn names_of_version(name: &str, folder: &Path, version: u64) -> Result<Vec<String>, DataError> {
    Ok(Table::open(name, folder, version, None)?.names())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_logs_tell_of_their_tables() {
        for (name, table) in [
            ("_delta_log/0.json", Some("")),
            ("a/_delta_log/0.json", Some("a")),
            ("é/b/_delta_log/_sidecars/x.parquet", Some("é/b")),
            ("a/_delta_log/b/_delta_log/0.json", Some("a")),
            ("_delta_log_old.jsonl", None),
            ("a/x_delta_log/0.json", None),
            ("a/_delta_log", None),
        ] {
            assert_eq!(table_of_log(name), table, "{name}");
        }
    }
}
