//! Memory-mapped files, read only.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::error::{FileError, IoContext};

/// The whole of a file as bytes, mapped into memory.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
    path: PathBuf,
}

impl MappedFile {
    /// Maps `path`. The file must not be shortened while it is mapped: the files mapped here (weights, token
    /// caches, checkpoints) are replaced by rename, never rewritten in place.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).context("open", path)?;
        // SAFETY: the map is read only, and by the contract above no one shortens the file under it.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file) }.context("map", path)?;
        Ok(Self { map, path: path.to_owned() })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
