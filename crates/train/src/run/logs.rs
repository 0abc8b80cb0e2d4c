//! The files that a run writes as it goes on, and those who follow them. Rank 0 has them; on other ranks there is nothing to write to, and every call
//! does nothing.

use std::path::Path;

use serde_json::Value;
use tessera_track::{
    EventLog, EventType, Generation, GenerationsLog, MetricsLog, Record, ResumePoint, TrackError,
};

use super::followers::Followers;
use crate::error::TrainError;

/// A run's events, metrics and answers.
pub(super) struct Logs<'a>(Option<Files<'a>>);

/// What rank 0 writes its events to, and who is told of its metrics.
pub(super) struct Told<'a> {
    pub events: &'a mut EventLog,
    pub followers: &'a mut Followers,
}

struct Files<'a> {
    told: Told<'a>,
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
    /// Opens the files of the run in `folder`, where this rank has somebody to tell.
    pub(super) fn open(
        told: Option<Told<'a>>,
        folder: &Path,
        resumed: Option<ResumePoints>,
    ) -> Result<Self, TrainError> {
        let Some(told) = told else { return Ok(Self(None)) };
        let metrics = MetricsLog::open(folder, resumed.map(|points| points.metrics))?;
        let generations = GenerationsLog::open(folder, resumed.map(|points| points.generations))?;
        told.followers.metrics_begin(folder, resumed.map_or(0, |points| points.metrics.batch))?;
        Ok(Self(Some(Files { told, metrics, generations })))
    }

    /// Records an event.
    pub(super) fn event(
        &mut self,
        kind: EventType,
        message: String,
        fields: &[(&str, Value)],
    ) -> Result<(), TrackError> {
        match &mut self.0 {
            Some(files) => files.told.events.record(kind, message, fields).map(drop),
            None => Ok(()),
        }
    }

    /// Appends a line of metrics.
    pub(super) fn metrics(&mut self, record: &Record) -> Result<(), TrackError> {
        let Some(files) = &mut self.0 else { return Ok(()) };
        files.metrics.append(record)?;
        files.told.followers.record(record);
        Ok(())
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
