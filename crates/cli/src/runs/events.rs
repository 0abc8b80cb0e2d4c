//! `tessera runs events`: what has happened to a run, and what happens.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use tessera_track::{Event, read_events, read_run};
use tessera_train::TrainError;

use super::list::local;
use crate::failure::Failure;
use crate::output::print;
use crate::text::harmless;

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// Prints the events in `folder`, and goes on until the run ends where `follow` says so.
pub fn print_events(folder: &Path, follow: bool, json: bool) -> Result<(), Failure> {
    // A folder without a run is a mistake, not a run without events.
    read_run(folder).map_err(TrainError::from)?;
    let mut shown = 0;
    loop {
        let events = read_events(folder).map_err(TrainError::from)?;
        for event in events.iter().skip(shown) {
            print(&if json { serde_json::to_string(event)? + "\n" } else { line(event) })?;
        }
        shown = events.len();
        let over = events.last().is_some_and(|event| event.kind.is_terminal());
        if over || !follow {
            return Ok(());
        }
        sleep(PERIOD);
    }
}

fn line(event: &Event) -> String {
    let message = harmless(&event.message).replace('\n', " ");
    format!("{}  {:<17} {message}\n", local(event.time), event.kind.to_string())
}
