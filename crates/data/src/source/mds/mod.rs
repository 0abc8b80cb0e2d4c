//! A folder in MosaicML's streaming format: `index.json` tells of shards, which columns they have, how those are encoded,
//! how the files are packed, how long they are and what their digests are. All of that is held against the files.
//!
//! A folder is read as its index says, whatever else lies in it. The index may be one that was merged from those of
//! folders below.

mod encoding;
mod hashes;
mod rows;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tessera_files::IoContext;

use super::expected;
use super::files::{Compression, DataFile, Format};
use crate::error::DataError;
use crate::settings::Task;
use hashes::Hashes;
pub(super) use rows::Reader;

/// The name of the index in its folder.
pub(super) const INDEX: &str = "index.json";

/// What an index says of one of its shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    columns: Vec<Column>,
    samples: usize,
    /// Bytes of it, unpacked.
    bytes: u64,
    /// Digests of the file, by the names of their algorithms.
    hashes: BTreeMap<String, String>,
}

impl Shard {
    /// Hashers that check the file's digests.
    pub(super) fn hashes(&self) -> Hashes<'_> {
        Hashes::new(&self.hashes)
    }
}

/// A column of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    encoding: String,
    /// Bytes of a value, where all have the same.
    size: Option<usize>,
}

#[derive(Deserialize)]
struct Index {
    shards: Vec<Value>,
}

/// A shard as the index tells of it.
#[derive(Deserialize)]
struct Entry {
    version: u64,
    format: String,
    column_names: Vec<String>,
    column_encodings: Vec<String>,
    column_sizes: Vec<Option<usize>>,
    compression: Option<String>,
    raw_data: FileEntry,
    zip_data: Option<FileEntry>,
    samples: usize,
}

#[derive(Deserialize)]
struct FileEntry {
    basename: String,
    bytes: u64,
    hashes: BTreeMap<String, String>,
}

/// The shards of a folder that has an index in this format; `None`: it has none.
pub(super) fn find(folder: &Path, task: Task) -> Result<Option<Vec<DataFile>>, DataError> {
    let Some(index) = index(folder)? else { return Ok(None) };
    let path = folder.join(INDEX);
    let wrong =
        |found| DataError::WrongKind { path: folder.to_owned(), found, task, expected: expected(task) };
    let file = |(before, entry)| {
        let entry: Entry = serde_json::from_value(entry)
            .map_err(|error| damaged(&path, &format!("shard {before}"), error.to_string()))?;
        entry.refusal().map_or(Ok(()), |found| Err(wrong(found)))?;
        entry.file(folder)
    };
    index.shards.into_iter().enumerate().map(file).collect::<Result<_, _>>().map(Some)
}

/// The first of the folders in which files were found that has an index of its own.
pub(super) fn folder_with_index(files: &[PathBuf]) -> Result<Option<&Path>, DataError> {
    for file in files.iter().filter(|file| file.ends_with(INDEX)) {
        if let Some(folder) = file.parent()
            && index(folder)?.is_some()
        {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

/// A folder's index, if it is one of shards: rows may be in a file of that name too, of which no more is read than shows it. Beside
/// shards it must be an index.
fn index(folder: &Path) -> Result<Option<Index>, DataError> {
    let path = folder.join(INDEX);
    if !path.is_file() {
        return Ok(None);
    }
    let file = File::open(&path).context("open", &path)?;
    match serde_json::from_reader(BufReader::new(file)) {
        Ok(index) => Ok(Some(index)),
        Err(error) if error.is_io() || has_shards(folder)? => {
            Err(damaged(&path, "the index", error.to_string()))
        }
        Err(_) => Ok(None),
    }
}

fn has_shards(folder: &Path) -> Result<bool, DataError> {
    for entry in fs::read_dir(folder).context("list", folder)? {
        if is_shard(&entry.context("list", folder)?.file_name().to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file's name is that of a shard, packed or not.
pub(super) fn is_shard(name: &str) -> bool {
    name.contains(".mds")
}

fn damaged(path: &Path, place: &str, problem: String) -> DataError {
    DataError::Damaged { path: path.to_owned(), place: place.to_owned(), problem }
}

impl Entry {
    /// Why such shards are not read.
    fn refusal(&self) -> Option<String> {
        if self.version != 2 || self.format != "mds" {
            let Self { version, format, .. } = self;
            return Some(format!(
                "a streaming folder with shards of format `{format}`, version {version}; `mds`, version 2, is read"
            ));
        }
        let family = self.compression.as_deref().map(family);
        family.filter(|family| compression(family).is_none()).map(|family| {
            format!("an MDS folder whose shards are packed by `{family}`; `zstd` and `gz` are read")
        })
    }

    /// The shard's file: the unpacked one if it is there, for that is what the format's own reader leaves.
    fn file(self, folder: &Path) -> Result<DataFile, DataError> {
        let index = folder.join(INDEX);
        let contradiction = |problem: String| damaged(&index, &self.raw_data.basename, problem);
        let (names, encodings, sizes) = (&self.column_names, &self.column_encodings, &self.column_sizes);
        if names.len() != encodings.len() || names.len() != sizes.len() {
            return Err(contradiction(
                "its columns have more names than encodings or sizes, or fewer".to_owned(),
            ));
        }
        let mut seen = HashSet::new();
        if let Some(name) = names.iter().find(|name| !seen.insert(*name)) {
            return Err(contradiction(format!("two columns are called `{name}`")));
        }
        let columns = names.iter().zip(encodings).zip(sizes).map(|((name, encoding), size)| Column {
            name: name.clone(),
            encoding: encoding.clone(),
            size: size.filter(|&size| size > 0),
        });
        let columns = columns.collect();
        let packed =
            self.zip_data.as_ref().zip(self.compression.as_deref().map(family).and_then(compression));
        let raw = (&self.raw_data, Compression::None);
        let (entry, compression) = match packed {
            Some(packed) if !folder.join(&self.raw_data.basename).is_file() => packed,
            _ => raw,
        };
        let name = Path::new(&entry.basename);
        if !name.components().all(|component| matches!(component, Component::Normal(_))) {
            return Err(contradiction(format!("{:?} is no name of a file below the folder", entry.basename)));
        }
        let path = folder.join(name);
        let size = fs::metadata(&path).context("read", &path)?.len();
        if size != entry.bytes {
            let problem = format!("it has {size} bytes, but index.json says {}", entry.bytes);
            return Err(damaged(&path, "its beginning", problem));
        }
        let hashes = entry.hashes.clone();
        let shard = Shard { columns, samples: self.samples, bytes: self.raw_data.bytes, hashes };
        Ok(DataFile { path, format: Format::Mds(shard), compression, size })
    }
}

/// A compression without its level: `zstd` of `zstd:7`.
fn family(compression: &str) -> &str {
    compression.split(':').next().unwrap_or_default()
}

fn compression(family: &str) -> Option<Compression> {
    match family {
        "zstd" => Some(Compression::Zstd),
        "gz" => Some(Compression::Gzip),
        _ => None,
    }
}
