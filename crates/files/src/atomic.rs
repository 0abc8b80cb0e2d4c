//! Files, folders and links that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{FileError, IoContext};

/// What a thing is called while it is written.
const PARTIAL: &str = ".partial";

/// The hidden sibling of a path: a dot, its name, and what it is.
fn hidden_sibling(path: &Path, what: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(what);
    path.with_file_name(name)
}

/// The folder a path lies in; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the entries of a folder (creations, renames) survive a power cut.
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder).and_then(|handle| handle.sync_all()).context("sync", folder)
}

/// Writes `bytes` as the whole content of `path`, replacing what was there in one step.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).context("write", path)?;
    file.finish()
}

/// A file being written that gets its name only in [`AtomicFile::finish`]; dropped earlier, it leaves nothing.
#[derive(Debug)]
pub struct AtomicFile {
    writer: Option<BufWriter<File>>,
    partial: PathBuf,
    path: PathBuf,
}

impl AtomicFile {
    /// Starts writing what is to become `path`. The folder must exist.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let partial = hidden_sibling(path, PARTIAL);
        let file = File::create(&partial).context("create", &partial)?;
        Ok(Self { writer: Some(BufWriter::with_capacity(1 << 20, file)), partial, path: path.to_owned() })
    }

    /// Flushes, syncs, and gives the file its name.
    pub fn finish(mut self) -> Result<(), FileError> {
        if let Some(writer) = self.writer.take() {
            let file =
                writer.into_inner().map_err(io::IntoInnerError::into_error).context("write", &self.path)?;
            file.sync_all().context("sync", &self.path)?;
        }
        fs::rename(&self.partial, &self.path).context("rename to", &self.path)?;
        sync_folder(parent(&self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.writer {
            Some(writer) => writer.write(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After `finish` the partial name is gone and the removal finds nothing: both outcomes are right.
        self.writer = None;
        let _ = fs::remove_file(&self.partial);
    }
}

/// A folder being filled that gets its name only in [`AtomicFolder::finish`]; dropped earlier, it leaves nothing.
#[derive(Debug)]
pub struct AtomicFolder {
    partial: PathBuf,
    path: PathBuf,
}

impl AtomicFolder {
    /// Starts filling what is to become `path`, removing what an interrupted attempt left behind.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let partial = Self::partial(path);
        if partial.exists() {
            fs::remove_dir_all(&partial).context("remove", &partial)?;
        }
        fs::create_dir_all(&partial).context("create", &partial)?;
        Ok(Self { partial, path: path.to_owned() })
    }

    /// Where the contents of what is to become `path` are written, for those who help to fill it.
    pub fn partial(path: &Path) -> PathBuf {
        hidden_sibling(path, PARTIAL)
    }

    /// Where the contents are to be written.
    pub fn folder(&self) -> &Path {
        &self.partial
    }

    /// Syncs every file directly inside and the folder itself, then gives it its name. A folder that already
    /// bears the name is moved aside first and removed afterwards, so that a whole one is there at any moment but one
    /// rename long, and even then nothing is lost.
    pub fn finish(self) -> Result<(), FileError> {
        for entry in fs::read_dir(&self.partial).context("list", &self.partial)? {
            let path = entry.context("list", &self.partial)?.path();
            File::open(&path).and_then(|file| file.sync_all()).context("sync", &path)?;
        }
        sync_folder(&self.partial)?;
        let replaced = hidden_sibling(&self.path, ".replaced");
        if self.path.exists() {
            fs::rename(&self.path, &replaced).context("rename", &self.path)?;
        }
        if let Err(error) = fs::rename(&self.partial, &self.path) {
            if replaced.exists() {
                fs::rename(&replaced, &self.path).context("rename back to", &self.path)?;
            }
            return Err(error).context("rename to", &self.path);
        }
        sync_folder(parent(&self.path))?;
        // From here on the new one is there. An old one that cannot be removed is a leftover, not a failure.
        let _ = fs::remove_dir_all(&replaced);
        Ok(())
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        // After `finish` the partial name is gone and the removal finds nothing.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

/// Points the symbolic link `link` at `target`, replacing an older link in one step.
pub fn replace_symlink(target: &Path, link: &Path) -> Result<(), FileError> {
    let partial = hidden_sibling(link, PARTIAL);
    let _ = fs::remove_file(&partial);
    std::os::unix::fs::symlink(target, &partial).context("link", &partial)?;
    fs::rename(&partial, link).context("rename to", link)?;
    sync_folder(parent(link))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_unfinished_file_leaves_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_appears_only_when_finished() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ep0-ba1");
        let folder = AtomicFolder::create(&path).unwrap();
        fs::write(folder.folder().join("x"), b"1").unwrap();
        assert!(!path.exists());
        folder.finish().unwrap();
        assert_eq!(fs::read(path.join("x")).unwrap(), b"1");
        AtomicFolder::create(&path).unwrap().finish().unwrap();
        assert!(!path.join("x").exists(), "the old folder is replaced");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("latest");
        replace_symlink(Path::new("a"), &link).unwrap();
        replace_symlink(Path::new("b"), &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("b"));
    }
}
