//! One record of a source, before anything is known of what is in it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::document::Document;
#[cfg(feature = "parquet")]
use super::parquet_rows::TableRow;
use super::value::Fields;
use crate::error::{DataError, RowProblem};

/// A file being read: its records in order.
pub(crate) trait RecordReader: Send {
    /// The next records, at most about [`super::bytes_at_once`] bytes of them; none at the file's end.
    fn next_records(&mut self) -> Result<Vec<Found>, DataError>;

    /// Bytes of the file, as it lies on disk, that are behind.
    fn bytes_read(&self) -> u64;
}

/// A record as its file's reader hands it on.
pub(crate) struct Found {
    pub(crate) unit: Unit,
    /// From 1.
    pub(crate) number: usize,
    pub(crate) content: Content,
}

impl Found {
    /// Bytes that it holds in memory, about.
    pub(crate) fn size(&self) -> usize {
        match &self.content {
            Content::Json(text) => text.range.len(),
            Content::Row { size, .. } => *size,
            #[cfg(feature = "parquet")]
            Content::TableRow(row) => row.size(),
            Content::Document(document) => document.size(),
            Content::Broken(message) => message.len(),
        }
    }
}

/// A record and where it stands.
pub(crate) struct Record<'source> {
    pub(crate) place: Place<'source>,
    /// Its number, as if all files of the source were one.
    pub(crate) origin: usize,
    pub(crate) content: Content,
}

/// What a record holds.
pub(crate) enum Content {
    /// The text of a JSON value.
    Json(JsonText),
    /// A row by itself.
    Row {
        /// Its values by column.
        values: Fields<'static>,
        /// Bytes of them, about.
        size: usize,
    },
    /// A row of a table that is in memory.
    #[cfg(feature = "parquet")]
    TableRow(TableRow),
    /// The text of a document.
    Document(Document),
    /// What is wrong with a record that the format does not allow; the next one can be read nevertheless.
    Broken(String),
}

/// A JSON value within a stretch of its file that several share.
pub(crate) struct JsonText {
    pub(crate) block: Arc<Vec<u8>>,
    pub(crate) range: Range<usize>,
    /// Where the value begins in its file, which is unpacked if it was packed.
    pub(crate) offset: usize,
    /// Line and column of its beginning, from 1; `None`: the value is a line.
    pub(crate) start: Option<(usize, usize)>,
}

impl JsonText {
    /// The bytes of the value.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.block.get(self.range.clone()).unwrap_or_default()
    }
}

/// What the records of a file are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Lines: blank ones are counted.
    Line,
    /// Rows.
    Row,
    /// The one document of a text file.
    File,
}

/// Where a record is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'source> {
    pub(crate) file: &'source Path,
    pub(crate) unit: Unit,
    pub(crate) number: usize,
}

impl Place<'_> {
    /// This place as that of a problem.
    pub(crate) fn problem(self, message: String) -> RowProblem {
        RowProblem { file: self.file.to_path_buf(), unit: self.unit, number: self.number, message }
    }

    /// File and record, for messages.
    pub(crate) fn shown(self) -> String {
        let file = self.file.display();
        match self.unit {
            Unit::Line => format!("{file}, line {}", self.number),
            Unit::Row => format!("{file}, row {}", self.number),
            Unit::File => file.to_string(),
        }
    }
}
