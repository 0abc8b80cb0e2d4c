//! `.txt` files, each a document.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use tessera_files::{FileError, IoContext, MappedFile};

use super::{digest, expected, hex, utf8, without_mark};
use crate::error::{DataError, RowProblem};
use crate::settings::Task;

/// At most so many files are mapped at once.
const FILES_AT_ONCE: usize = 1024;

/// The text files of a data set, in the order of their paths.
pub(crate) struct TextFiles {
    root: PathBuf,
    files: Vec<TextFile>,
}

struct TextFile {
    path: PathBuf,
    size: u64,
}

/// A mapped text file.
pub(crate) struct Document {
    file: MappedFile,
    /// Its place in the order, from 1.
    pub(crate) number: usize,
}

impl Document {
    /// The document's text, or where it stops being text.
    pub(crate) fn text(&self) -> Result<&str, RowProblem> {
        let (bytes, skipped) = without_mark(&self.file);
        utf8(bytes, skipped).map_err(|(place, message)| {
            let before = bytes.get(..place).unwrap_or_default();
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            RowProblem { file: Some(self.file.path().to_owned()), line, message }
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> usize {
        self.file.len()
    }
}

impl TextFiles {
    pub(crate) fn single(path: &Path) -> Result<Self, DataError> {
        Self::new(path, vec![path.to_owned()])
    }

    /// Every `.txt` file in a folder and the folders in it, linked ones included.
    pub(crate) fn open_folder(root: &Path) -> Result<Self, DataError> {
        let mut paths = Vec::new();
        collect(root, &mut HashSet::new(), &mut paths)?;
        paths.sort();
        Self::new(root, paths)
    }

    fn new(root: &Path, paths: Vec<PathBuf>) -> Result<Self, DataError> {
        let with_size = |path: PathBuf| {
            let size = fs::metadata(&path).context("read", &path)?.len();
            Ok(TextFile { path, size })
        };
        let files = paths.into_iter().map(with_size).collect::<Result<Vec<_>, FileError>>()?;
        let text = Self { root: root.to_owned(), files };
        if text.size() == 0 {
            let task = Task::ContinuedPretrain;
            return Err(DataError::Empty { path: root.to_owned(), task, expected: expected(task) });
        }
        Ok(text)
    }

    /// The folder, or the one file.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The documents in order, mapped in groups of about `size` bytes: as many as reach it, at least one.
    pub(crate) fn groups(&self, size: usize) -> impl Iterator<Item = Result<Vec<Document>, FileError>> {
        let mut files = self.files.iter().enumerate();
        std::iter::from_fn(move || {
            let (mut group, mut taken) = (Vec::new(), 0);
            while taken < size as u64 && group.len() < FILES_AT_ONCE {
                let Some((index, file)) = files.next() else { break };
                match MappedFile::open(&file.path) {
                    Ok(mapped) => group.push(Document { file: mapped, number: index + 1 }),
                    Err(error) => return Some(Err(error)),
                }
                taken += file.size;
            }
            (!group.is_empty()).then_some(Ok(group))
        })
    }

    /// A digest of contents and names within the folder.
    pub(crate) fn content_digest(&self) -> Result<String, DataError> {
        let mut listing = String::new();
        for file in &self.files {
            let name = file.path.strip_prefix(&self.root).unwrap_or(&file.path);
            listing.push_str(&format!("{} {:?}\n", digest(&MappedFile::open(&file.path)?), name));
        }
        Ok(hex(listing.as_bytes()))
    }
}

/// Adds the `.txt` files below `folder`. Links to files and folders are followed; one that leads nowhere is an error,
/// since documents would be missing. Links may lead in a circle: a folder that was `seen`, by its canonical path, is
/// not read again. Entries are visited in the order of their names, so that the same one of two ways to a folder is taken
/// each time.
fn collect(folder: &Path, seen: &mut HashSet<PathBuf>, paths: &mut Vec<PathBuf>) -> Result<(), FileError> {
    if !seen.insert(folder.canonicalize().context("resolve", folder)?) {
        return Ok(());
    }
    let entries = fs::read_dir(folder).context("list", folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut entries = entries.collect::<Result<Vec<_>, _>>().context("list", folder)?;
    entries.sort();
    for path in entries {
        let kind = fs::metadata(&path).context("read", &path)?;
        if kind.is_dir() {
            collect(&path, seen, paths)?;
        } else if path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("txt")) && kind.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}
