//! The run's events, `events.jsonl`: what happened to the run and when, under the type names that the Databricks
//! service gave its users, so that a script which followed `get_events` can follow this file.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::TrackError;
use crate::jsonl::{Line, LineFile, read_lines};

/// The file's name in the run folder.
pub const FILE: &str = "events.jsonl";

/// What happened, in the order in which a run goes through it. Written as `CREATED`, `CHECK_PASSED`, ….
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EventType {
    /// The run folder exists; nothing has started.
    Created,
    /// The run file, the data and the model were found to fit.
    CheckPassed,
    /// They were not; the run ends.
    CheckFailed,
    /// The run has begun, for the first time or again.
    Started,
    /// The data is tokenised and packed.
    DataValidated,
    /// The model's weights are in memory.
    ModelInitialized,
    /// The first batch begins.
    TrainStarted,
    /// Batches were done.
    TrainUpdated,
    /// A checkpoint is whole on disk.
    CheckpointSaved,
    /// The last batch is done; saving and exporting go on.
    TrainFinished,
    /// Everything is done.
    Completed,
    /// Ended by a signal; can be resumed.
    Stopped,
    /// Ended by the user through a command; can be resumed.
    Canceled,
    /// Ended by a failure around the run: the machine, another rank, the network.
    Failed,
    /// Ended by an error of the run's own; the message says which.
    FailedException,
    /// Taken up again from a checkpoint.
    Requeued,
}

impl fmt::Display for EventType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

impl EventType {
    /// The state a run is in when this is its last event.
    pub fn status(self) -> RunStatus {
        match self {
            Self::Created => RunStatus::Pending,
            Self::Requeued => RunStatus::Queued,
            Self::CheckPassed | Self::Started | Self::DataValidated | Self::ModelInitialized => {
                RunStatus::Starting
            }
            Self::TrainStarted | Self::TrainUpdated | Self::CheckpointSaved => RunStatus::Running,
            Self::TrainFinished => RunStatus::Terminating,
            Self::Completed => RunStatus::Completed,
            Self::Stopped | Self::Canceled => RunStatus::Stopped,
            Self::Failed | Self::FailedException | Self::CheckFailed => RunStatus::Failed,
        }
    }

    /// Whether the process that ran says no more after this event.
    pub fn is_terminal(self) -> bool {
        self.status().has_ended()
    }

    /// Whether a process takes up the run with this event, so that the time before it was not spent running.
    pub(crate) fn begins_session(self) -> bool {
        matches!(self, Self::Created | Self::Started | Self::Requeued)
    }
}

/// The state of a run, named as the service named it. A run whose process was killed keeps the state it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunStatus {
    /// Created, not started.
    Pending,
    /// To be taken up again.
    Queued,
    /// Reading data and weights.
    Starting,
    /// Training.
    Running,
    /// Trained; saving and exporting.
    Terminating,
    /// Done.
    Completed,
    /// Ended by a signal or by its user.
    Stopped,
    /// Ended by an error.
    Failed,
}

impl RunStatus {
    /// Every state, in the order in which a run goes through them.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Queued,
        Self::Starting,
        Self::Running,
        Self::Terminating,
        Self::Completed,
        Self::Stopped,
        Self::Failed,
    ];

    /// Whether the process that ran says no more.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Stopped | Self::Failed)
    }
}

impl FromStr for RunStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |status: &Self| status.to_string().eq_ignore_ascii_case(text.trim());
        Self::ALL.into_iter().find(named).ok_or_else(|| {
            format!("expected one of {}", Self::ALL.map(|status| status.to_string()).join(", "))
        })
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// One line of `events.jsonl`: `{"type": …, "time": …, "message": …, …}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// When, in UTC; written as RFC 3339.
    pub time: Timestamp,
    /// The same in words, for a person.
    pub message: String,
    /// What a program may want to know: `batch`, `path`, …; numbers, text, truth values or null.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl Line for Event {
    const EXPECTED: &'static str = r#"one event, {"type": …, "time": …, "message": …}"#;
}

/// Appends to a run's `events.jsonl`.
#[derive(Debug)]
pub struct EventLog {
    lines: LineFile,
}

impl EventLog {
    /// Opens or creates the file in `run_folder` and cuts a half line left by a crash. Events of earlier attempts
    /// stay: they did happen.
    pub fn open(run_folder: &Path) -> Result<Self, TrackError> {
        Ok(Self { lines: LineFile::open(run_folder.join(FILE))? })
    }

    /// Writes an event of this moment, syncs it, and gives it back for whoever shows or sends it on.
    pub fn record(
        &mut self,
        kind: EventType,
        message: impl Into<String>,
        fields: &[(&str, Value)],
    ) -> Result<Event, TrackError> {
        let fields = fields.iter().map(|(name, value)| flat_field(name, value)).collect::<Result<_, _>>()?;
        let event = Event { kind, time: Timestamp::now(), message: message.into(), fields };
        self.lines.append(&[&event])?;
        self.lines.sync()?;
        Ok(event)
    }
}

fn flat_field(name: &str, value: &Value) -> Result<(String, Value), TrackError> {
    let refused = |reason| TrackError::EventField { name: name.to_owned(), reason };
    if matches!(name, "type" | "time" | "message") {
        return Err(refused("the name has its own meaning"));
    }
    if value.is_array() || value.is_object() {
        return Err(refused("the value is a list or a map"));
    }
    Ok((name.to_owned(), value.clone()))
}

/// All events of a run, oldest first. A run without the file has none.
pub fn read_events(run_folder: &Path) -> Result<Vec<Event>, TrackError> {
    read_lines(&run_folder.join(FILE))?.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn an_event_is_one_flat_line_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path()).unwrap();
        let fields = [("batch", 10.into()), ("path", "checkpoints/ep0-ba10".into())];
        let event = log.record(EventType::CheckpointSaved, "Saved ep0-ba10.", &fields).unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let time = event.time.to_string();
        assert!(time.ends_with('Z'), "{time}");
        let line = format!(
            r#"{{"type":"CHECKPOINT_SAVED","time":"{time}","message":"Saved ep0-ba10.","batch":10,"path":"checkpoints/ep0-ba10"}}"#
        );
        assert_eq!(text, line + "\n");
        assert_eq!(read_events(folder.path()).unwrap(), [event]);
    }

    #[test]
    fn a_half_event_is_cut_and_earlier_attempts_stay() {
        let folder = tempfile::tempdir().unwrap();
        EventLog::open(folder.path()).unwrap().record(EventType::Created, "", &[]).unwrap();
        let path = folder.path().join(FILE);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"type\":\"STAR")).unwrap();
        EventLog::open(folder.path()).unwrap().record(EventType::Started, "", &[]).unwrap();
        let kinds: Vec<_> = read_events(folder.path()).unwrap().iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventType::Created, EventType::Started]);
    }

    #[test]
    fn fields_that_would_not_be_flat_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path()).unwrap();
        for field in [("time", Value::Null), ("list", Value::Array(Vec::new()))] {
            let error =
                log.record(EventType::Created, "", std::slice::from_ref(&field)).unwrap_err().to_string();
            assert!(error.contains(&format!("event field {:?}", field.0)), "{error}");
        }
        assert_eq!(fs::read_to_string(folder.path().join(FILE)).unwrap(), "");
    }

    #[test]
    fn names_are_those_of_the_service() {
        assert_eq!(EventType::FailedException.to_string(), "FAILED_EXCEPTION");
        assert_eq!(EventType::ModelInitialized.to_string(), "MODEL_INITIALIZED");
        assert_eq!(EventType::FailedException.status().to_string(), "FAILED");
        assert_eq!("stopped".parse(), Ok(RunStatus::Stopped));
        assert!("done".parse::<RunStatus>().unwrap_err().contains("PENDING, QUEUED, STARTING"));
    }
}
