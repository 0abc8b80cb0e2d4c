//! A run as it lies at a url, laid out as on this machine, and what it takes to make it like the one here.
//!
//! The order of uploads is what makes the copy good at any moment: checkpoints come before exports; of a checkpoint its shards
//! come first, then the logs that led to it, `.metadata` next to last, and the text that names the latest only once the store has
//! confirmed them all. What this run did not put there is neither replaced nor removed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tessera_checkpoint::dcp::{CheckpointName, LATEST_TEXT, list_checkpoints};
use tessera_checkpoint::huggingface::HubProgress;
use tessera_stores::{Object, Place, Problem, StoreError};

use super::local::{OpenCheckpoint, Opened, Stamp, entries, identity, open};
use super::word::Word;
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::Settings;
use crate::spec::CheckpointsToKeep;

pub(in super::super) const CHECKPOINTS: &str = "checkpoints";
pub(in super::super) const EXPORTS: &str = "huggingface";
/// What makes a checkpoint whole.
pub(in super::super) const METADATA: &str = ".metadata";
/// What makes an export whole, for those who look at it at the url: it is uploaded last.
pub(in super::super) const CONFIG: &str = "config.json";
/// The most bytes of a `.metadata` that is compared.
pub(super) const MOST_METADATA: u64 = 1 << 30;
/// By how much a store rounds the time of an object down.
const ROUNDING: Duration = Duration::from_secs(1);

/// The run at the url, as far as is known.
pub(super) struct RemoteRun {
    pub(super) place: Place,
    pub(super) folder: PathBuf,
    keep: Option<usize>,
    pub(super) observer: Arc<dyn Observer>,
    /// Whether the run is over, so that uploads are told. Gone when nobody waits for them any more.
    is_ending: Weak<AtomicBool>,
    /// Each log as it was uploaded.
    logs: HashMap<PathBuf, Stamp>,
    /// Whole checkpoints that are there.
    pub(super) checkpoints: BTreeSet<CheckpointName>,
    /// What tells the saves of this run, which it may replace.
    pub(super) ours: HashSet<String>,
    /// Checkpoints of this machine that need no upload, each by its `.metadata`.
    pub(super) confirmed: HashMap<CheckpointName, Stamp>,
    /// Exports of this machine that need no upload, each by its configuration.
    exports: HashMap<String, Stamp>,
    /// The checkpoint that is known to be named as the latest.
    latest: Option<CheckpointName>,
    /// Nothing is there that is no longer kept.
    is_tidy: bool,
    word: Word,
}

impl RemoteRun {
    /// Where the run of these settings is kept.
    pub(super) fn place(settings: &Settings) -> Result<Place, StoreError> {
        Ok(Place::parse(&settings.save_folder)?.join(&settings.run_name))
    }

    /// Looks at what is there.
    pub(super) fn open(settings: &Settings, observer: Arc<dyn Observer>) -> Result<Self, StoreError> {
        let place = Self::place(settings)?;
        let checkpoints = whole(&place.join(CHECKPOINTS).list()?);
        let word = Word::look(&place)?;
        let keep = match settings.save_num_checkpoints_to_keep {
            CheckpointsToKeep::All => None,
            CheckpointsToKeep::Newest(count) => Some(count.get()),
        };
        Ok(Self {
            folder: settings.run_folder(),
            place,
            keep,
            observer,
            is_ending: Weak::new(),
            logs: HashMap::new(),
            checkpoints,
            ours: HashSet::new(),
            confirmed: HashMap::new(),
            exports: HashMap::new(),
            latest: None,
            is_tidy: false,
            word,
        })
    }

    /// Has uploads told once `is_ending`, and given up when it is dropped. What an earlier run that this one does not go on from
    /// has exported is going to be moved, and is not uploaded.
    pub(super) fn begin(&mut self, resumes: bool, is_ending: &Arc<AtomicBool>) -> Result<(), TrainError> {
        if !resumes && !self.checkpoints.is_empty() {
            return Err(self.other_run("training cannot go on from the checkpoints at the url".to_owned()));
        }
        self.is_ending = Arc::downgrade(is_ending);
        self.word.forget_old()?;
        let there = if resumes { self.place.join(EXPORTS).list()? } else { Vec::new() };
        for name in entries(&self.folder.join(EXPORTS), Path::is_dir)? {
            let stamp = self.stamp_of_export(&name);
            if let Some(stamp) = stamp.filter(|stamp| !resumes || self.is_there(&name, stamp, &there)) {
                self.exports.insert(name, stamp);
            }
        }
        Ok(())
    }

    /// Hands on the word that cancels the run, if somebody left it at the url.
    pub(super) fn hear(&self) -> Result<(), TrainError> {
        self.word.hand_on(&self.folder)
    }

    pub(super) fn url(&self) -> String {
        self.place.to_string()
    }

    /// Whether nobody waits for uploads any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.is_ending.strong_count() == 0
    }

    /// The place of a checkpoint.
    pub(super) fn checkpoint(&self, name: CheckpointName) -> Place {
        self.place.join(CHECKPOINTS).join(&name.to_string())
    }

    pub(super) fn other_run(&self, difference: String) -> TrainError {
        TrainError::OtherRun { here: self.folder.clone(), there: self.url(), difference }
    }

    pub(super) fn other_checkpoint(&self, name: CheckpointName) -> TrainError {
        TrainError::OtherRun {
            here: self.folder.join(CHECKPOINTS).join(name.to_string()),
            there: self.checkpoint(name).to_string(),
            difference: "they have the same name, but were not saved together".to_owned(),
        }
    }

    /// Whether this machine has a checkpoint or an export that is not there.
    pub(super) fn is_behind(&self) -> bool {
        let checkpoint = self.new_checkpoint().is_ok_and(|new| new.is_some());
        checkpoint || self.new_export().is_ok_and(|new| new.is_some())
    }

    /// Uploads all that is new, and removes what is no longer kept.
    pub(super) fn catch_up(&mut self) -> Result<(), TrainError> {
        loop {
            // Looked for anew each time: of those that are not kept for long only the newest may be left when it comes to it.
            if let Some(name) = self.new_checkpoint()? {
                self.upload_checkpoint(name)?;
                self.name_latest()?;
            } else if let Some((name, stamp)) = self.new_export()? {
                self.upload_export(&name, stamp)?;
            } else {
                break;
            }
        }
        self.upload_logs()?;
        // Both were left undone where a process ended or the store was away.
        self.name_latest()?;
        self.retain()
    }

    /// The oldest whole checkpoint of this machine that is not there and would be kept.
    fn new_checkpoint(&self) -> Result<Option<CheckpointName>, TrainError> {
        let here = list_checkpoints(&self.folder.join(CHECKPOINTS))?;
        let all: BTreeSet<_> = here.iter().chain(&self.checkpoints).copied().collect();
        let oldest = self.keep.and_then(|keep| all.into_iter().nth_back(keep.max(1) - 1));
        Ok(here.into_iter().rev().find(|name| {
            let path = self.folder.join(CHECKPOINTS).join(name.to_string()).join(METADATA);
            Some(*name) >= oldest
                && Stamp::of(&path).is_some_and(|stamp| self.confirmed.get(name) != Some(&stamp))
        }))
    }

    fn new_export(&self) -> Result<Option<(String, Stamp)>, TrainError> {
        let names = entries(&self.folder.join(EXPORTS), Path::is_dir)?;
        let mut stamped = names.into_iter().filter_map(|name| {
            let stamp = self.stamp_of_export(&name)?;
            Some((name, stamp))
        });
        Ok(stamped.find(|(name, stamp)| self.exports.get(name) != Some(stamp)))
    }

    fn stamp_of_export(&self, name: &str) -> Option<Stamp> {
        Stamp::of(&self.folder.join(EXPORTS).join(name).join(CONFIG))
    }

    /// Whether an export is `there` as it is here: whole, with the same files, and not older.
    fn is_there(&self, name: &str, stamp: &Stamp, there: &[Object]) -> bool {
        let folder = self.folder.join(EXPORTS).join(name);
        let of_export = |object: &Object| {
            let file = object.name.strip_prefix(name)?.strip_prefix('/')?;
            Some((file.to_owned(), object.size))
        };
        let found: BTreeSet<_> = there.iter().filter_map(of_export).collect();
        let here = entries(&folder, Path::is_file).unwrap_or_default().into_iter();
        let here: BTreeSet<_> =
            here.filter_map(|file| Some((file.clone(), Stamp::of(&folder.join(file))?.size))).collect();
        let config = there.iter().find(|object| object.name == format!("{name}/{CONFIG}"));
        let is_new = |object: &Object| {
            let uploaded = Duration::from_millis(u64::try_from(object.modified).unwrap_or_default());
            SystemTime::UNIX_EPOCH + uploaded + ROUNDING >= stamp.modified
        };
        found == here && config.is_some_and(is_new)
    }

    /// Uploads an export, its configuration last. One that it takes the place of is not whole meanwhile.
    fn upload_export(&mut self, name: &str, stamp: Stamp) -> Result<(), TrainError> {
        let folder = self.folder.join(EXPORTS).join(name);
        let place = self.place.join(EXPORTS).join(name);
        let mut files = entries(&folder, Path::is_file)?;
        files.sort_by_key(|file| file == CONFIG);
        place.join(CONFIG).delete()?;
        for object in place.list()?.iter().filter(|object| !files.contains(&object.name)) {
            place.join(&object.name).delete()?;
        }
        for file in files {
            let path = folder.join(&file);
            self.upload(&place.join(&file), &path, open(&path)?)?;
        }
        self.exports.insert(name.to_owned(), stamp);
        Ok(())
    }

    fn upload_checkpoint(&mut self, name: CheckpointName) -> Result<(), TrainError> {
        let folder = self.folder.join(CHECKPOINTS).join(name.to_string());
        let place = self.checkpoint(name);
        let Some(OpenCheckpoint { shards, metadata, stamp }) = OpenCheckpoint::open(&folder)? else {
            return Ok(());
        };
        let own = identity(&metadata);
        let there = match place.join(METADATA).read(MOST_METADATA) {
            Err(error) if error.is_not_found() => None,
            read => Some(identity(&read?)),
        };
        if there.as_ref() != Some(&own) {
            if let Some(there) = there {
                if !self.ours.contains(&there) {
                    return Err(self.other_checkpoint(name));
                }
                // It is not whole while it is replaced.
                place.join(METADATA).delete()?;
                self.checkpoints.remove(&name);
            }
            let mut sizes: Vec<_> = shards.iter().map(|(file, (_, size))| (file.clone(), *size)).collect();
            sizes.push((METADATA.to_owned(), metadata.len() as u64));
            for (file, opened) in shards {
                self.upload(&place.join(&file), &folder.join(&file), opened)?;
            }
            self.upload_logs()?;
            // It may be there although the store's answer is lost.
            self.ours.insert(own.clone());
            place.join(METADATA).write(metadata)?;
            confirm(&place, &sizes)?;
        }
        self.ours.insert(own);
        self.checkpoints.insert(name);
        self.confirmed.insert(name, stamp);
        self.is_tidy = false;
        Ok(())
    }

    /// Has the newest checkpoint named as the latest.
    fn name_latest(&mut self) -> Result<(), TrainError> {
        let newest = self.checkpoints.last().copied();
        if let Some(name) = newest.filter(|_| self.latest != newest) {
            // By its path in the bucket, as Composer has it.
            let path = self.checkpoint(name).key().as_bytes().to_vec();
            self.place.join(CHECKPOINTS).join(LATEST_TEXT).write(path)?;
            self.latest = newest;
        }
        Ok(())
    }

    /// Removes the checkpoints that are no longer kept, each in the order in which it stops being whole first, and what is left of
    /// those whose removal or upload was broken off.
    fn retain(&mut self) -> Result<(), TrainError> {
        let Some(keep) = self.keep.filter(|_| !self.is_tidy) else { return Ok(()) };
        while self.checkpoints.len() > keep.max(1) {
            let Some(oldest) = self.checkpoints.first().copied() else { break };
            self.remove(oldest, &self.checkpoint(oldest).list()?)?;
            self.checkpoints.remove(&oldest);
        }
        let listed = self.place.join(CHECKPOINTS).list()?;
        let folders = listed.iter().filter_map(|object| object.name.split_once('/')?.0.parse().ok());
        for name in &folders.collect::<BTreeSet<CheckpointName>>() - &whole(&listed) {
            if Some(&name) < self.checkpoints.first() {
                self.remove(name, &self.checkpoint(name).list()?)?;
            }
        }
        self.is_tidy = true;
        Ok(())
    }

    fn remove(&self, name: CheckpointName, objects: &[Object]) -> Result<(), StoreError> {
        let place = self.checkpoint(name);
        place.join(METADATA).delete()?;
        objects.iter().try_for_each(|object| place.join(&object.name).delete())
    }

    /// Uploads the files beside the checkpoints that have changed. One that goes away or is cut meanwhile is left for the next
    /// time.
    fn upload_logs(&mut self) -> Result<(), TrainError> {
        for name in entries(&self.folder, Path::is_file)? {
            let path = self.folder.join(&name);
            let Some(stamp) = Stamp::of(&path) else { continue };
            if !is_log(&name) || self.logs.get(&path) == Some(&stamp) {
                continue;
            }
            let opened = open(&path).map_err(TrainError::from);
            match opened.and_then(|opened| self.upload(&self.place.join(&name), &path, opened)) {
                Ok(()) => drop(self.logs.insert(path, stamp)),
                Err(error) if is_in_motion(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn upload(&self, place: &Place, path: &Path, (mut file, size): Opened) -> Result<(), TrainError> {
        if self.is_abandoned() {
            let (folder, problem) = (self.folder.clone(), "nobody waits for it".to_owned());
            return Err(TrainError::NotUploaded { folder, url: self.url(), problem });
        }
        let name = path.strip_prefix(&self.folder).unwrap_or(path).display();
        let name = format!("{name}; if this is interrupted the same command goes on with it");
        Ok(place.upload(&mut file, path, size, &mut |done| {
            if self.is_ending.upgrade().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                self.observer.observe(Update::Uploading(HubProgress { file: &name, done, total: size }));
            }
        })?)
    }
}

/// The checkpoints whose `.metadata` is among what was listed.
fn whole(listed: &[Object]) -> BTreeSet<CheckpointName> {
    let whole = listed.iter().filter_map(|object| {
        let (folder, name) = object.name.split_once('/')?;
        (name == METADATA).then(|| folder.parse().ok())?
    });
    whole.collect()
}

/// Fails unless the store tells of all files as they are here.
fn confirm(place: &Place, sizes: &[(String, u64)]) -> Result<(), StoreError> {
    let there = place.list()?;
    let is_there = |(file, size): &&(String, u64)| {
        there.iter().any(|object| object.name == *file && object.size == *size)
    };
    match sizes.iter().find(|file| !is_there(file)) {
        None => Ok(()),
        Some((file, _)) => {
            let problem = Problem::Unreachable("it was uploaded, but is not listed as it is".to_owned());
            Err(StoreError { url: place.join(file).to_string(), problem })
        }
    }
}

/// Whether a file beside the checkpoints tells of the run.
pub(super) fn is_log(name: &str) -> bool {
    !name.contains('/') && !name.starts_with('.')
}

/// Whether a file was removed or cut while it was read.
fn is_in_motion(error: &TrainError) -> bool {
    let (TrainError::File(file) | TrainError::Store(StoreError { problem: Problem::File(file), .. })) = error
    else {
        return false;
    };
    matches!(file.source.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tessera_files::{FileError, IoContext};

    #[test]
    fn a_file_that_goes_away_or_is_cut_is_told_from_one_that_cannot_be_read() {
        let failed = |kind: ErrorKind| -> FileError {
            Err::<(), _>(std::io::Error::from(kind)).context("read", Path::new("metrics.jsonl")).unwrap_err()
        };
        let stored = |problem| TrainError::from(StoreError { url: "s3://b/x".into(), problem });
        assert!(is_in_motion(&open(Path::new("no-such-file")).unwrap_err().into()));
        assert!(is_in_motion(&stored(Problem::File(failed(ErrorKind::UnexpectedEof)))));
        assert!(!is_in_motion(&failed(ErrorKind::PermissionDenied).into()));
        assert!(!is_in_motion(&stored(Problem::Unreachable("away".into()))));
    }
}
