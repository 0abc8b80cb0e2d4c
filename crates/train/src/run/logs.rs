//! The files that a run writes as it goes on. Rank 0 has them; on other ranks there is nothing to write to, and every call
//! does nothing.

use std::path::Path;

use serde_json::Value;
use tessera_track::{
    EventLog, EventType, Generation, GenerationsLog, MetricsLog, Record, ResumePoint, TrackError,
};

use crate::error::TrainError;

/// A run's events, metrics and answers.
pub(super) struct Logs<'a>(Option<Files<'a>>);

struct Files<'a> {
    events: &'a mut EventLog,
    metrics: MetricsLog,
    generations: GenerationsLog,
}

/// Where the logs of a resumed run go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResumePoints {
    pub metrics: ResumePoint,
    pub generations: ResumePoint,
}

impl<'a> Logs<'a> {
    /// Opens the files of the run in `folder`, where this rank has its `events`.
    pub(super) fn open(
        events: Option<&'a mut EventLog>,
        folder: &Path,
        resumed: Option<ResumePoints>,
    ) -> Result<Self, TrainError> {
        let Some(events) = events else { return Ok(Self(None)) };
        let metrics = MetricsLog::open(folder, resumed.map(|points| points.metrics))?;
        let generations = GenerationsLog::open(folder, resumed.map(|points| points.generations))?;
        Ok(Self(Some(Files { events, metrics, generations })))
    }

    /// Records an event.
    pub(super) fn event(
        &mut self,
        kind: EventType,
        message: String,
        fields: &[(&str, Value)],
    ) -> Result<(), TrackError> {
        match &mut self.0 {
            Some(files) => files.events.record(kind, message, fields).map(drop),
            None => Ok(()),
        }
    }

    /// Appends a line of metrics.
    pub(super) fn metrics(&mut self, record: &Record) -> Result<(), TrackError> {
        self.0.as_mut().map_or(Ok(()), |files| files.metrics.append(record))
    }

    /// Appends answers.
    pub(super) fn generations(&mut self, lines: &[Generation]) -> Result<(), TrackError> {
        self.0.as_mut().map_or(Ok(()), |files| files.generations.append(lines))
    }

    /// Puts the metrics on disk.
    pub(super) fn sync(&mut self) -> Result<(), TrackError> {
        self.0.as_mut().map_or(Ok(()), |files| files.metrics.sync())
    }
}
