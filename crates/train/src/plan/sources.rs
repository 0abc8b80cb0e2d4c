//! Data that is not on this machine is brought here before it is read.

use std::path::Path;
use std::sync::Arc;

use tessera_checkpoint::huggingface::{HubProgress, HubSplit, SplitFiles};
use tessera_data::{Contents, DataSettings, Fetched, Task, wanted_names};
use tessera_workspace::{FetchedVolume, Request, VolumePath, Workspace, cached};

use super::{Findings, Pins, hub_options, tables};
use crate::elsewhere;
use crate::error::TrainError;
use crate::observe::{Observer, Update};

/// Fetches the sources that name something elsewhere and nothing that is here: what rank 0 has found, if it is `known`, else in the
/// version of the `pins` where those know one. What has no cache of its own comes into `cache`.
pub(super) fn fetch(
    data: &mut DataSettings,
    known: &Findings,
    pins: Option<&Pins>,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<(), TrainError> {
    for source in &mut data.sources {
        if Path::new(&source.path).exists() {
            continue;
        }
        if let Some(fetched) = known.source(&source.path) {
            source.fetched = Some(fetched.clone());
            continue;
        }
        if elsewhere::is_url(&source.path) {
            source.fetched = Some(elsewhere::data(&source.path, data.task, cache, observer)?);
            continue;
        }
        let version = known.version(&source.path).or_else(|| pins?.version(&source.path));
        if let Some(fetched) = tables::fetch(&source.path, version, cache, observer)? {
            source.fetched = Some(fetched);
            continue;
        }
        source.fetched = match VolumePath::parse(&source.path)? {
            Some(path) => Some(volume(&path, data.task, version, &cache.join("volumes"), observer)?),
            None => split(&source.path, version, observer)?,
        };
    }
    Ok(())
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
fn volume(
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
    let fetched = here.map_or_else(
        || {
            let choose = |names| wanted_names(names, task);
            let progress = |file: &str, done, total| {
                observer.observe(Update::Downloading(HubProgress { file, done, total }));
            };
            let request = Request { path, cache, choose: &choose, version, progress: &progress };
            let why = format!("{path} is on a workspace, and /Volumes is not mounted here");
            Workspace::find(&why, |name| std::env::var(name).ok())?.fetch(&request)
        },
        Ok,
    )?;
    let FetchedVolume { folder, path, version } = fetched;
    Ok(Fetched { folder, contents: Contents::Files(vec![path]), version: Some(version) })
}
