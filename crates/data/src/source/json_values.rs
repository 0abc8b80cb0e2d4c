//! `.json`: a list of rows, or rows one after the other. The file is cut into the texts of its rows without being
//! parsed as a whole; threads then parse those.

use std::ops::Range;
use std::sync::Arc;

use memchr::memchr2;

use super::bytes_at_once;
use super::json_lines::{LONGEST_ROW, too_long};
use super::record::{Content, Found, JsonText, RecordReader, Unit};
use super::stream::Stream;
use crate::error::DataError;

/// What stands around the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// Nothing has been read but blanks.
    Unknown,
    /// `[`, and `,` between rows.
    List,
    /// Rows follow one another.
    None,
    /// The list's `]` has been read.
    Closed,
}

/// Finds where rows begin and end.
pub(super) struct Reader {
    stream: Stream,
    frame: Frame,
    buffer: Vec<u8>,
    /// How much of `buffer` has been looked at.
    scanned: usize,
    /// Where in `buffer` the row begins that is being read, with its line and column.
    begin: Option<(usize, usize, usize)>,
    depth: usize,
    in_string: bool,
    /// A list has a comma behind its last row.
    comma: bool,
    rows: usize,
    /// Where `buffer` begins in the file.
    offset: usize,
    line: usize,
    /// Where the line begins in the file.
    line_start: usize,
    ended: bool,
}

/// The place of a row in the buffer, its line and column; nothing stands where the range is empty.
struct Cut {
    range: Range<usize>,
    start: (usize, usize),
}

impl Reader {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            offset: stream.skipped,
            line_start: stream.skipped,
            stream,
            frame: Frame::Unknown,
            buffer: Vec::new(),
            scanned: 0,
            begin: None,
            depth: 0,
            in_string: false,
            comma: false,
            rows: 0,
            line: 1,
            ended: false,
        }
    }

    fn damaged(&self, problem: &str) -> DataError {
        DataError::Damaged {
            path: self.stream.path().to_owned(),
            place: format!("row {}", self.rows),
            problem: problem.to_owned(),
        }
    }

    /// Looks at the next byte; returns a row that ends with or before it.
    fn step(&mut self) -> Result<Option<Cut>, DataError> {
        let at = self.scanned;
        let Some(&byte) = self.buffer.get(at) else { return Ok(None) };
        if self.in_string {
            let rest = self.buffer.get(at..).unwrap_or_default();
            match memchr2(b'"', b'\\', rest) {
                Some(place) if rest.get(place) == Some(&b'"') => {
                    self.in_string = false;
                    self.scanned = at + place + 1;
                }
                // What a backslash escapes may not be read yet; the next one begins there again.
                Some(place) if rest.len() > place + 1 => self.scanned = at + place + 2,
                Some(place) => self.scanned = at + place,
                None => self.scanned = self.buffer.len(),
            }
            return Ok(None);
        }
        self.scanned += 1;
        if byte == b'\n' {
            self.line += 1;
            self.line_start = self.offset + self.scanned;
        }
        if self.frame == Frame::Unknown && !byte.is_ascii_whitespace() {
            self.frame = if byte == b'[' { Frame::List } else { Frame::None };
            if self.frame == Frame::List {
                return Ok(None);
            }
        }
        if self.depth == 0 && self.frame == Frame::List && (byte == b',' || byte == b']') {
            return self.between(byte, at);
        }
        if byte.is_ascii_whitespace() {
            let scalar_ends = self.frame == Frame::None && self.depth == 0 && self.begin.is_some();
            return Ok(if scalar_ends { self.cut(at) } else { None });
        }
        if self.frame == Frame::Closed {
            return Err(self.damaged("the list has ended, but text follows it"));
        }
        if self.begin.is_none() {
            self.begin = Some((at, self.line, self.offset + at + 1 - self.line_start));
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 && self.frame == Frame::None {
                    return Ok(self.cut(at + 1));
                }
            }
            _ => {}
        }
        Ok(None)
    }

    /// What a comma or the end of the list ends.
    fn between(&mut self, byte: u8, at: usize) -> Result<Option<Cut>, DataError> {
        let nothing = self.begin.is_none();
        if nothing && (byte == b',' || self.comma) {
            let cut = Cut { range: at..at, start: (self.line, self.offset + at + 1 - self.line_start) };
            self.close(byte);
            return Ok(Some(cut));
        }
        let cut = self.cut(at);
        self.close(byte);
        Ok(cut)
    }

    fn close(&mut self, byte: u8) {
        self.comma = byte == b',';
        if byte == b']' {
            self.frame = Frame::Closed;
        }
    }

    fn cut(&mut self, end: usize) -> Option<Cut> {
        let (start, line, column) = self.begin.take()?;
        Some(Cut { range: start..end, start: (line, column) })
    }

    /// What is left at the end of the file.
    fn rest(&mut self) -> Result<Option<Cut>, DataError> {
        match self.frame {
            Frame::List => Err(self.damaged("the list does not end")),
            _ => Ok(self.cut(self.buffer.len())),
        }
    }

    /// The rows in the next stretch of the file.
    fn cuts(&mut self) -> Result<Vec<Cut>, DataError> {
        let (mut cuts, mut taken) = (Vec::new(), 0);
        while taken < bytes_at_once() {
            let before = self.scanned;
            let cut = self.step()?;
            if let Some(cut) = cut {
                taken += cut.range.len() + 1;
                self.rows += 1;
                cuts.push(cut);
            } else if self.scanned == before && self.ended {
                let rest = if self.buffer.is_empty() { None } else { self.rest()? };
                self.rows += usize::from(rest.is_some());
                cuts.extend(rest);
                self.scanned = self.buffer.len();
                break;
            } else if self.scanned == before {
                if !cuts.is_empty() {
                    break;
                }
                if self.buffer.len() > LONGEST_ROW {
                    return Err(too_long(self.stream.path(), Unit::Row, self.rows + 1));
                }
                let (size, row) = (bytes_at_once(), self.rows);
                self.ended = self.stream.read_onto(&mut self.buffer, size, |_| format!("row {row}"))? < size;
            }
        }
        Ok(cuts)
    }
}

impl RecordReader for Reader {
    fn next_records(&mut self) -> Result<Vec<Found>, DataError> {
        let before = self.rows;
        let cuts = self.cuts()?;
        // What belongs to a row that has begun stays.
        let end = self.begin.map_or(self.scanned, |(start, ..)| start);
        let rest = self.buffer.split_off(end.min(self.buffer.len()));
        let block = Arc::new(std::mem::replace(&mut self.buffer, rest));
        let offset = self.offset;
        self.offset += block.len();
        self.scanned -= block.len();
        if let Some((start, ..)) = &mut self.begin {
            *start -= block.len();
        }
        let found = cuts.into_iter().zip(before + 1..).map(|(Cut { range, start }, number)| {
            let content = if range.is_empty() {
                Content::Broken(format!(
                    "nothing stands before the comma or bracket at line {}, column {}",
                    start.0, start.1
                ))
            } else {
                let offset = offset + range.start;
                Content::Json(JsonText { block: block.clone(), range, offset, start: Some(start) })
            };
            Found { unit: Unit::Row, number, content }
        });
        Ok(found.collect())
    }

    fn bytes_read(&self) -> u64 {
        self.stream.bytes_read()
    }
}
