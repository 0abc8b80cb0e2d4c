//! `.csv`: the first row names the columns, every value is a text (RFC 4180: fields in quotes may hold commas, line
//! ends and doubled quotes).

use std::borrow::Cow;
use std::io;

use csv::{ByteRecord, ErrorKind};

use super::bytes_at_once;
use super::record::{Content, Found, RecordReader, Unit};
use super::stream::Stream;
use super::value::{Fields, Value};
use crate::error::DataError;

/// Reads rows under a header.
pub(super) struct Reader {
    csv: csv::Reader<Stream>,
    header: Vec<String>,
    record: ByteRecord,
    /// The line on which the last row began.
    line: u64,
}

impl Reader {
    pub(super) fn new(stream: Stream) -> Result<Self, DataError> {
        let mut csv = csv::ReaderBuilder::new().from_reader(stream);
        let header = match csv.byte_headers() {
            Ok(header) => header.clone(),
            Err(error) => return Err(fatal(csv.get_ref(), 0, error)),
        };
        let damaged = |problem: String| DataError::Damaged {
            path: csv.get_ref().path().to_owned(),
            place: "its beginning".to_owned(),
            problem,
        };
        let mut names: Vec<String> = Vec::new();
        for name in &header {
            let name = std::str::from_utf8(name)
                .map_err(|_| damaged("the names of the columns are not UTF-8".to_owned()))?;
            if names.iter().any(|earlier| earlier == name) {
                return Err(damaged(format!("two columns are called `{name}`")));
            }
            names.push(name.to_owned());
        }
        Ok(Self { csv, header: names, record: ByteRecord::new(), line: 1 })
    }

    /// The next row, or what is wrong with it; `None` at the end.
    fn row(&mut self) -> Result<Option<Content>, DataError> {
        match self.csv.read_byte_record(&mut self.record) {
            Ok(false) => return Ok(None),
            Ok(true) => self.line = self.record.position().map_or(self.line, csv::Position::line),
            Err(error) => match error.kind() {
                ErrorKind::UnequalLengths { pos, expected_len, len } => {
                    self.line = pos.as_ref().map_or(self.line, csv::Position::line);
                    let fields = if *len == 1 { "1 field" } else { &format!("{len} fields") };
                    return Ok(Some(Content::Broken(format!(
                        "the row has {fields}, but the header names {expected_len}; a field with commas, quotes or line \
                         ends needs quotes around it, and quotes in it doubled"
                    ))));
                }
                _ => return Err(fatal(self.csv.get_ref(), self.line, error)),
            },
        }
        let size = self.record.as_slice().len();
        let mut values = Fields::with_capacity(self.header.len());
        for (name, field) in self.header.iter().zip(&self.record) {
            match std::str::from_utf8(field) {
                Ok(text) => values.push(Cow::Owned(name.clone()), Value::Text(Cow::Owned(text.to_owned()))),
                Err(_) => {
                    return Ok(Some(Content::Broken(format!(
                        "`{name}` is not UTF-8; save the file as UTF-8"
                    ))));
                }
            };
        }
        Ok(Some(Content::Row { values, size }))
    }
}

/// An error after which nothing more can be read.
fn fatal(stream: &Stream, line: u64, error: csv::Error) -> DataError {
    let error = match error.into_kind() {
        ErrorKind::Io(error) => error,
        _ => io::Error::other("the rows cannot be told apart"),
    };
    stream.error(&format!("line {line}"), error)
}

impl RecordReader for Reader {
    fn next_records(&mut self) -> Result<Vec<Found>, DataError> {
        let (mut found, mut taken) = (Vec::new(), 0);
        while taken < bytes_at_once() {
            let Some(content) = self.row()? else { break };
            let row = Found { unit: Unit::Line, number: self.line as usize, content };
            taken += row.size() + 1;
            found.push(row);
        }
        Ok(found)
    }

    fn bytes_read(&self) -> u64 {
        self.csv.get_ref().bytes_read()
    }
}
