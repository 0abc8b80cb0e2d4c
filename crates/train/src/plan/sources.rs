//! Data that is not on this machine is brought here before it is read.

use std::path::Path;
use std::sync::Arc;

use tessera_checkpoint::huggingface::{HubSplit, SplitFiles};
use tessera_data::{DataSettings, Fetched};

use super::Pins;
use super::hub_options;
use crate::elsewhere;
use crate::error::TrainError;
use crate::observe::Observer;

/// Fetches the sources that name a split of a data set on the hub and nothing that is here, in the version of the `pins` where
/// those know one, and those that are named by a url, into the `cache`.
pub(super) fn fetch(
    data: &mut DataSettings,
    pins: Option<&Pins>,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<(), TrainError> {
    for source in &mut data.sources {
        if Path::new(&source.path).exists() {
            continue;
        }
        if elsewhere::is_url(&source.path) {
            source.fetched = Some(elsewhere::data(&source.path, data.task, cache, observer)?);
            continue;
        }
        let Some(mut split) = HubSplit::parse(&source.path) else { continue };
        if let Some(version) = pins.and_then(|pins| pins.version(&source.path)) {
            split.revision = Some(version.to_owned());
        }
        let fetched = split.fetch(&hub_options(Some(observer.clone())));
        let SplitFiles { commit, folder, files } =
            fetched.map_err(|error| TrainError::DataSet { path: source.path.clone(), source: error })?;
        source.fetched = Some(Fetched { folder, files, version: commit });
    }
    Ok(())
}
