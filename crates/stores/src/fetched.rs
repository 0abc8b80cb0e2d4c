//! Files brought to this machine, in a cache that several processes may fill side by side.
//!
//! Below the cache there is a folder for each url. In it every content lies once, under a name made of its path and the
//! store's word for it, and each version of the whole is a folder of links: so what has not changed is not fetched again,
//! and an older version stays as it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tessera_files::{Digest, FileError, FolderLock, IoContext, Sha256, replace_symlink, sha256_hex};

use crate::error::{Problem, StoreError};
use crate::place::{Object, Place};

/// Characters of a digest in the name of a folder.
const SHORT: usize = 16;

/// Files of a place as they were at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder in which they have their own names.
    pub folder: PathBuf,
    /// Their paths, in the order in which they were asked for.
    pub files: Vec<PathBuf>,
    /// What tells them from other ones at the same place: for one file the store's word for it, else a digest of all.
    pub version: String,
}

impl Place {
    /// Brings `objects`, as a listing of this place tells of them, into the cache folder. `progress` is told a file's name
    /// and the bytes of it that are there.
    ///
    /// # Errors
    /// When one of them cannot be had whole, or the cache cannot be written.
    pub fn fetch(
        &self,
        objects: &[Object],
        cache: &Path,
        progress: &dyn Fn(&Object, u64),
    ) -> Result<Snapshot, StoreError> {
        let folder = cache.join("stores").join(digest(&self.to_string()));
        if objects.iter().any(|object| object.etag.is_none() && object.modified == 0) {
            return Err(self.error(Problem::Unversioned));
        }
        // By the names too: a file that was renamed must not lie beside its earlier self.
        let listing = listing(objects);
        let snapshot = folder.join("snapshots").join(&listing);
        let (blobs, at) = (folder.join("blobs"), |error: FileError| self.error(error));
        fs::create_dir_all(&blobs).context("create", &blobs).map_err(at)?;
        // One process fetches; the others find it there.
        let _lock = wait_for_lock(&folder).map_err(at)?;
        let mut files = Vec::new();
        for object in objects {
            let name = digest(&format!("{} {} {}", object.name, object.identity(), object.size));
            let blob = blobs.join(&name);
            // What has its name is whole: it is given last.
            if !blob.is_file() {
                self.join(&object.name).download(object, &blob, &mut |done| progress(object, done))?;
            }
            let path = snapshot.join(&object.name);
            if !path.is_file() {
                link(&object.name, &name, &path).map_err(at)?;
            }
            files.push(path);
        }
        let version = match objects {
            [only] => only.identity(),
            _ => listing,
        };
        Ok(Snapshot { folder: snapshot, files, version })
    }
}

/// Links a file's own name to its content, as many folders up as the name lies below the url's.
fn link(name: &str, blob: &str, path: &Path) -> Result<(), FileError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).context("create", folder)?;
    let up = "../".repeat(2 + name.matches('/').count());
    replace_symlink(&Path::new(&up).join("blobs").join(blob), path)
}

/// A digest of what tells the files from others.
fn listing(objects: &[Object]) -> String {
    let line = |object: &Object| format!("{:?} {} {}\n", object.name, object.identity(), object.size);
    digest(&objects.iter().map(line).collect::<String>())
}

fn digest(text: &str) -> String {
    let mut digest = sha256_hex(Sha256::new_with_prefix(text));
    digest.truncate(SHORT);
    digest
}

fn wait_for_lock(folder: &Path) -> Result<FolderLock, FileError> {
    loop {
        if let Some(lock) = FolderLock::try_take(folder)? {
            return Ok(lock);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
