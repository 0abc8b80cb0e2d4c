//! The files that a path means: itself, those in a folder, or those that a pattern matches.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use tessera_files::{FileError, IoContext};

use super::expected;
use super::mds::{self, Shard};
use crate::delta::{LOG_FOLDER, table_of_log};
use crate::error::DataError;
use crate::settings::Task;

/// What a file is written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    JsonLines,
    Json,
    Csv,
    Parquet,
    Text,
    Mds(Shard),
    /// A file of a Delta table: which one, and what its log says of all its rows.
    #[cfg(feature = "delta")]
    Table {
        file: usize,
        constants: String,
    },
}

/// How its bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A file of a source.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) compression: Compression,
    pub(crate) size: u64,
}

/// The files in the order in which they are read: that of their paths.
pub(super) fn find(path: &Path, task: Task) -> Result<Vec<DataFile>, DataError> {
    let not_found = || match elsewhere(path) {
        Some(place) => DataError::Elsewhere { path: path.to_owned(), place, task, expected: expected(task) },
        None => DataError::NotFound { path: path.to_owned(), task, expected: expected(task) },
    };
    if path.exists() {
        return at(path, task);
    }
    let pattern = path.to_str().filter(|text| text.contains(['*', '?', '['])).ok_or_else(not_found)?;
    let matches = glob::glob(pattern)
        .map_err(|error| DataError::Pattern { pattern: pattern.to_owned(), problem: error.to_string() })?;
    let mut paths = Vec::new();
    for matched in matches {
        let matched = matched.map_err(|error| FileError {
            action: "list",
            path: error.path().to_owned(),
            source: error.into(),
        })?;
        if matched.is_file() {
            paths.push(matched);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(not_found());
    }
    if let Some(table) = table_of(paths.iter().map(PathBuf::as_path), Path::new("")) {
        return Err(of_table(path, "a pattern for files of a Delta table", table, task));
    }
    paths.iter().map(|path| named(path, task)).collect()
}

/// The files of a path that is there.
fn at(path: &Path, task: Task) -> Result<Vec<DataFile>, DataError> {
    if let Some(table) = table_of([path], Path::new("")) {
        return Err(of_table(path, "a part of a Delta table", table, task));
    }
    if !path.is_dir() {
        return Ok(vec![named(path, task)?]);
    }
    if path.join(LOG_FOLDER).is_dir() {
        return Err(of_table(path, "a Delta table", path, task));
    }
    match mds::find(path, task)? {
        Some(shards) => Ok(shards),
        None => in_folder(path, task),
    }
}

/// The table that one of the files is of, which lie in `root`: one in whose folder, or one below that, it is.
fn table_of<'path>(paths: impl IntoIterator<Item = &'path Path>, root: &Path) -> Option<&'path Path> {
    let mut seen = HashSet::new();
    let folders = paths.into_iter().flat_map(|path| path.ancestors().skip(1));
    let mut inside = folders.filter(|folder| folder.starts_with(root) && seen.insert(*folder));
    inside.find(|folder| folder.join(LOG_FOLDER).is_dir())
}

/// The error of a path that would also mean files of other versions of a table.
fn of_table(path: &Path, what: &str, table: &Path, task: Task) -> DataError {
    let table = if table == Path::new("") { Path::new(".") } else { table };
    let found = format!("{what}, which is read by the name delta:{}", table.display());
    DataError::WrongKind { path: path.to_owned(), found, task, expected: expected(task) }
}

/// Files that were brought here, in the order in which they are read.
pub(super) fn fetched(paths: &[PathBuf], task: Task) -> Result<Vec<DataFile>, DataError> {
    let files = paths.iter().map(|path| at(path, task)).collect::<Result<Vec<_>, _>>()?;
    Ok(files.into_iter().flatten().collect())
}

/// Of the names of files below a folder that is elsewhere, with `/` between their parts, those that `task` would read if the
/// folder were here.
pub fn wanted_names(mut names: Vec<String>, task: Task) -> Vec<String> {
    names.retain(|name| !name.split('/').any(is_of_tools));
    let is_shard = |name: &str| name.rsplit('/').next().is_some_and(mds::is_shard);
    let has_index = names.iter().any(|name| name == mds::INDEX) && names.iter().any(|name| is_shard(name));
    names.retain(|name| kind(Path::new(name)).is_some() || (has_index && is_shard(name)));
    let is_text = |name: &String| kind(Path::new(name)).is_some_and(|(format, _)| format == Format::Text);
    let (texts, rows): (Vec<_>, Vec<_>) = names.into_iter().partition(is_text);
    if task == Task::ContinuedPretrain && !has_index && !texts.is_empty() { texts } else { rows }
}

/// Of the names of files below a folder that is elsewhere, as [`wanted_names`] has them, the folder of a Delta table that would be
/// read with it, although it also has files of other versions; empty: the folder itself is one.
pub fn table_among(names: &[String]) -> Option<&str> {
    let mut tables = names.iter().filter_map(|name| table_of_log(name));
    tables.find(|table| !table.split('/').any(is_of_tools))
}

/// Whether a name is that of what tools leave beside data (`_SUCCESS`, `.cache`).
fn is_of_tools(name: &str) -> bool {
    name.starts_with(['.', '_'])
}

/// Where the service's users also have data, if that is what a path which is not there looks like.
fn elsewhere(path: &Path) -> Option<&'static str> {
    let text = path.to_str()?;
    if text.contains("://") { Some("in an object store or on a server") } else { None }
}

/// A file that was asked for by its name.
fn named(path: &Path, task: Task) -> Result<DataFile, DataError> {
    let wrong =
        |found: String| DataError::WrongKind { path: path.to_owned(), found, task, expected: expected(task) };
    let (format, compression) =
        kind(path).ok_or_else(|| wrong(format!("a file of type {:?}", extension(path))))?;
    if format == Format::Text && task != Task::ContinuedPretrain {
        return Err(wrong(format!("a file of type {:?}", extension(path))));
    }
    if format == Format::Parquet && compression != Compression::None {
        return Err(wrong(
            "a packed .parquet file, which must be unpacked (it is compressed inside)".to_owned(),
        ));
    }
    let size = fs::metadata(path).context("read", path)?.len();
    Ok(DataFile { path: path.to_owned(), format, compression, size })
}

/// The files in a folder that the task reads.
fn in_folder(folder: &Path, task: Task) -> Result<Vec<DataFile>, DataError> {
    let mut paths = Vec::new();
    collect(folder, &mut HashSet::new(), &mut paths)?;
    let wrong =
        |found| DataError::WrongKind { path: folder.to_owned(), found, task, expected: expected(task) };
    if let Some(inner) = mds::folder_with_index(&paths)? {
        return Err(wrong(format!(
            "a folder without index.json, but with MDS folders in it, such as {}; name one of them, or several as a list",
            inner.display()
        )));
    }
    if let Some(table) = table_of(paths.iter().map(PathBuf::as_path), folder) {
        return Err(of_table(folder, "a folder with files of a Delta table", table, task));
    }
    let is_text = |path: &PathBuf| kind(path).is_some_and(|(format, _)| format == Format::Text);
    let (texts, rows): (Vec<_>, Vec<_>) = paths.into_iter().partition(is_text);
    let mut chosen = if task == Task::ContinuedPretrain && !texts.is_empty() { texts } else { rows };
    chosen.sort();
    if chosen.is_empty() {
        return Err(wrong("a folder without such files in it".to_owned()));
    }
    chosen.iter().map(|path| named(path, task)).collect()
}

/// Adds the files of a known kind below `folder`. Links to files and folders are followed; one that leads nowhere is an
/// error, since rows would be missing. Links may lead in a circle: a folder that was `seen`, by its canonical path, is
/// not read again. Entries are visited in the order of their names, so that the same one of two ways to a folder is taken
/// each time.
fn collect(folder: &Path, seen: &mut HashSet<PathBuf>, paths: &mut Vec<PathBuf>) -> Result<(), FileError> {
    if !seen.insert(folder.canonicalize().context("resolve", folder)?) {
        return Ok(());
    }
    let entries = fs::read_dir(folder).context("list", folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut entries = entries.collect::<Result<Vec<_>, _>>().context("list", folder)?;
    entries.sort();
    for path in entries {
        if path.file_name().is_some_and(|name| is_of_tools(&name.to_string_lossy())) {
            continue;
        }
        let found = fs::metadata(&path).context("read", &path)?;
        if found.is_dir() {
            collect(&path, seen, paths)?;
        } else if found.is_file() && kind(&path).is_some() {
            paths.push(path);
        }
    }
    Ok(())
}

/// Whether a name is that of a file which is read, by its ending.
pub fn is_file_name(name: &str) -> bool {
    kind(Path::new(name)).is_some()
}

/// What a file's name says of its content.
fn kind(path: &Path) -> Option<(Format, Compression)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let packed = [(".gz", Compression::Gzip), (".zst", Compression::Zstd)];
    let (stem, compression) = packed
        .into_iter()
        .find_map(|(ending, compression)| Some((name.strip_suffix(ending)?, compression)))
        .unwrap_or((&name, Compression::None));
    let format = match stem.rsplit_once('.')?.1 {
        "jsonl" => Format::JsonLines,
        "json" => Format::Json,
        "csv" => Format::Csv,
        "parquet" => Format::Parquet,
        "txt" => Format::Text,
        _ => return None,
    };
    Some((format, compression))
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}
