//! Runs at a url, for whoever asks about them. Nothing of what they say there is kept here.
//!
//! What tells of a run are small files. They are brought into a folder that lasts as long as the question, and read as those of a run
//! of this machine are. What takes room, its checkpoints and models, is told of by the listing alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tempfile::TempDir;
use tessera_checkpoint::dcp::{CheckpointName, LATEST_TEXT};
use tessera_files::{FileError, IoContext};
use tessera_stores::{Object, Place, StoreError};
use tessera_track::{EVENTS_FILE, METRICS_FILE, RunListing, RunSummary, StoredFolder, TrackError, read_run};

use super::mirror::{CHECKPOINTS, CONFIG, EXPORTS, METADATA, MOST_RUN_FILE, RUN_FILE};
use crate::error::TrainError;
use crate::plan::file_error;
use crate::state::checkpoints::ListedCheckpoint;

/// The object that asks the run at a url to stop, as the file of this name does in its folder.
pub(super) const CANCEL: &str = ".cancel";
/// The most bytes of a file that tells of a run.
const MOST: u64 = 1 << 30;
/// The bytes of its metrics that tell how far a run has come.
const END: u64 = 1 << 20;
/// The object by which a process that works on a run at a url tells that it does, each half minute.
pub(super) const ALIVE: &str = ".alive";
/// The object whose time says what time it is at the store.
const CLOCK: &str = ".clock";
/// A process that has given no sign of life for so long is gone, or cut off from the store. One whose sign was lost gives the next
/// much earlier.
const ALIVE_FOR: Duration = Duration::from_secs(120);

/// A run at a url, with a copy of the files that tell of it.
pub struct StoredRun {
    place: Place,
    /// What lies there.
    objects: Vec<Object>,
    copy: TempDir,
}

impl StoredRun {
    /// Looks at the run at a url.
    ///
    /// # Errors
    /// When there is none, or the store refuses or cannot be reached.
    pub fn open(url: &str) -> Result<Self, TrainError> {
        let place = Place::parse(url)?;
        let objects = place.list()?;
        Self::of(place, objects)
    }

    fn of(place: Place, objects: Vec<Object>) -> Result<Self, TrainError> {
        let copy = tempfile::tempdir()
            .map_err(|source| file_error("create a folder in", &std::env::temp_dir(), source))?;
        let run = Self { place, objects, copy };
        if run.object(EVENTS_FILE).is_none() {
            return Err(TrackError::NotARun { folder: run.url().into() }.into());
        }
        run.bring(EVENTS_FILE)?;
        run.bring(RUN_FILE)?;
        Ok(run)
    }

    /// The url.
    pub fn url(&self) -> String {
        self.place.to_string()
    }

    /// The folder in which its small files are: `run.yaml`, `events.jsonl`, and of `metrics.jsonl` what was asked for.
    pub fn folder(&self) -> &Path {
        self.copy.path()
    }

    /// What is known of it; its folder is the url.
    ///
    /// # Errors
    /// When a file of it is damaged, or the store refuses or cannot be reached.
    pub fn summary(&self) -> Result<RunSummary, TrainError> {
        if !self.folder().join(METRICS_FILE).exists() {
            self.bring_end(METRICS_FILE)?;
        }
        let summary = read_run(self.folder()).map_err(|error| self.named(error))?;
        Ok(RunSummary {
            name: self.place.parent().map_or_else(|| self.url(), |(_, name)| name),
            folder: self.url().into(),
            checkpoints: self
                .stored(CHECKPOINTS, METADATA, |name| Some(name.parse::<CheckpointName>().ok()?.batch)),
            exports: self.stored(EXPORTS, CONFIG, |name| name.strip_prefix("ba")?.parse().ok()),
            ..summary
        })
    }

    /// Brings all of its metrics.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub fn bring_metrics(&self) -> Result<(), TrainError> {
        self.bring(METRICS_FILE)
    }

    /// Brings its events as they are by now.
    ///
    /// # Errors
    /// When they are gone, or the store refuses or cannot be reached.
    pub fn look_again(&self) -> Result<(), TrainError> {
        self.bring(EVENTS_FILE)
    }

    /// An error of a file of the copy, told of the url.
    pub fn named(&self, mut error: TrackError) -> TrackError {
        if let TrackError::BadLine { path, .. } | TrackError::RunFile { path, .. } = &mut error
            && let Ok(name) = path.strip_prefix(self.folder())
        {
            *path = self.place.join(&name.to_string_lossy()).to_string().into();
        }
        error
    }

    /// When something that tells of it was uploaded last.
    pub fn uploaded(&self) -> Timestamp {
        // What is hidden is no part of the run.
        let logs =
            self.objects.iter().filter(|object| !object.name.contains('/') && !object.name.starts_with('.'));
        let newest = logs.map(|object| object.modified).max().unwrap_or_default();
        Timestamp::from_millisecond(newest).unwrap_or_default()
    }

    /// How long ago a process that may work on it by now gave its last sign of life; `None`: none does. What the run says of itself
    /// does not count, since its last words are uploaded before the last of its model.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub fn last_sign_of_life(&self) -> Result<Option<Duration>, TrainError> {
        let Some(sign) = self.place.join(ALIVE).file()? else { return Ok(None) };
        Ok(age_of_sign(sign.modified, self.time_at_the_store()?))
    }

    /// The store's time, in milliseconds since 1970. This machine's may be another, by which a run that works would pass for a dead one.
    fn time_at_the_store(&self) -> Result<i64, TrainError> {
        let clock = self.place.join(CLOCK);
        clock.write(Vec::new())?;
        let written = clock.file()?;
        clock.delete()?;
        Ok(written.map_or_else(|| Timestamp::now().as_millisecond(), |written| written.modified))
    }

    /// Asks it to stop. The process that works on it finds the word beside its uploads.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub fn request_cancel(&self) -> Result<(), TrainError> {
        Ok(self.place.join(CANCEL).write(Vec::new())?)
    }

    /// Removes all that lies there. What makes checkpoints and models whole goes first, so that none is taken for whole meanwhile;
    /// the events go last, so that what is broken off can be done again.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub fn delete(&self) -> Result<(), TrainError> {
        let mut names: Vec<_> = self.place.list()?.into_iter().map(|object| object.name).collect();
        names.sort_by_key(|name| match name.rsplit('/').next().unwrap_or_default() {
            LATEST_TEXT => 0,
            METADATA | CONFIG => 1,
            EVENTS_FILE => 3,
            _ => 2,
        });
        Ok(names.iter().try_for_each(|name| self.place.join(name).delete())?)
    }

    fn object(&self, name: &str) -> Option<&Object> {
        self.objects.iter().find(|object| object.name == name)
    }

    /// Brings a file, if it is there.
    fn bring(&self, name: &str) -> Result<(), TrainError> {
        let Some(object) = self.object(name) else { return Ok(()) };
        self.keep(object, &self.place.join(name).read(MOST)?)
    }

    /// Brings the whole lines at the end of a file, if it is there.
    fn bring_end(&self, name: &str) -> Result<(), TrainError> {
        let Some(object) = self.object(name) else { return Ok(()) };
        let bytes = self.place.join(name).read_end(object, END)?;
        let is_cut = object.size > bytes.len() as u64;
        let line = bytes.iter().position(|&byte| byte == b'\n').filter(|_| is_cut);
        self.keep(object, &bytes[line.map_or(0, |end| end + 1)..])
    }

    /// Writes a file of the copy. It is as old as the one in the store: when a run ends is reckoned from there.
    fn keep(&self, object: &Object, content: &[u8]) -> Result<(), TrainError> {
        let path = self.folder().join(&object.name);
        fs::write(&path, content).context("write", &path)?;
        let written = Duration::from_millis(u64::try_from(object.modified).unwrap_or_default());
        let file = File::options().write(true).open(&path).context("open", &path)?;
        file.set_modified(SystemTime::UNIX_EPOCH + written).context("date", &path)?;
        Ok(())
    }

    /// The folders below `parent` that have a file by which they are whole, oldest first.
    fn stored(&self, parent: &str, whole: &str, batch_of: impl Fn(&str) -> Option<u64>) -> Vec<StoredFolder> {
        let mut found: Vec<_> = folders(&self.objects, parent)
            .into_iter()
            .filter(|(_, files)| files.iter().any(|file| file.name == whole))
            .filter_map(|(name, files)| {
                let bytes = files.iter().map(|file| file.size).sum();
                Some(StoredFolder { batch: batch_of(&name)?, name, bytes })
            })
            .collect();
        found.sort_by_key(|folder| folder.batch);
        found
    }
}

/// The age of a sign of life at this time, both in milliseconds; `None`: it is too old to count.
fn age_of_sign(given: i64, now: i64) -> Option<Duration> {
    // A store of many machines may have several clocks.
    let age = Duration::from_millis(u64::try_from(now - given).unwrap_or_default());
    (age < ALIVE_FOR).then_some(age)
}

/// Reads every run at a url, as those in a folder are read. One that the store does not give hides no other.
///
/// # Errors
/// When the url cannot be listed.
pub fn list_runs(url: &str) -> Result<RunListing, TrainError> {
    let place = Place::parse(url)?;
    let mut read = Vec::new();
    for (name, objects) in folders(&place.list()?, "") {
        if objects.iter().any(|object| object.name == EVENTS_FILE) {
            match StoredRun::of(place.join(&name), objects).and_then(|run| run.summary()) {
                Ok(run) => read.push(Ok(run)),
                Err(TrainError::Track(error)) => read.push(Err(error)),
                Err(TrainError::Store(StoreError { url, problem })) => {
                    let source = std::io::Error::other(problem);
                    read.push(Err(FileError { action: "read", path: url.into(), source }.into()));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(read.into_iter().collect())
}

/// The whole checkpoints of a run at a url, or of its folder `checkpoints`, newest first.
///
/// # Errors
/// When nothing is there, or the store refuses or cannot be reached.
pub(crate) fn list_checkpoints(url: &str) -> Result<Vec<ListedCheckpoint>, TrainError> {
    let mut place = Place::parse(url)?;
    let mut objects = place.list()?;
    if objects.is_empty() {
        let expected = "a run's url, or that of its folder `checkpoints`".into();
        return Err(TrainError::unsupported("folder", url, expected));
    }
    let is_of_a_run = |object: &Object| object.name.starts_with(&format!("{CHECKPOINTS}/"));
    if objects.iter().any(is_of_a_run) {
        place = place.join(CHECKPOINTS);
        objects = place.list()?;
    }
    let listed = folders(&objects, "").into_iter().filter_map(|(name, files)| {
        let CheckpointName { epoch, batch } = name.parse().ok()?;
        files.iter().find(|file| file.name == METADATA)?;
        let (folder, bytes) =
            (PathBuf::from(place.join(&name).to_string()), files.iter().map(|file| file.size).sum());
        Some(ListedCheckpoint { name, folder, epoch, batch, bytes })
    });
    let mut listed: Vec<_> = listed.collect();
    listed.sort_by_key(|checkpoint| std::cmp::Reverse((checkpoint.batch, checkpoint.epoch)));
    Ok(listed)
}

/// The run file at a url.
///
/// # Errors
/// When nothing is there, it is large, or the store refuses or cannot be reached.
pub fn run_file(url: &str) -> Result<String, TrainError> {
    let read = Place::parse(url)?.read(MOST_RUN_FILE)?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// What was listed, by the folders directly inside `parent`, with the names that files have in them.
fn folders(objects: &[Object], parent: &str) -> BTreeMap<String, Vec<Object>> {
    let mut found: BTreeMap<String, Vec<Object>> = BTreeMap::new();
    for object in objects {
        let inner = object.name.strip_prefix(parent);
        let inner =
            inner.and_then(|name| if parent.is_empty() { Some(name) } else { name.strip_prefix('/') });
        if let Some((folder, name)) = inner.and_then(|name| name.split_once('/')) {
            let object = Object { name: name.to_owned(), ..object.clone() };
            found.entry(folder.to_owned()).or_default().push(object);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_life_counts_while_it_is_young_or_by_a_clock_that_is_ahead() {
        let second = |seconds: u64| Some(Duration::from_secs(seconds));
        assert_eq!(age_of_sign(1_000_000, 1_000_000), second(0));
        assert_eq!(age_of_sign(1_000_000, 1_119_000), second(119));
        assert_eq!(age_of_sign(1_000_000, 1_120_000), None);
        assert_eq!(age_of_sign(1_000_000, 900_000), second(0));
    }
}
