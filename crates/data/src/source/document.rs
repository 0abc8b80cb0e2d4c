//! Documents of continued pre-training: `.txt` files, each a document, and texts of rows.

use std::path::{Path, PathBuf};

use tessera_files::MappedFile;

use super::json_lines::LONGEST_ROW;
use super::record::{Content, Found, RecordReader, Unit};
use super::stream::Stream;
use super::utf8;
use crate::error::DataError;

/// A text, in memory or mapped.
pub(crate) struct Document {
    bytes: Bytes,
    /// Bytes of a byte order mark at its beginning.
    skipped: usize,
}

enum Bytes {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

impl Document {
    /// The text of a row.
    pub(crate) fn of_text(text: String) -> Self {
        Self { bytes: Bytes::Owned(text.into_bytes()), skipped: 0 }
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(file) => file.get(self.skipped..).unwrap_or_default(),
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// The document's text, or the line where it stops being text and why.
    pub(crate) fn text(&self) -> Result<&str, (usize, String)> {
        let bytes = self.bytes();
        utf8(bytes, self.skipped).map_err(|(place, message)| {
            let before = bytes.get(..place).unwrap_or_default();
            (1 + before.iter().filter(|&&byte| byte == b'\n').count(), message)
        })
    }

    /// Bytes of the text.
    pub(crate) fn size(&self) -> usize {
        self.bytes().len()
    }
}

fn only(document: Document) -> Vec<Found> {
    vec![Found { unit: Unit::File, number: 1, content: Content::Document(document) }]
}

/// A text file that is mapped into memory.
pub(super) struct MappedReader {
    path: PathBuf,
    read: Option<u64>,
}

impl MappedReader {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: None }
    }
}

impl RecordReader for MappedReader {
    fn next_records(&mut self) -> Result<Vec<Found>, DataError> {
        if self.read.is_some() {
            return Ok(Vec::new());
        }
        let file = MappedFile::open(&self.path)?;
        self.read = Some(file.len() as u64);
        let skipped = if file.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        Ok(only(Document { bytes: Bytes::Mapped(file), skipped }))
    }

    fn bytes_read(&self) -> u64 {
        self.read.unwrap_or(0)
    }
}

/// A packed text file, unpacked in memory: a document is one piece.
pub(super) struct UnpackedReader {
    stream: Stream,
    ended: bool,
}

impl UnpackedReader {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, ended: false }
    }
}

impl RecordReader for UnpackedReader {
    fn next_records(&mut self) -> Result<Vec<Found>, DataError> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        let place = |bytes: &[u8]| format!("byte {} of its text", bytes.len());
        if self.stream.read_onto(&mut bytes, LONGEST_ROW + 1, place)? > LONGEST_ROW {
            return Err(DataError::Damaged {
                path: self.stream.path().to_owned(),
                place: format!("byte {LONGEST_ROW} of its text"),
                problem: "a packed document may not be longer; unpack the file".to_owned(),
            });
        }
        Ok(only(Document { bytes: Bytes::Owned(bytes), skipped: 0 }))
    }

    fn bytes_read(&self) -> u64 {
        self.stream.bytes_read()
    }
}
