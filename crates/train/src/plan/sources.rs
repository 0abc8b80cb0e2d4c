//! Data that is not on this machine is brought here before it is read.

use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;

use tessera_checkpoint::huggingface::{HubProgress, HubSplit, SplitFiles};
use tessera_data::{Contents, DataSettings, Fetched, Task, table_among, wanted_names};
use tessera_workspace::{FetchedVolume, Request, VolumePath, Workspace, cached};

use super::{Findings, Pins, hub_options, tables};
use crate::elsewhere;
use crate::error::TrainError;
use crate::observe::{Observer, Update};

/// Fetches the sources that name something elsewhere and nothing that is here: what has been found, by rank 0 or for another split,
/// if it is `known`, else in the version of the `pins` where those know one. What is found is known from then on. What has no cache
/// of its own comes into `cache`.
pub(super) fn fetch(
    data: &mut DataSettings,
    known: &mut Findings,
    pins: Option<&Pins>,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<(), TrainError> {
    for source in &mut data.sources {
        if Path::new(&source.path).exists() {
            continue;
        }
        source.fetched = match known.source(&source.path) {
            Some(fetched) => Some(fetched.clone()),
            None => {
                let version = known.version(&source.path).or_else(|| pins?.version(&source.path));
                find(&source.path, data.task, version, cache, observer)?
            }
        };
        if let Some(fetched) = &source.fetched {
            known.add(&source.path, fetched);
        }
    }
    Ok(())
}

/// Fetches what `path` names elsewhere; `None`: nothing that is known.
fn find(
    path: &str,
    task: Task,
    version: Option<&str>,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<Option<Fetched>, TrainError> {
    if elsewhere::is_url(path) {
        return elsewhere::data(path, task, cache, observer).map(Some);
    }
    if let Some(fetched) = tables::fetch(path, version, cache, observer)? {
        return Ok(Some(fetched));
    }
    match VolumePath::parse(path)? {
        Some(volume) => fetch_volume(&volume, task, version, &cache.join("volumes"), observer).map(Some),
        None => split(path, version, observer),
    }
}

/// A split of a data set on the hub; `None`: the path names none.
fn split(
    path: &str,
    version: Option<&str>,
    observer: &Arc<dyn Observer>,
) -> Result<Option<Fetched>, TrainError> {
    let Some(mut split) = HubSplit::parse(path) else { return Ok(None) };
    if let Some(version) = version {
        split.revision = Some(version.to_owned());
    }
    let fetched = split.fetch(&hub_options(Some(observer.clone())));
    let SplitFiles { commit, folder, files } =
        fetched.map_err(|source| TrainError::DataSet { path: path.to_owned(), source })?;
    Ok(Some(Fetched { folder, contents: Contents::Files(files), version: Some(commit) }))
}

/// A file or folder of a volume, which is mounted where the workspace's own machines have it, or else fetched from there.
fn fetch_volume(
    path: &VolumePath,
    task: Task,
    version: Option<&str>,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<Fetched, TrainError> {
    if let Some(mounted) = path.mounted(Path::new("/")) {
        let contents = Contents::Files(vec![mounted.clone()]);
        return Ok(Fetched { folder: mounted, contents, version: None });
    }
    let here = version.and_then(|version| cached(path, cache, version));
    let table = OnceCell::new();
    let fetched = here.map_or_else(
        || {
            let choose = |names: Vec<String>| match table_among(&names) {
                Some(found) => {
                    table.get_or_init(|| found.to_owned());
                    Vec::new()
                }
                None => wanted_names(names, task),
            };
            let progress = |file: &str, done, total| {
                observer.observe(Update::Downloading(HubProgress { file, done, total }));
            };
            let request = Request { path, cache, choose: &choose, version, progress: &progress };
            let why = format!("{path} is on a workspace, and /Volumes is not mounted here");
            Workspace::find(&why, |name| std::env::var(name).ok())?.fetch(&request)
        },
        Ok,
    );
    let fetched = fetched.map_err(|error| match table.get() {
        Some(table) => of_table(path, table),
        None => error.into(),
    })?;
    let FetchedVolume { folder, path, version } = fetched;
    Ok(Fetched { folder, contents: Contents::Files(vec![path]), version: Some(version) })
}

/// The error of a folder with a table at `table` below it, of which all versions would be fetched.
fn of_table(path: &VolumePath, table: &str) -> TrainError {
    let (path, separator) = (path.to_string(), if table.is_empty() { "" } else { "/" });
    let mounted = path.trim_start_matches("dbfs:");
    let expected = format!(
        "a Delta table to be named as one: by its name in Unity Catalog, catalog.schema.table, or as \
         delta:{mounted}{separator}{table}, for which /Volumes has to be mounted here"
    );
    TrainError::unsupported("the data", path, expected)
}
