//! Delta tables as data: by a path or url, or by the name that they have in Unity Catalog.
//!
//! A table of this machine is read where it is; one in a store is brought here first. Either way the version is settled
//! here: the one that a run began with, the one that the run file names, or the newest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tessera_data::delta::{TableAddress, version_here};
use tessera_data::{Contents, Fetched, is_file_name};
use tessera_workspace::{Access, TableName, TablePlace, VolumePath, Workspace};

use crate::elsewhere;
use crate::error::TrainError;
use crate::observe::Observer;

/// How often credentials of the catalogue, which last an hour, may expire while a table is fetched.
const RENEWALS: usize = 24;

/// The table that `path` names, in the version `pinned`, if that is known; `None`: the path names none.
pub(super) fn fetch(
    path: &str,
    pinned: Option<&str>,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<Option<Fetched>, TrainError> {
    let table = TableAddress::parse(path);
    let (location, mut access, wanted, catalog) = if let Some(TableAddress { place, version }) = table {
        (place, Access::Local, version, None)
    } else if let Some((name, version)) = in_catalog(path)? {
        let why = format!("{path} is no file or folder here, so it means a table of Unity Catalog");
        let workspace = Workspace::find(&why, |name| std::env::var(name).ok())?;
        let TablePlace { location, access } = workspace.table(&name)?;
        (location, access, version, Some((workspace, name)))
    } else {
        return Ok(None);
    };
    let version = pinned.and_then(|pinned| pinned.parse().ok()).or(wanted);
    if elsewhere::is_url(&location) {
        let mut renewals = 0..RENEWALS;
        loop {
            let fetched = elsewhere::table(path, &location, access, version, cache, observer);
            match (&catalog, &fetched) {
                // What was fetched is kept: with new ones it goes on from there.
                (Some((workspace, name)), Err(error))
                    if elsewhere::is_expired(error) && renewals.next().is_some() =>
                {
                    access = workspace.table(name)?.access;
                }
                _ => return fetched.map(Some),
            }
        }
    }
    let folder = here(path, &location)?;
    let version = version_here(path, &folder, version)?;
    Ok(Some(Fetched { folder, contents: Contents::Table(version), version: Some(version.to_string()) }))
}

/// The folder of a table that is on this machine.
fn here(path: &str, location: &str) -> Result<PathBuf, TrainError> {
    let Some(volume) = VolumePath::parse(location)? else { return Ok(PathBuf::from(location)) };
    volume.mounted(Path::new("/")).ok_or_else(|| {
        let expected = "a table whose volume is mounted here at /Volumes, a folder, or a url of the store that it lies in";
        TrainError::unsupported("the data", path, expected.to_owned())
    })
}

/// The name of a table in Unity Catalog, with the version behind an `@`.
fn in_catalog(path: &str) -> Result<Option<(TableName, Option<u64>)>, TrainError> {
    let (name, version) = TableAddress::split(path);
    // `a.b.jsonl` is a file that is not there, as are `./a` and `~/a`.
    if is_file_name(name)
        || name.contains(['/', ':', '*', '?', '['])
        || !name.contains('.')
        || name.starts_with('.')
    {
        return Ok(None);
    }
    match TableName::parse(name) {
        Some(name) => Ok(Some((name, version))),
        None => Err(TrainError::NoTableName { path: path.to_owned() }),
    }
}
