//! Tokens, labels and the row table on disk, made once and memory-mapped from then on.
//!
//! An entry is a folder of flat little-endian columns and a header. Its name is a digest of everything its content
//! depends on, so an entry that is stale is not found; the header holds the length and digests of every
//! column, so an entry that is damaged is seen, removed and made again. The folder appears by rename.

mod column;
mod rows;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use tessera_files::{AtomicFolder, FileError, IoContext};

pub(crate) use column::Column;
use column::{Digests, write_column};
pub(crate) use rows::RowTable;
pub(crate) use writer::{Kept, TokenWriter, Written};

use crate::error::DataError;
use crate::source::hex;
use crate::summary::Summary;

/// Changes whenever the meaning of a column does, or the tokens that the same files give.
const FORMAT: u32 = 5;

/// Characters of a digest in hexadecimal.
const KEY_LENGTH: usize = 64;

/// The file that says what the columns must be.
const HEADER: &str = "header.json";

/// What an entry's header says.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    key: String,
    columns: BTreeMap<String, Digests>,
    summary: Summary,
}

/// The columns of a data set.
///
/// `tokens` and `labels` hold all examples one after the other in the order of the file. A *piece* is a stretch
/// of them within one example; a row is a run of pieces.
#[derive(Debug)]
pub(crate) struct Columns {
    /// Token ids.
    pub(crate) tokens: Column<u32>,
    /// The target of each position, −100 where there is none.
    pub(crate) labels: Column<i32>,
    /// Where each piece begins in `tokens`.
    pub(crate) piece_start: Column<u64>,
    /// Tokens of each piece.
    pub(crate) piece_length: Column<u32>,
    /// The line, row or text file that each piece comes from, as if all files were one; from 1.
    pub(crate) piece_origin: Column<u64>,
    /// The first piece of each row, then the number of pieces.
    pub(crate) row_start: Column<u64>,
    /// Tokens of each row.
    pub(crate) row_tokens: Column<u32>,
    /// Positions with a target in each row.
    pub(crate) row_loss_tokens: Column<u32>,
}

/// Removes what killed preparations left in `cache`. Whoever calls holds the folder's lock: nobody else is writing an
/// entry. Only names that entries have while they are written are touched.
pub(crate) fn remove_leftovers(cache: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(cache).context("list", cache)? {
        let path = entry.context("list", cache)?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_leftover) && path.is_dir() {
            fs::remove_dir_all(&path).context("remove", &path)?;
        }
    }
    Ok(())
}

/// Whether a folder's name is that of an unfinished entry, as [`AtomicFolder`] makes it from a digest.
fn is_leftover(name: &str) -> bool {
    let key = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial"));
    key.is_some_and(|key| key.len() == KEY_LENGTH && key.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Where one data set is or will be kept.
#[derive(Debug)]
pub(crate) struct Entry {
    key: String,
    folder: PathBuf,
}

impl Entry {
    /// The entry in `cache` of the data set that `identity` describes in full.
    pub(crate) fn new(cache: &Path, identity: &str) -> Self {
        let key = hex(format!("tessera rows, format {FORMAT}\n{identity}").as_bytes());
        Self { folder: cache.join(&key), key }
    }

    /// The digest that names the entry.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The entry's content if it is there and whole. One that is there and not whole is removed.
    pub(crate) fn open(&self) -> Result<Option<(Columns, Summary)>, DataError> {
        if !self.folder.exists() {
            return Ok(None);
        }
        let opened = self.try_open();
        if opened.is_none() {
            fs::remove_dir_all(&self.folder).context("remove", &self.folder)?;
        }
        Ok(opened)
    }

    /// Any failure to read an entry means the same: it is of no use.
    fn try_open(&self) -> Option<(Columns, Summary)> {
        let header = read_header(&self.folder.join(HEADER)).filter(|header| header.key == self.key)?;
        let columns = self.columns(&header).ok()?;
        Some((columns, header.summary))
    }

    fn columns(&self, header: &Header) -> io::Result<Columns> {
        let (folder, digests) = (self.folder.as_path(), &header.columns);
        Ok(Columns {
            tokens: Column::open(folder, "tokens", digests)?,
            labels: Column::open(folder, "labels", digests)?,
            piece_start: Column::open(folder, "piece_start", digests)?,
            piece_length: Column::open(folder, "piece_length", digests)?,
            piece_origin: Column::open(folder, "piece_origin", digests)?,
            row_start: Column::open(folder, "row_start", digests)?,
            row_tokens: Column::open(folder, "row_tokens", digests)?,
            row_loss_tokens: Column::open(folder, "row_loss_tokens", digests)?,
        })
    }

    /// Begins to write the entry.
    pub(crate) fn create(&self) -> Result<AtomicFolder, FileError> {
        AtomicFolder::create(&self.folder)
    }

    /// Adds the row table and the header to the tokens that `writer` has written, and gives the entry its name.
    pub(crate) fn finish(
        &self,
        folder: AtomicFolder,
        mut columns: BTreeMap<String, Digests>,
        rows: &RowTable,
        summary: Summary,
    ) -> Result<(), FileError> {
        let path = folder.folder().to_owned();
        let mut add = |name: &str, digests| columns.insert(name.to_owned(), digests);
        add("piece_start", write_column(&path, "piece_start", &rows.piece_start)?);
        add("piece_length", write_column(&path, "piece_length", &rows.piece_length)?);
        add("piece_origin", write_column(&path, "piece_origin", &rows.piece_origin)?);
        add("row_start", write_column(&path, "row_start", &rows.row_start)?);
        add("row_tokens", write_column(&path, "row_tokens", &rows.row_tokens)?);
        add("row_loss_tokens", write_column(&path, "row_loss_tokens", &rows.row_loss_tokens)?);
        write_header(&path.join(HEADER), &Header { key: self.key.clone(), columns, summary })?;
        folder.finish()
    }
}

/// The header is its own digest, a line end, and JSON.
fn write_header(path: &Path, header: &Header) -> Result<(), FileError> {
    let text = serde_json::to_string_pretty(header).map_err(io::Error::other).context("write", path)?;
    fs::write(path, format!("{}\n{text}", hex(text.as_bytes()))).context("write", path)
}

fn read_header(path: &Path) -> Option<Header> {
    let content = fs::read_to_string(path).ok()?;
    let (digest, text) = content.split_once('\n')?;
    (hex(text.as_bytes()) == digest).then(|| serde_json::from_str(text).ok())?
}
