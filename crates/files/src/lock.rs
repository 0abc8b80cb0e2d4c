//! A lock on a folder, held by the operating system: it is freed when its holder ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use crate::error::{FileError, IoContext};

/// Holds `<folder>/.lock` until dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock without waiting. `Ok(None)`: another process holds it.
    pub fn try_take(folder: &Path) -> Result<Option<Self>, FileError> {
        let path = folder.join(".lock");
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).context("open", &path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(FileError { action: "lock", path, source }),
        }
    }

    /// Whether a process holds the lock of `folder`. It is only asked for: nothing is created.
    pub fn is_held(folder: &Path) -> Result<bool, FileError> {
        let path = folder.join(".lock");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).context("open", &path),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(FileError { action: "lock", path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!FolderLock::is_held(folder.path()).unwrap());
        let first = FolderLock::try_take(folder.path()).unwrap();
        assert!(first.is_some());
        assert!(FolderLock::is_held(folder.path()).unwrap());
        assert!(FolderLock::try_take(folder.path()).unwrap().is_none());
        drop(first);
        assert!(!FolderLock::is_held(folder.path()).unwrap());
        assert!(FolderLock::try_take(folder.path()).unwrap().is_some());
    }
}
