//! Reading the data: whatever it is written in, it comes as records, in their order and a bounded number of bytes at
//! a time, so that a data set may be larger than memory.
//!
//! [`files`] finds the files that a path means, [`stream`] opens them and undoes gzip and zstd, and a reader for each
//! format cuts their content into records. A record is the bytes of a row of JSON, a row of named values, or a
//! document; what is in it is judged later and by all threads. A byte order mark at the start of a file, CRLF line
//! ends and blank lines are accepted. Everything later sees records only, so equal rows give equal batches whatever
//! they were written in.

mod csv_rows;
mod document;
mod files;
mod json_lines;
mod json_values;
mod mds;
#[cfg(feature = "parquet")]
mod parquet_rows;
mod record;
mod stream;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use sha2::Digest;
use tessera_files::{Sha256, sha256_hex};

pub(crate) use document::Document;
pub(crate) use files::{Compression, DataFile, Format};
pub use files::{is_file_name, table_among, wanted_names};
#[cfg(feature = "delta")]
pub(crate) use parquet_rows::{damaged, found_rows, guarded, rows_at_once};
#[cfg(feature = "delta")]
pub(crate) use record::Found;
pub use record::Unit;
pub(crate) use record::{Content, JsonText, Place, Record, RecordReader};
pub(crate) use value::{Fields, Value};

use crate::delta::Table;
#[cfg(feature = "delta")]
use crate::delta::TableReader;
use crate::error::DataError;
use crate::pin::Pin;
use crate::settings::{Columns, Contents, SourceSettings, Task};

/// Bytes of the source that are worked on at once, for each thread; as many are read meanwhile. A table is read in such pieces.
const BYTES_PER_THREAD: usize = 1 << 20;
/// At most so many files are worked on at once, and as many are mapped meanwhile.
const FILES_AT_ONCE: usize = 512;
/// Bytes under one digest: threads take the digests of pieces side by side.
const PIECE: usize = 1 << 24;

/// How much of the source one parallel step takes, while the next is read. It bounds memory; results do not depend on it.
pub(crate) fn bytes_at_once() -> usize {
    BYTES_PER_THREAD * rayon::current_num_threads().max(4)
}

/// One source of a data set: its files, found but not opened.
pub(crate) struct Source {
    path: PathBuf,
    /// The folder that the names of its files are told from.
    folder: PathBuf,
    /// The version of a source that is elsewhere.
    version: Option<String>,
    files: Vec<DataFile>,
    /// The table that they are of.
    table: Option<Arc<Table>>,
    pub(crate) columns: Columns,
    pub(crate) weight: f64,
    task: Task,
}

impl Source {
    /// Finds the files that a source of `task` means.
    pub(crate) fn open(settings: &SourceSettings, task: Task) -> Result<Self, DataError> {
        let path = PathBuf::from(&settings.path);
        let (columns, weight) = (settings.columns.clone(), settings.weight);
        let (folder, version) = match &settings.fetched {
            Some(fetched) => (fetched.folder.clone(), fetched.version.clone()),
            None => (path.clone(), None),
        };
        let (files, table) = match settings.fetched.as_ref().map(|fetched| &fetched.contents) {
            Some(Contents::Files(files)) => (files::fetched(files, task)?, None),
            Some(&Contents::Table(version)) => {
                let table = Table::open(&settings.path, &folder, version, columns.wanted(task).as_deref())?;
                (table.data_files()?, Some(Arc::new(table)))
            }
            None => (files::find(&path, task)?, None),
        };
        let source = Self { path, folder, version, files, table, columns, weight, task };
        if source.size() == 0 {
            return Err(source.empty());
        }
        Ok(source)
    }

    /// The file, folder or pattern, as the settings name it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The error of a source without a record.
    pub(crate) fn empty(&self) -> DataError {
        DataError::Empty { path: self.path.clone(), task: self.task, expected: expected(self.task) }
    }

    /// Bytes of all files, as they lie on disk.
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// What later tells whether the source still has the same `rows`.
    pub(crate) fn pin(&self, digest: &str, rows: usize) -> Pin {
        Pin {
            path: self.path.display().to_string(),
            version: self.version.clone(),
            files: self.files.len(),
            bytes: self.size(),
            rows,
            digest: digest.to_owned(),
        }
    }

    /// Reads the records in order, [`bytes_at_once`] of them together. `parse`, on which all threads work, makes something of them
    /// while the next are read beside it; `take` gets that, with the bytes of the files, as they lie on disk, that were read
    /// for it.
    pub(crate) fn read<'source, T: Send>(
        &'source self,
        parse: impl Fn(Vec<Record<'source>>) -> T + Sync,
        mut take: impl FnMut(T, u64) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut batches = Batches { source: self, next: 0, open: None, numbered: 0, behind: 0 };
        let mut next = batches.next_batch()?;
        while let Some(Batch { records, bytes }) = next {
            let (parsed, following) = rayon::join(|| parse(records), || batches.next_batch());
            take(parsed, bytes)?;
            next = following?;
        }
        Ok(())
    }

    /// A digest of the content: equal for equal content, whatever the path, file times or number of threads. Where there
    /// are several files their names within the folder are part of it, since their order follows from them.
    pub(crate) fn content_digest(&self) -> Result<String, DataError> {
        let mut listing = self.table.as_ref().map_or(String::new(), |table| table.identity().to_owned());
        for file in &self.files {
            let name = match self.files.len() {
                1 => Path::new(""),
                _ => file.path.strip_prefix(&self.folder).unwrap_or(&file.path),
            };
            listing.push_str(&format!(
                "{} {:?} {name:?}\n",
                digest_file(file)?,
                (&file.format, file.compression)
            ));
        }
        Ok(hex(listing.as_bytes()))
    }

    fn reader(&self, file: &DataFile) -> Result<Box<dyn RecordReader>, DataError> {
        let stream = || stream::Stream::open(&file.path, file.compression);
        Ok(match &file.format {
            Format::JsonLines => Box::new(json_lines::Reader::new(stream()?)),
            Format::Json => Box::new(json_values::Reader::new(stream()?)),
            Format::Csv => Box::new(csv_rows::Reader::new(stream()?)?),
            Format::Text if file.compression == Compression::None => {
                Box::new(document::MappedReader::new(&file.path))
            }
            Format::Text => Box::new(document::UnpackedReader::new(stream()?)),
            Format::Mds(shard) => {
                let (wanted, expected) = (self.columns.wanted(self.task), expected(self.task));
                let (path, task) = (&file.path, self.task);
                let refuse = |found| DataError::WrongKind { path: path.clone(), found, task, expected };
                Box::new(mds::Reader::open(file, shard, wanted.as_deref(), refuse)?)
            }
            #[cfg(feature = "delta")]
            Format::Table { file: index, .. } => {
                let table = self.table.as_ref().ok_or_else(|| self.empty())?;
                Box::new(TableReader::open(table, *index, &file.path, file.size)?)
            }
            #[cfg(feature = "parquet")]
            Format::Parquet => {
                let wanted = self.columns.wanted(self.task);
                Box::new(parquet_rows::Reader::open(&file.path, file.size, wanted)?)
            }
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                return Err(DataError::NotBuilt { path: file.path.clone(), feature: "parquet" });
            }
        })
    }
}

/// Records that are worked on together.
struct Batch<'source> {
    records: Vec<Record<'source>>,
    /// Bytes of the files, as they lie on disk, that were read for it.
    bytes: u64,
}

/// Walks over the records of a source.
struct Batches<'source> {
    source: &'source Source,
    /// The file after the one that is open.
    next: usize,
    open: Option<OpenFile<'source>>,
    /// Records that the files before have, blank ones included.
    numbered: usize,
    /// Bytes that earlier batches have told of.
    behind: u64,
}

struct OpenFile<'source> {
    path: &'source Path,
    reader: Box<dyn RecordReader>,
    /// Bytes of the files before.
    before: u64,
    size: u64,
    last: usize,
}

impl<'source> Batches<'source> {
    /// As many records as reach [`bytes_at_once`], at least one; `None` at the end.
    fn next_batch(&mut self) -> Result<Option<Batch<'source>>, DataError> {
        let (mut records, mut taken) = (Vec::new(), 0);
        let mut done = self.behind;
        while taken < bytes_at_once() && records.len() < self.most_records() {
            let numbered = self.numbered;
            let Some(open) = self.open_file()? else { break };
            let read = open.reader.next_records()?;
            if read.is_empty() {
                done = open.before + open.size;
                self.numbered += open.last;
                self.open = None;
                continue;
            }
            done = open.before + open.reader.bytes_read().min(open.size);
            let path = open.path;
            records.reserve(read.len());
            for found in read {
                taken += found.size();
                open.last = found.number;
                let place = Place { file: path, unit: found.unit, number: found.number };
                let origin = numbered + found.number;
                records.push(Record { place, origin, content: found.content });
            }
        }
        let bytes = done.saturating_sub(self.behind);
        self.behind = done;
        Ok((!records.is_empty()).then_some(Batch { records, bytes }))
    }

    /// Small files are read several at once; mapped ones take a handle each.
    fn most_records(&self) -> usize {
        if self.source.files.len() > 1 && self.source.files.iter().any(|file| file.format == Format::Text) {
            FILES_AT_ONCE
        } else {
            usize::MAX
        }
    }

    fn open_file(&mut self) -> Result<Option<&mut OpenFile<'source>>, DataError> {
        if self.open.is_none() {
            let Some(file) = self.source.files.get(self.next) else { return Ok(None) };
            let before = self.source.files.iter().take(self.next).map(|file| file.size).sum();
            let reader = self.source.reader(file)?;
            self.next += 1;
            self.open = Some(OpenFile { path: &file.path, reader, before, size: file.size, last: 0 });
        }
        Ok(self.open.as_mut())
    }
}

/// What a task reads, for error messages.
pub(crate) fn expected(task: Task) -> &'static str {
    match task {
        Task::ChatCompletion => {
            "rows {\"messages\": [{\"role\": …, \"content\": …}, …]} in a .jsonl, .json, .csv or .parquet file, or a folder \
             of them"
        }
        Task::InstructionFinetune => {
            "rows {\"prompt\": …, \"response\": …} in a .jsonl, .json, .csv or .parquet file, or a folder of them"
        }
        Task::ContinuedPretrain => {
            "a .txt file, a folder with .txt files in it, or rows {\"text\": …} in a .jsonl, .json, .csv or .parquet file"
        }
    }
}

/// SHA-256 of the digests of 16 MiB pieces, which threads take side by side, a few at a time.
/// The digests that an MDS folder's index gives are checked on the way.
fn digest_file(file: &DataFile) -> Result<String, DataError> {
    let mut stream = stream::Stream::raw(&file.path)?;
    let mut hashes = match &file.format {
        Format::Mds(shard) => Some(shard.hashes()),
        _ => None,
    };
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    loop {
        let group = stream.pieces(PIECE, rayon::current_num_threads().clamp(1, 8))?;
        if group.is_empty() {
            hashes.map_or(Ok(()), |hashes| hashes.check(&file.path))?;
            return Ok(hex(format!("{bytes} {}", pieces.join(" ")).as_bytes()));
        }
        if let Some(hashes) = &mut hashes {
            group.iter().for_each(|piece| hashes.update(piece));
        }
        bytes += group.iter().map(Vec::len).sum::<usize>();
        pieces.extend(group.par_iter().map(|piece| hex(piece)).collect::<Vec<_>>());
    }
}

/// The SHA-256 of `bytes` in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    sha256_hex(Sha256::new_with_prefix(bytes))
}

/// Says which byte of `bytes` is no UTF-8. `offset` is where `bytes` begin in their file.
pub(crate) fn utf8(bytes: &[u8], offset: usize) -> Result<&str, (usize, String)> {
    std::str::from_utf8(bytes).map_err(|error| {
        let place = error.valid_up_to();
        let byte = bytes.get(place).copied().unwrap_or_default();
        let message = format!(
            "not UTF-8: byte {byte:#04x} at byte offset {} of the file; save the file as UTF-8",
            offset + place
        );
        (place, message)
    })
}
