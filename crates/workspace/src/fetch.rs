//! Files of a volume, brought to a folder of this machine.
//!
//! Each state of what is asked for has a folder of its own, named by a digest of the files' names, sizes and times, so a run that
//! goes on finds what it began with however the volume has changed. A file comes under a hidden name, is gone on with where it
//! stopped, and gets its own name when all of it is there; a list of what should be there is written last.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::RANGE;
use tessera_files::{
    Digest, FileError, FolderLock, IoContext, Sha256, sha256_hex, sync_folder, write_atomic,
};

use crate::address::Workspace;
use crate::client::{Client, Failure};
use crate::error::WorkspaceError;
use crate::listing::{Listing, RemoteFile};
use crate::path::VolumePath;

/// The list of files of a folder that has them all.
const COMPLETE: &str = ".complete";
/// Characters of a version.
const VERSION: usize = 32;
/// How long is waited before it is looked again whether another process has done with the folder.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// What is to be brought here.
pub struct Request<'run> {
    /// The file or folder.
    pub path: &'run VolumePath,
    /// The folder that states of volumes are kept in.
    pub cache: &'run Path,
    /// Which of the names below a folder are wanted.
    pub choose: &'run dyn Fn(Vec<String>) -> Vec<String>,
    /// The version to be had, and no other.
    pub version: Option<&'run str>,
    /// Told of a file's name, the bytes of it that are here, and all of them.
    pub progress: &'run dyn Fn(&str, u64, u64),
}

/// Files that are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedVolume {
    /// The folder that names are told from.
    pub folder: PathBuf,
    /// What was asked for: the folder itself, or the file in it.
    pub path: PathBuf,
    /// What names this state of the volume.
    pub version: String,
}

/// What an earlier call brought into `cache` of this version; `None`: nothing, or not all.
pub fn cached(path: &VolumePath, cache: &Path, version: &str) -> Option<FetchedVolume> {
    // A version comes from a file that anyone may have edited.
    let is_version = version.len() == VERSION && version.bytes().all(|byte| byte.is_ascii_hexdigit());
    let folder = cache.join(version);
    if !is_version {
        return None;
    }
    let files: Vec<RemoteFile> = serde_json::from_slice(&fs::read(folder.join(COMPLETE)).ok()?).ok()?;
    let is_whole = |file: &RemoteFile| {
        fs::metadata(folder.join(&file.name)).is_ok_and(|found| found.is_file() && found.len() == file.size)
    };
    files.iter().all(is_whole).then(|| found(path, folder.clone(), version, &files))
}

fn found(path: &VolumePath, folder: PathBuf, version: &str, files: &[RemoteFile]) -> FetchedVolume {
    // A folder with a single file of its own name is not told from that file, and means the same.
    let path = match files {
        [file] if file.name == path.name() => folder.join(&file.name),
        _ => folder.clone(),
    };
    FetchedVolume { folder, path, version: version.to_owned() }
}

impl Workspace {
    /// Brings the wanted files of a volume here, as far as they are not.
    ///
    /// # Errors
    /// If the workspace refuses or cannot be reached, there is nothing that is wanted, or not in the version that is.
    pub fn fetch(&self, request: &Request<'_>) -> Result<FetchedVolume, WorkspaceError> {
        let Request { path, cache, choose, version: expected, .. } = *request;
        let client = Client::new(self.clone())?;
        let listed = || -> Result<_, WorkspaceError> {
            let Listing { is_file, mut files } = client.listing(path)?;
            if !is_file {
                let names: HashSet<_> =
                    choose(files.iter().map(|file| file.name.clone()).collect()).into_iter().collect();
                files.retain(|file| names.contains(&file.name));
            }
            Ok((is_file, files))
        };
        let (is_file, files) = listed()?;
        let (place, shown) = (self.place(), path.to_string());
        if files.is_empty() {
            return Err(WorkspaceError::NothingWanted { place, path: shown });
        }
        let version = self.version(path, &files);
        if let Some(expected) = expected.filter(|&expected| expected != version) {
            return Err(WorkspaceError::Changed { place, path: shown, expected: expected.to_owned() });
        }
        if let Some(fetched) = cached(path, cache, &version) {
            return Ok(fetched);
        }
        let folder = cache.join(&version);
        fs::create_dir_all(&folder).context("create", &folder)?;
        let _lock = lock(&folder)?;
        for file in &files {
            let place =
                if is_file { path.as_str().to_owned() } else { format!("{}/{}", path.as_str(), file.name) };
            client.bring(place, file, &folder.join(&file.name), request.progress)?;
        }
        if listed()?.1 != files {
            return Err(WorkspaceError::Unsteady { place, path: shown });
        }
        let list = serde_json::to_vec(&files).map_err(|error| WorkspaceError::Start(error.into()))?;
        write_atomic(&folder.join(COMPLETE), &list)?;
        Ok(found(path, folder, &version, &files))
    }

    fn version(&self, path: &VolumePath, files: &[RemoteFile]) -> String {
        let mut hasher = Sha256::new();
        hasher.update(format!("{} {}", self.place(), path.as_str()));
        for RemoteFile { name, size, state } in files {
            hasher.update(format!("\n{name:?} {size} {state}"));
        }
        let mut version = sha256_hex(hasher);
        version.truncate(VERSION);
        version
    }
}

/// Waits until no other process works in the folder. The operating system frees a lock when its holder ends.
fn lock(folder: &Path) -> Result<FolderLock, WorkspaceError> {
    loop {
        if let Some(lock) = FolderLock::try_take(folder)? {
            return Ok(lock);
        }
        std::thread::sleep(LOCK_INTERVAL);
    }
}

/// A file on its way.
struct Transfer<'run> {
    client: &'run Client,
    /// Its path on the workspace.
    path: String,
    file: &'run RemoteFile,
    /// What is there of it, and where.
    part: File,
    partial: PathBuf,
    /// The most bytes that were there at once: what comes again and again is no progress.
    most: u64,
    progress: &'run dyn Fn(&str, u64, u64),
}

impl Client {
    /// Brings the file at `path` of the workspace to `target`, unless it is there.
    fn bring(
        &self,
        path: String,
        file: &RemoteFile,
        target: &Path,
        progress: &dyn Fn(&str, u64, u64),
    ) -> Result<(), WorkspaceError> {
        if fs::metadata(target).is_ok_and(|found| found.len() == file.size) {
            return Ok(());
        }
        let parent = target.parent().unwrap_or(target);
        fs::create_dir_all(parent).context("create", parent)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let partial = parent.join(format!(".{name}.part"));
        let part = OpenOptions::new().create(true).append(true).open(&partial).context("open", &partial)?;
        let mut transfer =
            Transfer { client: self, path: path.clone(), file, part, partial, most: 0, progress };
        self.patiently(&path, async |came_on| transfer.go_on(came_on).await)?;
        let Transfer { part, partial, .. } = transfer;
        part.sync_all().context("sync", &partial)?;
        fs::rename(&partial, target).context("rename", &partial)?;
        Ok(sync_folder(parent)?)
    }
}

impl Transfer<'_> {
    /// Reads what is not there yet; `came_on`: some of it came.
    async fn go_on(&mut self, came_on: &mut bool) -> Result<(), Failure> {
        let mut written = self.part.metadata().context("read", &self.partial).map_err(lasting)?.len();
        if written == self.file.size && written > 0 {
            return Ok(());
        }
        let mut request = self.client.get(&self.client.workspace.url("files", &self.path));
        if written > 0 {
            request = request.header(RANGE, format!("bytes={written}-"));
        }
        let mut answer = self.client.send(&self.path, request).await?;
        // Not the part that was asked for, but the whole, or a refusal.
        if written > 0 && answer.status() != StatusCode::PARTIAL_CONTENT {
            self.part.set_len(0).context("cut", &self.partial).map_err(lasting)?;
            written = 0;
        }
        while answer.status() != StatusCode::RANGE_NOT_SATISFIABLE
            && let Some(piece) = answer.chunk().await.map_err(|error| self.client.broken(&error))?
        {
            self.part.write_all(&piece).context("write", &self.partial).map_err(lasting)?;
            written += piece.len() as u64;
            *came_on |= written > self.most;
            self.most = self.most.max(written);
            (self.progress)(&self.file.name, written, self.file.size);
        }
        match written.cmp(&self.file.size) {
            Ordering::Equal => Ok(()),
            Ordering::Less => {
                let reason = format!("it sent {written} bytes of {}", self.file.size);
                Err(Failure::Passing { reason, after: None })
            }
            Ordering::Greater => {
                self.part.set_len(0).context("cut", &self.partial).map_err(lasting)?;
                let (place, path) = (self.client.workspace.place(), self.path.clone());
                Err(Failure::Lasting(WorkspaceError::Unsteady { place, path }))
            }
        }
    }
}

fn lasting(error: FileError) -> Failure {
    Failure::Lasting(error.into())
}
