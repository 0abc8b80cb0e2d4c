//! What is done before a run begins whose results go to a url: whether what lies there is this run is made sure, and what
//! this machine lacks of it is brought here.
//!
//! Nothing at the url is changed, and nothing here before both places are known to hold the same run.

use std::fs;
use std::path::Path;

use tessera_checkpoint::dcp::{CheckpointName, list_checkpoints, point_latest};
use tessera_checkpoint::huggingface::HubProgress;
use tessera_files::{AtomicFolder, IoContext};
use tessera_stores::{Object, Place, StoreError};

use super::local::{Stamp, identity};
use super::remote::{CHECKPOINTS, METADATA, MOST_METADATA, RemoteRun, is_log};
use crate::error::TrainError;
use crate::observe::Update;
use crate::plan::Settings;
use crate::state;

pub(in super::super) const RUN_FILE: &str = "run.yaml";
/// The most bytes of a `run.yaml` that is read.
pub(in super::super) const MOST_RUN_FILE: u64 = 1 << 24;

impl RemoteRun {
    /// Fails unless what lies at the url is the run of these settings, or nothing that could be lost.
    pub(super) fn compare(&self, settings: &Settings) -> Result<(), TrainError> {
        let here = fs::read_to_string(self.folder.join(RUN_FILE)).ok();
        let there = match self.place.join(RUN_FILE).read(MOST_RUN_FILE) {
            Err(error) if error.is_not_found() && self.checkpoints.is_empty() => return Ok(()),
            Err(error) if error.is_not_found() => {
                return Err(self.other_run("it has checkpoints, but no run.yaml that says whose".to_owned()));
            }
            read => String::from_utf8_lossy(&read?).into_owned(),
        };
        // A run that began here and saved nothing may begin again with other settings.
        if self.checkpoints.is_empty() && here.as_ref() == Some(&there) {
            return Ok(());
        }
        match difference(settings, &there)? {
            Some(difference) => Err(self.other_run(format!("{difference} at the url"))),
            None => Ok(()),
        }
    }

    /// Fails unless what lies here is the run of these settings, or nothing.
    fn compare_here(&self, settings: &Settings) -> Result<(), TrainError> {
        let run_file = fs::read_to_string(self.folder.join(RUN_FILE)).ok();
        let mut found = run_file.map(|text| difference(settings, &text)).transpose()?.flatten();
        if found.is_none()
            && let Some(saved) = state::newest(&self.folder.join(CHECKPOINTS))?
        {
            found = difference_of(settings, &saved.settings)?;
        }
        match found {
            Some(difference) => Err(self.other_run(format!("{difference} on this machine"))),
            None => Ok(()),
        }
    }

    /// Fetches the newest checkpoint, and the files beside it, if this machine has none as new.
    pub(super) fn bring_newest_here(&mut self, settings: &Settings) -> Result<(), TrainError> {
        let Some(&newest) = self.checkpoints.last() else { return Ok(()) };
        if !settings.autoresume {
            return Err(TrainError::AlreadyStarted { folder: self.url().into() });
        }
        let here = list_checkpoints(&self.folder.join(CHECKPOINTS))?;
        if here.first().is_some_and(|here| *here >= newest) {
            self.compare_newest_common(&here)?;
        } else {
            self.compare_here(settings)?;
            self.bring(newest)?;
        }
        self.know_what_is_here(newest)
    }

    /// Fails if a checkpoint that both places have was not saved once and copied.
    fn compare_newest_common(&self, here: &[CheckpointName]) -> Result<(), TrainError> {
        let Some(common) = here.iter().find(|name| self.checkpoints.contains(name)) else { return Ok(()) };
        let there = self.checkpoint(*common).join(METADATA).read(MOST_METADATA)?;
        let path = self.folder.join(CHECKPOINTS).join(common.to_string()).join(METADATA);
        if fs::read(&path).context("read", &path)? == there {
            return Ok(());
        }
        Err(self.other_checkpoint(*common))
    }

    /// Downloads first, so that a store that goes away leaves what is here as it was. The checkpoint gets its name last: without
    /// it all is brought again.
    fn bring(&mut self, newest: CheckpointName) -> Result<(), TrainError> {
        let checkpoints = self.folder.join(CHECKPOINTS);
        fs::create_dir_all(&checkpoints).context("create", &checkpoints)?;
        let (place, name) = (self.checkpoint(newest), newest.to_string());
        let folder = AtomicFolder::create(&checkpoints.join(&name))?;
        for object in place.list()?.iter().filter(|object| !object.name.contains('/')) {
            self.fetch(&place.join(&object.name), object, &folder.folder().join(&object.name))?;
        }
        for object in self.place.list()?.iter().filter(|object| is_log(&object.name)) {
            self.fetch(&self.place.join(&object.name), object, &self.folder.join(&object.name))?;
        }
        folder.finish()?;
        point_latest(&checkpoints, newest)?;
        Ok(())
    }

    /// What is here and no newer than the newest there is this run's, and is not to be uploaded.
    fn know_what_is_here(&mut self, newest: CheckpointName) -> Result<(), TrainError> {
        let checkpoints = self.folder.join(CHECKPOINTS);
        for name in list_checkpoints(&checkpoints)?.into_iter().filter(|name| *name <= newest) {
            let path = checkpoints.join(name.to_string()).join(METADATA);
            self.ours.insert(identity(&fs::read(&path).context("read", &path)?));
            self.confirmed.extend(Stamp::of(&path).map(|stamp| (name, stamp)));
        }
        Ok(())
    }

    fn fetch(&self, place: &Place, object: &Object, path: &Path) -> Result<(), StoreError> {
        place.download(object, path, &mut |done| {
            let progress = HubProgress { file: &object.name, done, total: object.size };
            self.observer.observe(Update::Downloading(progress));
        })
    }
}

/// In what settings differ from those of a run that is described by its `run.yaml`, in words.
fn difference(settings: &Settings, run_file: &str) -> Result<Option<String>, TrainError> {
    match serde_saphyr::from_str(run_file) {
        Ok(saved) => difference_of(settings, &saved),
        Err(_) => Ok(Some("run.yaml cannot be read".to_owned())),
    }
}

fn difference_of(settings: &Settings, saved: &serde_json::Value) -> Result<Option<String>, TrainError> {
    let mut settings = settings.clone();
    settings.keep_resolved(saved);
    let difference = settings.difference(saved)?;
    Ok(difference
        .map(|found| format!("{} is {} in the run file, and was {}", found.key, found.now, found.before)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::spec::RunSpec;
    use tessera_model::config::ModelConfig;

    fn settings(learning_rate: &str) -> Settings {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens/tied_gqa/config.json");
        let text = "model: m\ntrain_data_path: [{path: a, weight: 0.1}, {path: b, weight: 3}]\nscheduler: {name: cosine_with_warmup, t_warmup: 0.1dur}";
        let arguments = [format!("learning_rate={learning_rate}")];
        let spec = RunSpec::parse(text, Path::new("run.yaml"), &arguments).unwrap();
        Settings::resolve(spec, &ModelConfig::load(&model).unwrap(), || None).unwrap()
    }

    #[test]
    fn a_run_file_that_was_written_differs_from_its_settings_in_nothing() {
        for learning_rate in ["1e-5", "1.0", "0.0003", "1e-10", "2e-05"] {
            let settings = settings(learning_rate);
            let written = serde_saphyr::to_string(&settings).unwrap();
            assert_eq!(difference(&settings, &written).unwrap(), None, "{written}");
            let other = difference(&self::settings("0.5"), &written).unwrap().unwrap();
            assert!(other.starts_with("learning_rate is 0.5 in the run file, and was "), "{other}");
        }
        let other = difference(&settings("1e-5"), "- a list\n").unwrap();
        assert!(other.is_some());
    }
}
