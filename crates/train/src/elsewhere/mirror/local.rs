//! The run's files on this machine, as the copy needs them. They are written and removed meanwhile.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use tessera_files::{Digest, FileError, IoContext, Sha256, sha256_hex};

use super::remote::METADATA;

/// What tells a file from one that has taken its place, or has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub size: u64,
    pub modified: SystemTime,
    inode: u64,
}

impl Stamp {
    /// That of the file at a path, if there is one.
    pub(super) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).and_then(|found| Self::read(&found)).ok()
    }

    fn read(found: &Metadata) -> io::Result<Self> {
        Ok(Self { size: found.len(), modified: found.modified()?, inode: found.ino() })
    }
}

/// A file and its size.
pub(super) type Opened = (File, u64);

pub(super) fn open(path: &Path) -> Result<Opened, FileError> {
    let file = File::open(path).context("open", path)?;
    let size = file.metadata().context("read", path)?.len();
    Ok((file, size))
}

/// A checkpoint all of whose files are open: retention, which removes them meanwhile, then takes nothing away.
pub(super) struct OpenCheckpoint {
    /// All but `.metadata`, by name.
    pub shards: Vec<(String, Opened)>,
    pub metadata: Vec<u8>,
    /// That of `.metadata`.
    pub stamp: Stamp,
}

impl OpenCheckpoint {
    /// `None`: it was removed meanwhile.
    pub(super) fn open(folder: &Path) -> Result<Option<Self>, FileError> {
        match Self::open_all(folder) {
            Err(_) if !folder.is_dir() => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn open_all(folder: &Path) -> Result<Self, FileError> {
        let path = folder.join(METADATA);
        let (mut file, _) = open(&path)?;
        let stamp = file.metadata().and_then(|found| Stamp::read(&found)).context("read", &path)?;
        let mut metadata = Vec::new();
        file.read_to_end(&mut metadata).context("read", &path)?;
        let shards = entries(folder, Path::is_file)?.into_iter();
        let shards = shards.map(|name| Ok((name.clone(), open(&folder.join(name))?)));
        Ok(Self { shards: shards.collect::<Result<_, FileError>>()?, metadata, stamp })
    }
}

/// What tells one save from another: the digest of its `.metadata`, which has the save's number.
pub(super) fn identity(metadata: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(metadata);
    sha256_hex(hash)
}

/// The names of what lies in a folder and is `wanted`, but for what is hidden; none where there is no folder.
pub(super) fn entries(folder: &Path, wanted: fn(&Path) -> bool) -> Result<Vec<String>, FileError> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("list", folder)? {
        let entry = entry.context("list", folder)?;
        // A name that is not UTF-8 is not one of ours.
        let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'));
        names.extend(name.filter(|_| wanted(&entry.path())));
    }
    names.sort();
    Ok(names)
}
