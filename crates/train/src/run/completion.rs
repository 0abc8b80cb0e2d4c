//! The end of a run whose batches are done and saved: its model is registered, and then it is COMPLETED.

use tessera_track::{EventLog, EventType, TrackError, read_events};

use super::followers::Followers;
use super::{Finished, Outcome, Run, RunPaths, registration};
use crate::error::TrainError;
use crate::observe::Update;
use crate::plan::Prepared;

impl Run<'_> {
    /// The end of a run that has trained and saved everything: its model is registered, where that is asked for.
    pub(super) fn complete(
        &self,
        finished: Finished,
        prepared: &Prepared,
        folder: &RunPaths,
        events: &mut EventLog,
        followers: &Followers,
    ) -> Result<Finished, TrainError> {
        let observer = self.observer.as_ref();
        let registered = registration::register(prepared, folder, &finished, followers, observer)?;
        let finished = Finished { registered, ..finished };
        // What has been done stays done, even if there is no room to tell of it.
        if let Err(error) = record_completed(events, &finished) {
            observer.observe(Update::Warning(&format!("COMPLETED could not be recorded: {error}")));
        }
        Ok(finished)
    }

    /// The same for a run that an earlier process has trained; nothing is told twice.
    pub(super) fn complete_again(
        &self,
        finished: Finished,
        prepared: &Prepared,
        folder: &RunPaths,
        events: &mut EventLog,
    ) -> Result<Finished, TrainError> {
        let settings = &prepared.plan.settings;
        let registered = registration::earlier(settings, folder, finished.batch)?;
        let registers = settings.register_to.is_some() && registered.is_none();
        let followers = Followers::of_complete(prepared, folder.path(), self.observer, registers)?;
        let earlier = read_events(folder.path())?;
        let completed = earlier.last().is_some_and(|event| event.kind == EventType::Completed);
        let result = if completed && !registers {
            Ok(Finished { registered, ..finished })
        } else {
            let result = self.complete(finished, prepared, folder, events, &followers);
            self.note(events, folder, result.as_ref().err());
            result
        };
        let last_session = earlier.iter().rev().take_while(|event| event.kind != EventType::Started);
        match &result {
            // It was told how the run ended, which another place for its model does not change.
            Err(_) if last_session.into_iter().any(|event| event.kind == EventType::Completed) => {
                followers.finish_again();
            }
            Err(error) => followers.finish(Err(error)),
            Ok(finished) => followers.finish(Ok(&Outcome::AlreadyCompleted(finished.clone()))),
        }
        result
    }
}

fn record_completed(events: &mut EventLog, finished: &Finished) -> Result<(), TrackError> {
    let mut fields = vec![("batch", finished.batch.into())];
    let message = match &finished.registered {
        None => "everything is saved".to_owned(),
        Some(registered) => {
            fields.push(("registered", registered.to_string().into()));
            format!("everything is saved, and the model registered as {registered}")
        }
    };
    events.record(EventType::Completed, message, &fields).map(drop)
}
