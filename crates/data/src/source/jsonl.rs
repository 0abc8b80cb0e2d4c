//! A `.jsonl` file as numbered lines.

use std::path::{Path, PathBuf};

use tessera_files::MappedFile;

use super::{expected, without_mark};
use crate::error::{DataError, RowProblem};
use crate::settings::Task;

/// A mapped file of lines.
pub(crate) struct JsonLines {
    file: MappedFile,
    path: PathBuf,
}

/// A line that is not blank, its end included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'file> {
    /// From 1, blank lines counted.
    pub(crate) number: usize,
    /// Where it begins in the file.
    pub(crate) offset: usize,
    pub(crate) bytes: &'file [u8],
}

impl Line<'_> {
    /// The line's text without its end.
    pub(crate) fn text(&self) -> Result<&str, String> {
        super::utf8(self.bytes.trim_ascii_end(), self.offset).map_err(|(_, message)| message)
    }

    /// This line as the place of a problem.
    pub(crate) fn problem(&self, message: String) -> RowProblem {
        RowProblem { file: None, line: self.number, message }
    }
}

impl JsonLines {
    pub(crate) fn open(path: &Path, task: Task) -> Result<Self, DataError> {
        let lines = Self { file: MappedFile::open(path)?, path: path.to_owned() };
        if lines.batches(1).next().is_none() {
            return Err(DataError::Empty { path: path.to_owned(), task, expected: expected(task) });
        }
        Ok(lines)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.file
    }

    /// The lines in order, in batches of about `size` bytes: as many lines as reach it, at least one.
    pub(crate) fn batches(&self, size: usize) -> impl Iterator<Item = Vec<Line<'_>>> {
        let (bytes, skipped) = without_mark(&self.file);
        let mut lines = Lines { rest: bytes, number: 0, offset: skipped };
        std::iter::from_fn(move || {
            let (mut batch, mut taken) = (Vec::new(), 0);
            while taken < size {
                let Some(line) = lines.next() else { break };
                taken += line.bytes.len();
                batch.push(line);
            }
            (!batch.is_empty()).then_some(batch)
        })
    }
}

/// Walks over the lines that are not blank.
struct Lines<'file> {
    rest: &'file [u8],
    number: usize,
    offset: usize,
}

impl<'file> Iterator for Lines<'file> {
    type Item = Line<'file>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let end = self.rest.iter().position(|&byte| byte == b'\n').map_or(self.rest.len(), |at| at + 1);
            let (bytes, rest) = self.rest.split_at(end);
            let line = Line { number: self.number + 1, offset: self.offset, bytes };
            self.rest = rest;
            self.number += 1;
            self.offset += end;
            if !bytes.trim_ascii().is_empty() {
                return Some(line);
            }
        }
        None
    }
}
