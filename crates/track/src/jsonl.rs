//! JSON Lines files that only grow: one object a line, each line handed to the operating system in one write.
//!
//! What `write` has accepted survives SIGKILL, so no line but the one being written can be lost; a half line is
//! cut when the file is opened again. A cut is a single truncation: it has happened or it has not, and it needs
//! no free space on the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tessera_files::{FileError, IoContext};

use crate::error::TrackError;

/// How much is read at once when a file is searched from its end.
const TAIL_BYTES: u64 = 1 << 16;

/// What a line of a file is parsed into, and how the file's lines are named in errors.
pub(crate) trait Line: DeserializeOwned {
    /// A line of this kind in words: `one event: {"type": …}`.
    const EXPECTED: &'static str;
}

/// How far the checkpoint that is resumed had come, as far as lines are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// Batches done.
    pub batch: u64,
    /// Whether lines of the moment after that batch, an evaluation or answers, are kept: not so where they are still owed.
    pub keep_moment: bool,
}

impl ResumePoint {
    /// After `batch` batches, with everything that was due then done.
    pub fn after(batch: u64) -> Self {
        Self { batch, keep_moment: true }
    }

    /// Whether a line of the moment after `batch` batches is kept.
    pub(crate) fn keeps(self, batch: u64) -> bool {
        batch < self.batch || (batch == self.batch && self.keep_moment)
    }
}

/// A JSON Lines file opened for appending.
#[derive(Debug)]
pub(crate) struct LineFile {
    file: File,
    path: PathBuf,
    length: u64,
}

impl LineFile {
    /// Opens or creates `path` and cuts the half line a crash may have left at its end.
    pub(crate) fn open(path: PathBuf) -> Result<Self, FileError> {
        let file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).context("open", &path)?;
        let length = file.metadata().context("open", &path)?.len();
        let whole = end_of_last_line(&file, length).context("read", &path)?;
        let mut lines = Self { file, path, length };
        lines.truncate(whole)?;
        Ok(lines)
    }

    /// Opens or creates `path` and empties it, whatever was in it.
    pub(crate) fn open_empty(path: PathBuf) -> Result<Self, FileError> {
        let file = OpenOptions::new().append(true).create(true).open(&path).context("open", &path)?;
        file.set_len(0).context("empty", &path)?;
        Ok(Self { file, path, length: 0 })
    }

    /// Opens `path` as [`LineFile::open`] does and cuts it before the first line that `keep` refuses. Lines are
    /// written in the order of the batches, so what follows such a line is of a later time as well.
    pub(crate) fn open_while<T: Line>(path: PathBuf, keep: impl Fn(&T) -> bool) -> Result<Self, TrackError> {
        let mut lines = Self::open(path)?;
        let mut reader = read_lines::<T>(&lines.path)?;
        loop {
            let start = reader.offset;
            match reader.next().transpose()? {
                None => return Ok(lines),
                Some(line) if keep(&line) => {}
                Some(_) => {
                    lines.truncate(start)?;
                    return Ok(lines);
                }
            }
        }
    }

    /// Appends one line for each of `items`, all in one write. If the write fails, as on a full disk, the file
    /// is cut back to where it was, so that a later append does not continue a half line.
    pub(crate) fn append(&mut self, items: &[impl Serialize]) -> Result<(), FileError> {
        let mut bytes = Vec::new();
        for item in items {
            serde_json::to_writer(&mut bytes, item)
                .map_err(io::Error::from)
                .context("encode a line for", &self.path)?;
            bytes.push(b'\n');
        }
        match self.file.write_all(&bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // The write's own error is the one to report; a half line left here is cut on the next open.
                let _ = self.file.set_len(self.length);
                Err(error).context("append to", &self.path)
            }
        }
    }

    /// Waits until every appended line would survive a power cut.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().context("sync", &self.path)
    }

    fn truncate(&mut self, length: u64) -> Result<(), FileError> {
        if length < self.length {
            self.file.set_len(length).context("cut", &self.path)?;
            self.length = length;
            self.sync()?;
        }
        Ok(())
    }
}

/// The offset just past the last line feed, 0 if there is none.
fn end_of_last_line(file: &File, length: u64) -> io::Result<u64> {
    let mut end = length;
    let mut piece = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(TAIL_BYTES);
        piece.resize((end - start) as usize, 0);
        file.read_exact_at(&mut piece, start)?;
        if let Some(at) = piece.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// The whole lines of a JSON Lines file, in order. A missing file has no lines; a half line at the end, being
/// written or left by a crash, is not seen.
pub(crate) fn read_lines<T: Line>(path: &Path) -> Result<Lines<T>, TrackError> {
    let reader = match File::open(path) {
        Ok(file) => Some(BufReader::with_capacity(1 << 20, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).context("open", path)?,
    };
    Ok(Lines { reader, path: path.to_owned(), number: 0, offset: 0, bytes: Vec::new(), kind: PhantomData })
}

/// Iterator over the lines of a file; see [`read_lines`].
pub(crate) struct Lines<T> {
    reader: Option<BufReader<File>>,
    path: PathBuf,
    number: usize,
    /// Where the next line starts.
    offset: u64,
    bytes: Vec<u8>,
    kind: PhantomData<T>,
}

impl<T: Line> Iterator for Lines<T> {
    type Item = Result<T, TrackError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        self.bytes.clear();
        if let Err(error) = reader.read_until(b'\n', &mut self.bytes).context("read", &self.path) {
            // An iterator that failed ends, so that a caller who skips errors cannot spin on this one.
            self.reader = None;
            return Some(Err(error.into()));
        }
        if self.bytes.last() != Some(&b'\n') {
            self.reader = None;
            return None;
        }
        self.number += 1;
        self.offset += self.bytes.len() as u64;
        Some(serde_json::from_slice(&self.bytes).map_err(|error| TrackError::BadLine {
            path: self.path.clone(),
            line: self.number,
            expected: T::EXPECTED,
            reason: error.to_string(),
        }))
    }
}

/// The last line for which `wanted` gives a value, searched from the file's end, so that a long file costs no
/// more than a short one. Lines that do not parse are passed over.
pub(crate) fn find_last<T: Line, V>(
    path: &Path,
    wanted: impl Fn(&T) -> Option<V>,
) -> Result<Option<V>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("open", path),
    };
    let length = file.metadata().context("open", path)?.len();
    let mut window = TAIL_BYTES;
    loop {
        let start = length.saturating_sub(window);
        let mut bytes = Vec::new();
        (&file).seek(SeekFrom::Start(start)).context("read", path)?;
        Read::take(&file, length - start).read_to_end(&mut bytes).context("read", path)?;
        // A window that starts within the file most likely starts within a line.
        let cut =
            if start > 0 { bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len()) } else { 0 };
        let parsed = |line: &[u8]| serde_json::from_slice(line).ok().and_then(|line| wanted(&line));
        if let Some(value) = bytes.split_off(cut).rsplit(|&byte| byte == b'\n').find_map(parsed) {
            return Ok(Some(value));
        }
        if start == 0 {
            return Ok(None);
        }
        window = window.saturating_mul(8);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    impl Line for u64 {
        const EXPECTED: &'static str = "one number";
    }

    fn numbers(path: &Path) -> Vec<u64> {
        read_lines::<u64>(path).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_half_line_is_cut_on_open_and_unseen_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.jsonl");
        fs::write(&path, "1\n2\n3").unwrap();
        assert_eq!(numbers(&path), [1, 2]);
        LineFile::open(path.clone()).unwrap().append(&[4]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n4\n");
    }

    #[test]
    fn a_half_line_longer_than_the_search_window_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.jsonl");
        let half = "9".repeat(3 * TAIL_BYTES as usize);
        fs::write(&path, format!("1\n{half}")).unwrap();
        LineFile::open(path.clone()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        fs::write(&path, half).unwrap();
        LineFile::open(path.clone()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn lines_are_cut_before_the_first_that_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.jsonl");
        fs::write(&path, "1\n2\n3\n4\n5").unwrap();
        let mut lines = LineFile::open_while(path.clone(), |&number: &u64| number < 3).unwrap();
        lines.append(&[7, 8]).unwrap();
        assert_eq!(numbers(&path), [1, 2, 7, 8]);
    }

    #[test]
    fn a_broken_whole_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.jsonl");
        fs::write(&path, "1\ntwo\n3\n").unwrap();
        let error = LineFile::open_while(path.clone(), |_: &u64| true).unwrap_err().to_string();
        assert!(error.contains("n.jsonl, line 2: ") && error.contains("expected one number"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\ntwo\n3\n");
    }

    #[test]
    fn the_last_wanted_line_is_found_however_far_from_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.jsonl");
        let lines: String = (0..200_000).map(|number| format!("{number}\n")).collect();
        fs::write(&path, lines).unwrap();
        let last = |limit: u64| find_last(&path, |&number: &u64| (number < limit).then_some(number)).unwrap();
        assert_eq!(last(u64::MAX), Some(199_999));
        assert_eq!(last(4), Some(3));
        assert_eq!(last(0), None);
    }
}
