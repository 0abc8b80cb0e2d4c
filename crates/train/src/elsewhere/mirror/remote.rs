//! A run as it lies at a url, laid out as on this machine, and what it takes to make one like the other.
//!
//! The order of uploads is what makes the copy good at any moment: of a checkpoint its shards come first, then the logs that
//! led to it, `.metadata` next to last, and the text that names the latest only once the store has confirmed them all.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tessera_checkpoint::dcp::{CheckpointName, list_checkpoints, point_latest};
use tessera_checkpoint::huggingface::HubProgress;
use tessera_files::{AtomicFolder, FileError, IoContext};
use tessera_stores::{Object, Place, Problem, StoreError};

use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::Settings;
use crate::spec::CheckpointsToKeep;

const CHECKPOINTS: &str = "checkpoints";
const EXPORTS: &str = "huggingface";
/// What makes a checkpoint whole.
const METADATA: &str = ".metadata";
/// What makes an export whole, for those who look at it at the url: it is uploaded last.
const CONFIG: &str = "config.json";
/// The text that names the latest checkpoint, by its path in the bucket, as Composer has it.
const LATEST: &str = "latest-sharded-rank0.symlink";
/// The most bytes of a `.metadata` that is compared.
const MOST_METADATA: u64 = 1 << 30;

/// A file's name, the file, and its size.
type Opened = (String, (File, u64));

/// The run at the url, as far as is known.
pub(super) struct RemoteRun {
    place: Place,
    folder: PathBuf,
    keep: Option<usize>,
    observer: Arc<dyn Observer>,
    /// The run is over: uploads are told.
    is_ending: Arc<AtomicBool>,
    /// Size and time of each log as it was uploaded.
    logs: HashMap<PathBuf, (u64, SystemTime)>,
    /// Whole checkpoints that are there.
    checkpoints: BTreeSet<CheckpointName>,
    /// Those of them that are known to be this machine's.
    confirmed: BTreeSet<CheckpointName>,
    /// Exports that are there, by name.
    exports: BTreeSet<String>,
}

impl RemoteRun {
    /// Looks at what is there.
    pub(super) fn open(
        settings: &Settings,
        observer: Arc<dyn Observer>,
        is_ending: Arc<AtomicBool>,
    ) -> Result<Self, StoreError> {
        let place = Place::parse(&settings.save_folder)?.join(&settings.run_name);
        let whole = |object: &Object| {
            let (folder, name) = object.name.split_once('/')?;
            (name == METADATA).then(|| folder.parse().ok())?
        };
        let checkpoints = place.join(CHECKPOINTS).list()?.iter().filter_map(whole).collect();
        let keep = match settings.save_num_checkpoints_to_keep {
            CheckpointsToKeep::All => None,
            CheckpointsToKeep::Newest(count) => Some(count.get()),
        };
        Ok(Self {
            folder: settings.run_folder(),
            place,
            keep,
            observer,
            is_ending,
            logs: HashMap::new(),
            checkpoints,
            confirmed: BTreeSet::new(),
            exports: BTreeSet::new(),
        })
    }

    pub(super) fn url(&self) -> String {
        self.place.to_string()
    }

    /// Fetches the newest checkpoint, and the files beside it, if this machine has none as new.
    pub(super) fn bring_newest_here(&mut self, may_resume: bool) -> Result<(), TrainError> {
        let Some(&newest) = self.checkpoints.last() else { return Ok(()) };
        if !may_resume {
            return Err(TrainError::AlreadyStarted { folder: self.url().into() });
        }
        let checkpoints = self.folder.join(CHECKPOINTS);
        if list_checkpoints(&checkpoints)?.first().is_some_and(|here| *here >= newest) {
            return Ok(());
        }
        fs::create_dir_all(&checkpoints).context("create", &checkpoints)?;
        for object in self.place.list()?.iter().filter(|object| is_log(&object.name)) {
            self.fetch(&self.place.join(&object.name), object, &self.folder.join(&object.name))?;
        }
        let name = newest.to_string();
        let (place, folder) =
            (self.place.join(CHECKPOINTS).join(&name), AtomicFolder::create(&checkpoints.join(&name))?);
        for object in place.list()?.iter().filter(|object| !object.name.contains('/')) {
            self.fetch(&place.join(&object.name), object, &folder.folder().join(&object.name))?;
        }
        folder.finish()?;
        point_latest(&checkpoints, newest)?;
        self.confirmed.insert(newest);
        Ok(())
    }

    fn fetch(&self, place: &Place, object: &Object, path: &Path) -> Result<(), StoreError> {
        place.download(object, path, &mut |done| {
            let progress = HubProgress { file: &object.name, done, total: object.size };
            self.observer.observe(Update::Downloading(progress));
        })
    }

    /// Whether this machine has a checkpoint or an export that is not there.
    pub(super) fn is_behind(&self) -> bool {
        let checkpoints = self.new_checkpoints().is_ok_and(|new| !new.is_empty());
        checkpoints || self.new_exports().is_ok_and(|new| !new.is_empty())
    }

    /// Uploads all that is new, and removes what is no longer kept.
    pub(super) fn catch_up(&mut self) -> Result<(), StoreError> {
        for name in self.new_exports().map_err(|error| self.here(error))? {
            self.upload_export(&name)?;
        }
        // Of those that are not kept for long only the newest may be left when it comes to it.
        while let Some(name) = self.new_checkpoints().map_err(|error| self.here(error))?.into_iter().next() {
            self.upload_checkpoint(name)?;
        }
        self.upload_logs()
    }

    /// Whole checkpoints of this machine that are not there, the oldest first.
    fn new_checkpoints(&self) -> Result<Vec<CheckpointName>, FileError> {
        let mut names = list_checkpoints(&self.folder.join(CHECKPOINTS))?;
        names.retain(|name| !self.confirmed.contains(name));
        names.reverse();
        Ok(names)
    }

    fn new_exports(&self) -> Result<Vec<String>, FileError> {
        let folder = self.folder.join(EXPORTS);
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut names = entries(&folder, Path::is_dir)?;
        names.retain(|name| !self.exports.contains(name));
        Ok(names)
    }

    /// Uploads an export, its configuration last.
    fn upload_export(&mut self, name: &str) -> Result<(), StoreError> {
        let folder = self.folder.join(EXPORTS).join(name);
        let place = self.place.join(EXPORTS).join(name);
        let mut files = entries(&folder, Path::is_file).map_err(|error| self.here(error))?;
        files.sort_by_key(|file| file == CONFIG);
        for file in files {
            let path = folder.join(&file);
            let opened = open(&path).map_err(|error| self.here(error))?;
            self.upload(&place.join(&file), &path, opened)?;
        }
        self.exports.insert(name.to_owned());
        Ok(())
    }

    fn upload_checkpoint(&mut self, name: CheckpointName) -> Result<(), StoreError> {
        let folder = self.folder.join(CHECKPOINTS).join(name.to_string());
        let place = self.place.join(CHECKPOINTS).join(&name.to_string());
        // All are open before the first is sent: retention, which removes them meanwhile, then takes nothing away.
        let Some(mut files) = open_all(&folder).map_err(|error| self.here(error))? else { return Ok(()) };
        let metadata = place.join(METADATA);
        if self.checkpoints.contains(&name) {
            let here = fs::read(folder.join(METADATA)).ok();
            if here.is_some() && here == metadata.read(MOST_METADATA).ok() {
                self.confirmed.insert(name);
                return Ok(());
            }
            // Of another history: it is not whole while it is replaced.
            metadata.delete()?;
            self.checkpoints.remove(&name);
        }
        files.sort_by_key(|(file, _)| file == METADATA);
        let sizes: Vec<_> = files.iter().map(|(file, (_, size))| (file.clone(), *size)).collect();
        for (file, opened) in files {
            if file == METADATA {
                self.upload_logs()?;
            }
            self.upload(&place.join(&file), &folder.join(&file), opened)?;
        }
        self.confirm(&place, &sizes)?;
        self.checkpoints.insert(name);
        self.confirmed.insert(name);
        if self.checkpoints.last() == Some(&name) {
            let latest = self.place.join(CHECKPOINTS).join(LATEST);
            latest.write(place.key().as_bytes().to_vec())?;
        }
        self.retain()
    }

    /// Fails unless the store tells of all files as they are here.
    fn confirm(&self, place: &Place, sizes: &[(String, u64)]) -> Result<(), StoreError> {
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

    /// Removes the checkpoints that are no longer kept, each in the order in which it stops being whole first.
    fn retain(&mut self) -> Result<(), StoreError> {
        let Some(keep) = self.keep else { return Ok(()) };
        while self.checkpoints.len() > keep.max(1) {
            let Some(&oldest) = self.checkpoints.first() else { break };
            let place = self.place.join(CHECKPOINTS).join(&oldest.to_string());
            place.join(METADATA).delete()?;
            for object in place.list()? {
                place.join(&object.name).delete()?;
            }
            self.checkpoints.remove(&oldest);
        }
        Ok(())
    }

    /// Uploads the files beside the checkpoints that have changed.
    fn upload_logs(&mut self) -> Result<(), StoreError> {
        for name in entries(&self.folder, Path::is_file).map_err(|error| self.here(error))? {
            let path = self.folder.join(&name);
            let Ok(stamp) = stamp(&path) else { continue };
            if !is_log(&name) || self.logs.get(&path) == Some(&stamp) {
                continue;
            }
            let opened = open(&path).map_err(|error| self.here(error))?;
            self.upload(&self.place.join(&name), &path, opened)?;
            self.logs.insert(path, stamp);
        }
        Ok(())
    }

    fn upload(&self, place: &Place, path: &Path, (mut file, size): (File, u64)) -> Result<(), StoreError> {
        place.upload(&mut file, path, size, &mut |done| {
            if self.is_ending.load(Ordering::Relaxed) {
                let name = path.strip_prefix(&self.folder).unwrap_or(path).display().to_string();
                self.observer.observe(Update::Uploading(HubProgress { file: &name, done, total: size }));
            }
        })
    }

    /// A failure of this machine's files.
    fn here(&self, error: FileError) -> StoreError {
        StoreError { url: self.url(), problem: Problem::File(error) }
    }
}

/// Whether a file beside the checkpoints tells of the run.
fn is_log(name: &str) -> bool {
    !name.contains('/') && !name.starts_with('.')
}

/// The names of what lies in a folder and is `wanted`, but for what is hidden.
fn entries(folder: &Path, wanted: fn(&Path) -> bool) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("list", folder)? {
        let entry = entry.context("list", folder)?;
        // A name that is not UTF-8 is not one of ours.
        let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'));
        names.extend(name.filter(|_| wanted(&entry.path())));
    }
    names.sort();
    Ok(names)
}

fn open(path: &Path) -> Result<(File, u64), FileError> {
    let file = File::open(path).context("open", path)?;
    let size = file.metadata().context("read", path)?.len();
    Ok((file, size))
}

/// Opens all files of a checkpoint; `None` if it was removed meanwhile.
fn open_all(folder: &Path) -> Result<Option<Vec<Opened>>, FileError> {
    let open_entry = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.context("list", folder)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, open(&path)?))
    };
    let entries = fs::read_dir(folder).context("list", folder);
    match entries.and_then(|entries| entries.map(open_entry).collect()) {
        Err(_) if !folder.is_dir() => Ok(None),
        opened => opened.map(Some),
    }
}

fn stamp(path: &Path) -> std::io::Result<(u64, SystemTime)> {
    let found = fs::metadata(path)?;
    Ok((found.len(), found.modified()?))
}
