//! Brings what a url names into the cache.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glob::{MatchOptions, Pattern};
use tessera_checkpoint::dcp::CheckpointName;
use tessera_checkpoint::huggingface::{HubProgress, ModelLocation};
use tessera_data::delta::{Log, TableProblem, names_of_version, table_of_log};
use tessera_data::{Contents, Fetched, Task, table_among, wanted_names};
use tessera_stores::{Object, Place, Problem, Snapshot, StoreError};
use tessera_workspace::Access;

use crate::error::TrainError;
use crate::observe::{Observer, Update};

/// What a pattern is told by, as for paths of this machine.
const PATTERN: [char; 3] = ['*', '?', '['];
/// The endings of what a model's folder is read for.
const MODEL: [&str; 5] = ["json", "safetensors", "jinja", "txt", "model"];
/// The most bytes of a text that names a checkpoint.
const POINTER: u64 = 4096;

/// The files of a source of data: one, those of a folder, or those that a pattern matches, as for paths of this machine.
pub(crate) fn data(
    url: &str,
    task: Task,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<Fetched, TrainError> {
    let (place, objects, is_folder) = match url.find(PATTERN) {
        Some(first) if !url.starts_with("http") => matching(url, first)?,
        _ => file_or_folder(url, task)?,
    };
    let Snapshot { folder, files, version } = fetch(&place, &objects, cache, Some(observer))?;
    // A folder is read as one of this machine is: it may have an index.
    let files = if is_folder { vec![folder.clone()] } else { files };
    Ok(Fetched { folder, contents: Contents::Files(files), version: Some(version) })
}

/// A version of the Delta table at a url, or the newest: its log, then the files that this tells of. `name` is what the run file
/// calls it.
pub(crate) fn table(
    name: &str,
    url: &str,
    access: Access,
    version: Option<u64>,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<Fetched, TrainError> {
    let place = Place::with_credentials(url, &access.into())?;
    let objects = folder(&place)?;
    let pick = |names: &[String]| -> Vec<Object> {
        let names: HashSet<_> = names.iter().map(String::as_str).collect();
        objects.iter().filter(|object| names.contains(object.name.as_str())).cloned().collect()
    };
    let names: Vec<_> = objects.iter().map(|object| object.name.clone()).collect();
    let log = Log::choose(&names, version).map_err(|problem| problem.of(name))?;
    let Log { version, newest, names: log } = log;
    let snapshot = fetch(&place, &pick(&log), cache, Some(observer))?;
    let data = names_of_version(name, &snapshot.folder, version)?;
    let there: HashSet<_> = names.iter().collect();
    if let Some(file) = data.iter().find(|file| !there.contains(file)) {
        return Err(TableProblem::missing(version, newest, file.clone()).of(name).into());
    }
    let Snapshot { folder, .. } = fetch(&place, &pick(&[log, data].concat()), cache, Some(observer))?;
    Ok(Fetched { folder, contents: Contents::Table(version), version: Some(version.to_string()) })
}

/// Whether an error is that of credentials that were good once.
pub(crate) fn is_expired(error: &TrainError) -> bool {
    matches!(error, TrainError::Store(StoreError { problem: Problem::Expired(_), .. }))
}

/// A place, files below it, and whether they are what a folder holds.
type Found = (Place, Vec<Object>, bool);

fn file_or_folder(url: &str, task: Task) -> Result<Found, TrainError> {
    let place = Place::parse(url)?;
    if let Some((folder, file)) = file(&place)? {
        return Ok((folder, file, false));
    }
    let mut objects = folder(&place)?;
    let names: Vec<_> = objects.iter().map(|object| object.name.clone()).collect();
    if let Some(table) = table_among(&names) {
        return Err(of_table(url, &place.join(table)));
    }
    let wanted: HashSet<_> = wanted_names(names, task).into_iter().collect();
    objects.retain(|object| wanted.contains(&object.name));
    if objects.is_empty() {
        let expected = "a folder with files in it that can be read: .jsonl, .json, .csv, .parquet, for CONTINUED_PRETRAIN also .txt";
        return Err(TrainError::unsupported("the data", url, expected.to_owned()));
    }
    Ok((place, objects, true))
}

/// The files whose paths match a pattern, whose first special character is at `first`.
fn matching(url: &str, first: usize) -> Result<Found, TrainError> {
    // All of it is looked at, also what would be part of the pattern.
    Place::parse(url)?;
    let (folder, pattern) = url.split_at(url[..first].rfind('/').map_or(0, |slash| slash + 1));
    let wrong = |error: glob::PatternError| {
        TrainError::unsupported("the data", url, format!("a pattern that can be understood: {error}"))
    };
    let pattern = Pattern::new(pattern).map_err(wrong)?;
    let place = Place::parse(folder)?;
    // A star stays within a folder.
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
    let mut objects = place.list()?;
    let tables: HashSet<_> =
        objects.iter().filter_map(|object| table_of_log(&object.name)).map(PathBuf::from).collect();
    objects.retain(|object| pattern.matches_with(&object.name, options));
    let mut folders = objects.iter().flat_map(|object| Path::new(&object.name).ancestors().skip(1));
    if let Some(table) = folders.find(|&folder| tables.contains(folder)) {
        return Err(of_table(url, &place.join(&table.to_string_lossy())));
    }
    match objects.is_empty() {
        true => Err(nothing_at(url).into()),
        false => Ok((place, objects, false)),
    }
}

/// The error of a url that would also mean files of other versions of a table.
fn of_table(url: &str, table: &Place) -> TrainError {
    let expected = format!("a Delta table to be named as one: delta:{table}");
    TrainError::unsupported("the data", url, expected)
}

/// A model's folder in Hugging Face layout, or a `.gguf` file.
pub(crate) fn model(
    url: &str,
    cache: &Path,
    observer: Option<&Arc<dyn Observer>>,
) -> Result<ModelLocation, TrainError> {
    let place = Place::parse(url)?;
    if url.to_ascii_lowercase().ends_with(".gguf") {
        let (folder, objects) = file(&place)?.ok_or_else(|| nothing_at(url))?;
        let mut files = fetch(&folder, &objects, cache, observer)?.files;
        return Ok(ModelLocation::Gguf(files.swap_remove(0)));
    }
    let mut objects = folder(&place)?;
    // What a model is made of lies on top.
    let ending = |name: &str| name.rsplit_once('.').map(|(_, ending)| ending.to_owned());
    let is_of_model = |name: &str| {
        !name.contains('/') && ending(name).is_some_and(|ending| MODEL.contains(&ending.as_str()))
    };
    objects.retain(|object| is_of_model(&object.name));
    if !objects.iter().any(|object| object.name == "config.json") {
        let expected = "a folder in Hugging Face layout, with a config.json, or a .gguf file".to_owned();
        return Err(TrainError::unsupported("model", url, expected));
    }
    Ok(ModelLocation::Folder(fetch(&place, &objects, cache, observer)?.folder))
}

/// A checkpoint: a folder `ep#-ba#`, a text `….symlink` that names one beside it, or a Composer `.pt`. `key` is what named it.
pub(crate) fn weights(
    key: &'static str,
    url: &str,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<PathBuf, TrainError> {
    let mut place = Place::parse(url)?;
    if url.ends_with(".symlink") {
        let text = String::from_utf8_lossy(&place.read(POINTER)?).trim().to_owned();
        let name = text.rsplit('/').next().unwrap_or_default();
        let beside = place.parent().filter(|_| name.parse::<CheckpointName>().is_ok());
        let Some((checkpoints, _)) = beside else {
            let expected = "a text that names a checkpoint, ep<epoch>-ba<batch>, beside it".to_owned();
            return Err(TrainError::unsupported(key, url, expected));
        };
        place = checkpoints.join(name);
    } else if let Some((folder, objects)) = file(&place)? {
        let mut files = fetch(&folder, &objects, cache, Some(observer))?.files;
        return Ok(files.swap_remove(0));
    }
    let mut objects = folder(&place)?;
    objects.retain(|object| object.name == ".metadata" || object.name.ends_with(".distcp"));
    if !objects.iter().any(|object| object.name == ".metadata") {
        let expected = "a folder with .metadata, which is written last, a .symlink, or a .pt file".to_owned();
        return Err(TrainError::unsupported(key, url, expected));
    }
    Ok(fetch(&place, &objects, cache, Some(observer))?.folder)
}

/// The file at a place, told from the folder that it is in; `None` if the place is none.
fn file(place: &Place) -> Result<Option<(Place, Vec<Object>)>, StoreError> {
    let (Some(object), Some((folder, name))) = (place.file()?, place.parent()) else { return Ok(None) };
    Ok(Some((folder, vec![Object { name, ..object }])))
}

/// What lies in a folder that must be there.
fn folder(place: &Place) -> Result<Vec<Object>, StoreError> {
    if place.is_single_file() {
        return Err(nothing_at(&place.to_string()));
    }
    let objects = place.list()?;
    if objects.is_empty() { Err(nothing_at(&place.to_string())) } else { Ok(objects) }
}

fn nothing_at(url: &str) -> StoreError {
    StoreError { url: url.to_owned(), problem: Problem::NotFound }
}

/// Brings files into the cache, and tells of them.
fn fetch(
    place: &Place,
    objects: &[Object],
    cache: &Path,
    observer: Option<&Arc<dyn Observer>>,
) -> Result<Snapshot, StoreError> {
    place.fetch(objects, cache, &|object, done| {
        if let Some(observer) = observer {
            let progress = HubProgress { file: &object.name, done, total: object.size };
            observer.observe(Update::Downloading(progress));
        }
    })
}
