//! Errors of the file system, each with the path and what was being done.

use std::io;
use std::path::{Path, PathBuf};

/// A file-system call failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}", path = path.display())]
pub struct FileError {
    /// What was attempted, as a verb: `open`, `write`, `rename`.
    pub action: &'static str,
    /// The file or folder it was attempted on.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl FileError {
    /// Whether the device has no room left (or a quota is used up): the user can make room and go on.
    pub fn is_storage_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }
}

/// Adds the action and the path to an [`io::Error`].
pub trait IoContext<T> {
    /// Turns an [`io::Error`] into a [`FileError`] that says `action` failed on `path`.
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { action, path: path.to_owned(), source })
    }
}
