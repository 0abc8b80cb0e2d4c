//! `.jsonl`: each line that is not blank is a row.

use std::sync::Arc;

use memchr::{memchr_iter, memrchr};

use super::bytes_at_once;
use super::record::{Content, Found, JsonText, RecordReader, Unit};
use super::stream::Stream;
use crate::error::DataError;

/// A row longer than this is a mistake: the file has no line ends, or is no text.
pub(super) const LONGEST_ROW: usize = 256 << 20;

/// Reads whole lines.
pub(super) struct Reader {
    stream: Stream,
    /// What has been read of a line whose end has not.
    rest: Vec<u8>,
    /// Lines behind.
    lines: usize,
    /// Where `rest` begins in the file.
    offset: usize,
    ended: bool,
}

impl Reader {
    pub(super) fn new(stream: Stream) -> Self {
        Self { offset: stream.skipped, stream, rest: Vec::new(), lines: 0, ended: false }
    }

    /// A stretch of whole lines; empty at the end of the file.
    fn block(&mut self) -> Result<Vec<u8>, DataError> {
        let mut block = std::mem::take(&mut self.rest);
        let (size, lines) = (bytes_at_once(), self.lines);
        let mut searched = block.len();
        while !self.ended {
            let place = |block: &[u8]| format!("line {}", lines + memchr_iter(b'\n', block).count());
            self.ended = self.stream.read_onto(&mut block, size, place)? < size;
            if let Some(end) = memrchr(b'\n', block.get(searched..).unwrap_or_default())
                && !self.ended
            {
                self.rest = block.split_off(searched + end + 1);
                break;
            }
            if block.len() > LONGEST_ROW {
                return Err(too_long(self.stream.path(), Unit::Line, self.lines + 1));
            }
            searched = block.len();
        }
        Ok(block)
    }
}

/// The error of a row that is too long to be one.
pub(super) fn too_long(path: &std::path::Path, unit: Unit, number: usize) -> DataError {
    let unit = if unit == Unit::Line { "line" } else { "row" };
    DataError::Damaged {
        path: path.to_owned(),
        place: format!("the beginning of {unit} {number}"),
        problem: format!("the {unit} has no end within {} MiB", LONGEST_ROW >> 20),
    }
}

impl RecordReader for Reader {
    fn next_records(&mut self) -> Result<Vec<Found>, DataError> {
        let mut found = Vec::new();
        // A stretch may hold nothing but blank lines.
        while found.is_empty() {
            let block = Arc::new(self.block()?);
            if block.is_empty() {
                break;
            }
            let mut start = 0;
            let ends = memchr_iter(b'\n', &block).map(|end| end + 1).chain([block.len()]);
            for end in ends.filter(|&end| end > 0) {
                if end == start {
                    continue;
                }
                self.lines += 1;
                let line = block.get(start..end).unwrap_or_default();
                if !line.trim_ascii().is_empty() {
                    let range = start..start + line.trim_ascii_end().len();
                    let text =
                        JsonText { block: block.clone(), range, offset: self.offset + start, start: None };
                    found.push(Found { unit: Unit::Line, number: self.lines, content: Content::Json(text) });
                }
                start = end;
            }
            self.offset += block.len();
        }
        Ok(found)
    }

    fn bytes_read(&self) -> u64 {
        self.stream.bytes_read()
    }
}
