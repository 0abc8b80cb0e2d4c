//! What takes the place of a table in a build that reads none.

use std::path::Path;

use crate::error::DataError;
use crate::source::DataFile;

/// There is none.
pub(crate) enum Table {}

impl Table {
    pub(crate) fn open(name: &str, _: &Path, _: u64, _: Option<&[&str]>) -> Result<Self, DataError> {
        Err(DataError::NotBuilt { path: name.into(), feature: "delta" })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        match *self {}
    }

    pub(crate) fn data_files(&self) -> Result<Vec<DataFile>, DataError> {
        match *self {}
    }

    pub(crate) fn identity(&self) -> &str {
        match *self {}
    }
}
