//! What a run folder says about its run without starting anything: for the list of runs and for the report.
//!
//! Folders are the truth about checkpoints and exports (an event may speak of one that has been deleted since);
//! a name that begins with a dot is one still being written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tessera_files::{FileError, IoContext};

use crate::error::TrackError;
use crate::events::{self, Event, EventType, RunStatus, read_events};
use crate::metrics::{self, MetricsLine, last_training_line, names};

/// A checkpoint or an export on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredFolder {
    /// The folder's name: `ep1-ba50` or `ba50`.
    pub name: String,
    /// Batches done when it was saved.
    pub batch: u64,
    /// The size of its files.
    pub bytes: u64,
}

/// What is known of a run from its folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// The folder's name.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
    /// What the last event says. A run that was killed keeps the state it had.
    pub status: RunStatus,
    /// The run file's `model`, if `run.yaml` can be read.
    pub model: Option<String>,
    /// The run file's `task_type`, if `run.yaml` can be read.
    pub task_type: Option<String>,
    /// The run file's `train_data_path`, if `run.yaml` can be read.
    pub train_data_path: Option<String>,
    /// The run file's `training_duration`, if `run.yaml` can be read.
    pub training_duration: Option<String>,
    /// The run file's `learning_rate`, if `run.yaml` can be read.
    pub learning_rate: Option<f64>,
    /// The last event in words.
    pub details: String,
    /// Batches done.
    pub batches: u64,
    /// Batches of the whole run, once training has started.
    pub total_batches: Option<u64>,
    /// The loss of the last batch, if it is finite.
    pub last_loss: Option<f64>,
    /// When the first event was.
    pub started: Timestamp,
    /// When the last event was.
    pub last_event: Timestamp,
    /// When the last batch will be done at the speed of the last one, while the run trains.
    pub estimated_end: Option<Timestamp>,
    /// The time from event to event, without the pauses between a process that ended and the next.
    pub duration: Duration,
    /// Checkpoints, oldest first.
    pub checkpoints: Vec<StoredFolder>,
    /// Exported model folders, oldest first.
    pub exports: Vec<StoredFolder>,
}

/// The runs of a `save_folder`.
#[derive(Debug)]
pub struct RunListing {
    /// The runs that could be read, the latest to have started first.
    pub runs: Vec<RunSummary>,
    /// What kept the others from being read: one damaged run does not hide the rest.
    pub unreadable: Vec<TrackError>,
}

impl FromIterator<Result<RunSummary, TrackError>> for RunListing {
    fn from_iter<T: IntoIterator<Item = Result<RunSummary, TrackError>>>(read: T) -> Self {
        let mut listing = Self { runs: Vec::new(), unreadable: Vec::new() };
        for run in read {
            match run {
                Ok(run) => listing.runs.push(run),
                Err(error) => listing.unreadable.push(error),
            }
        }
        listing.runs.sort_by(|a, b| b.started.cmp(&a.started).then_with(|| a.name.cmp(&b.name)));
        listing
    }
}

/// Reads every run in `save_folder`; folders without an `events.jsonl` are no runs. A missing folder has none.
pub fn list_runs(save_folder: &Path) -> Result<RunListing, TrackError> {
    let folders = subfolders(save_folder)?.into_iter();
    Ok(folders.filter(|folder| folder.join(events::FILE).is_file()).map(|folder| read_run(&folder)).collect())
}

/// Reads one run.
///
/// # Errors
/// [`TrackError::NotARun`] where no event was ever written.
pub fn read_run(run_folder: &Path) -> Result<RunSummary, TrackError> {
    summarise(run_folder, &read_events(run_folder)?)
}

pub(crate) fn summarise(run_folder: &Path, events: &[Event]) -> Result<RunSummary, TrackError> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else {
        return Err(TrackError::NotARun { folder: run_folder.to_owned() });
    };
    let head = read_head(run_folder);
    let last_line = last_training_line(run_folder)?;
    let status = last.kind.status();
    let total = events.iter().rev().find(|event| event.kind == EventType::TrainStarted);
    Ok(RunSummary {
        name: folder_name(run_folder),
        folder: run_folder.to_owned(),
        status,
        model: head.model,
        task_type: head.task_type,
        train_data_path: head.train_data_path,
        training_duration: head.training_duration,
        learning_rate: head.learning_rate,
        details: last.message.clone(),
        total_batches: total.and_then(|event| event.fields.get("batches")?.as_u64()),
        estimated_end: match (status, &last_line) {
            (RunStatus::Running, Some(line)) => estimated_end(run_folder, line),
            _ => None,
        },
        batches: last_line.as_ref().and_then(|line| line.batch()).map_or(0, |batch| batch + 1),
        last_loss: last_line.and_then(|line| line.number(names::LOSS)),
        started: first.time,
        last_event: last.time,
        duration: running_time(events),
        checkpoints: stored(&run_folder.join("checkpoints"), checkpoint_batch)?,
        exports: stored(&run_folder.join("huggingface"), |name| name.strip_prefix("ba")?.parse().ok())?,
    })
}

/// The time of the last line is when its file was last written: lines themselves have none, so that a run repeated has the
/// same lines.
fn estimated_end(run_folder: &Path, line: &MetricsLine) -> Option<Timestamp> {
    let written = fs::metadata(run_folder.join(metrics::FILE)).and_then(|file| file.modified()).ok()?;
    let remaining = SignedDuration::try_from_secs_f64(line.number(names::REMAINING_HOURS)? * 3600.0).ok()?;
    Timestamp::try_from(written).ok()?.checked_add(remaining).ok()
}

/// The keys of `run.yaml` that tell runs apart. The others concern the run alone.
#[derive(Default, Deserialize)]
struct RunFileHead {
    model: Option<String>,
    task_type: Option<String>,
    train_data_path: Option<String>,
    training_duration: Option<String>,
    learning_rate: Option<f64>,
}

/// A run file that is missing or was edited into something else costs the listing two names, not the run.
fn read_head(run_folder: &Path) -> RunFileHead {
    let text = fs::read_to_string(run_folder.join("run.yaml")).unwrap_or_default();
    serde_saphyr::from_str(&text).unwrap_or_default()
}

fn folder_name(folder: &Path) -> String {
    folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
}

fn running_time(events: &[Event]) -> Duration {
    let spans = events.windows(2).filter_map(|pair| match pair {
        [before, after] if !after.kind.begins_session() || before.kind == EventType::Created => {
            Duration::try_from(after.time.duration_since(before.time)).ok()
        }
        _ => None,
    });
    spans.sum()
}

/// The batch in a checkpoint's name, `ep#-ba#`.
fn checkpoint_batch(name: &str) -> Option<u64> {
    let (epoch, batch) = name.strip_prefix("ep")?.split_once("-ba")?;
    epoch.parse::<u64>().ok()?;
    batch.parse().ok()
}

fn stored(parent: &Path, batch_of: impl Fn(&str) -> Option<u64>) -> Result<Vec<StoredFolder>, FileError> {
    let mut found = Vec::new();
    for folder in subfolders(parent)? {
        let name = folder_name(&folder);
        if let Some(batch) = batch_of(&name) {
            found.push(StoredFolder { name, batch, bytes: size_of_files(&folder)? });
        }
    }
    found.sort_by_key(|folder| folder.batch);
    Ok(found)
}

/// The folders directly inside `parent`, links not followed; none if `parent` does not exist.
fn subfolders(parent: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("list", parent),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.context("list", parent)?;
        if entry.file_type().context("list", parent)?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn size_of_files(folder: &Path) -> Result<u64, FileError> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).context("list", folder)? {
        let metadata = entry.and_then(|entry| entry.metadata()).context("list", folder)?;
        bytes += if metadata.is_file() { metadata.len() } else { 0 };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::events::EventLog;
    use crate::jsonl::ResumePoint;
    use crate::metrics::{MetricsLog, Record};

    fn make_run(folder: &Path, last: EventType) {
        fs::create_dir_all(folder.join("checkpoints/ep0-ba2")).unwrap();
        fs::create_dir_all(folder.join("checkpoints/.ep0-ba3.partial")).unwrap();
        fs::create_dir_all(folder.join("huggingface/ba10")).unwrap();
        fs::create_dir_all(folder.join("huggingface/ba9")).unwrap();
        fs::write(folder.join("checkpoints/ep0-ba2/__0_0.distcp"), [0; 300]).unwrap();
        std::os::unix::fs::symlink("ep0-ba2", folder.join("checkpoints/latest-sharded-rank0")).unwrap();
        fs::write(folder.join("run.yaml"), "model: org/name\ntask_type: CHAT_COMPLETION\nseed: 17\n")
            .unwrap();
        let mut events = EventLog::open(folder).unwrap();
        events.record(EventType::Created, "", &[]).unwrap();
        events.record(last, "", &[]).unwrap();
        let mut metrics = MetricsLog::open(folder, None).unwrap();
        for batch in 0..3 {
            metrics.append(&Record::training(batch, 0.5 + batch as f64)).unwrap();
        }
        metrics.append(&Record::at(3).with(names::EVAL_CROSS_ENTROPY, 1.0)).unwrap();
    }

    #[test]
    fn a_run_is_read_from_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        make_run(folder.path(), EventType::Stopped);
        let run = read_run(folder.path()).unwrap();
        assert_eq!((run.status, run.batches, run.last_loss), (RunStatus::Stopped, 3, Some(2.5)));
        assert_eq!(run.model.as_deref(), Some("org/name"));
        assert_eq!((run.total_batches, run.estimated_end), (None, None));
        assert_eq!(run.checkpoints, [StoredFolder { name: "ep0-ba2".to_owned(), batch: 2, bytes: 300 }]);
        let exports: Vec<_> = run.exports.iter().map(|export| export.name.as_str()).collect();
        assert_eq!(exports, ["ba9", "ba10"]);
    }

    #[test]
    fn the_latest_run_comes_first_and_a_damaged_one_hides_none() {
        let folder = tempfile::tempdir().unwrap();
        make_run(&folder.path().join("old"), EventType::Completed);
        make_run(&folder.path().join("new"), EventType::TrainUpdated);
        make_run(&folder.path().join("bad"), EventType::TrainUpdated);
        fs::write(folder.path().join("bad/events.jsonl"), "{}\n").unwrap();
        fs::create_dir(folder.path().join("no-run")).unwrap();
        let listing = list_runs(folder.path()).unwrap();
        let names: Vec<_> = listing.runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["new", "old"]);
        assert!(listing.unreadable[0].to_string().contains("events.jsonl, line 1"));
        assert!(list_runs(&folder.path().join("absent")).unwrap().runs.is_empty());
    }

    #[test]
    fn a_run_that_trains_has_an_estimated_end() {
        let folder = tempfile::tempdir().unwrap();
        make_run(folder.path(), EventType::Created);
        let mut events = EventLog::open(folder.path()).unwrap();
        events.record(EventType::TrainStarted, "", &[("batches", 40.into())]).unwrap();
        let mut metrics = MetricsLog::open(folder.path(), Some(ResumePoint::after(3))).unwrap();
        metrics.append(&Record::training(3, 1.0).with(names::REMAINING_HOURS, 2.0)).unwrap();
        let run = read_run(folder.path()).unwrap();
        assert_eq!((run.status, run.total_batches), (RunStatus::Running, Some(40)));
        let left = run.estimated_end.unwrap().duration_since(run.started);
        assert!((7200..7300).contains(&left.as_secs()), "{left}");
        events.record(EventType::Stopped, "by its user", &[]).unwrap();
        let run = read_run(folder.path()).unwrap();
        assert_eq!((run.estimated_end, run.details.as_str()), (None, "by its user"));
    }

    #[test]
    fn pauses_between_processes_are_not_running_time() {
        let at = |kind, second: i64| Event {
            kind,
            time: Timestamp::from_second(second).unwrap(),
            message: String::new(),
            fields: serde_json::Map::new(),
        };
        let events = [
            at(EventType::Created, 0),
            at(EventType::Started, 2),
            at(EventType::TrainUpdated, 60),
            at(EventType::Requeued, 10_000),
            at(EventType::Started, 10_003),
            at(EventType::Completed, 10_043),
        ];
        assert_eq!(running_time(&events), Duration::from_secs(100));
    }
}
