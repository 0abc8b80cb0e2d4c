//! `tessera runs events`: what has happened to a run, and what happens.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use tessera_track::{Event, read_events, read_run};
use tessera_train::{Fault, TrainError};

use super::asked::Asked;
use super::list::local;
use crate::failure::Failure;
use crate::output::print;
use crate::text::harmless;

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_millis(500);
/// How often a store is asked for it; runs upload it each half minute.
const PERIOD_THERE: Duration = Duration::from_secs(5);

/// Prints a run's events, and goes on until it ends where `follow` says so.
pub fn print_events(run: &Path, follow: bool, json: bool) -> Result<(), Failure> {
    let run = Asked::open(run)?;
    if let Asked::Here(folder) = &run {
        // A folder without a run is a mistake, not a run without events.
        read_run(folder).map_err(TrainError::from)?;
    }
    let mut shown = 0;
    loop {
        let events = read_events(run.folder()).map_err(|error| TrainError::from(run.named(error)))?;
        for event in events.iter().skip(shown) {
            print(&if json { serde_json::to_string(event)? + "\n" } else { line(event) })?;
        }
        shown = events.len();
        let over = events.last().is_some_and(|event| event.kind.is_terminal());
        if over || !follow {
            return Ok(());
        }
        match &run {
            Asked::Here(_) => sleep(PERIOD),
            Asked::There(run) => {
                sleep(PERIOD_THERE);
                match run.look_again() {
                    // A store that is away for a while has no news.
                    Err(error) if error.fault() == Fault::Network => {}
                    looked => looked?,
                }
            }
        }
    }
}

fn line(event: &Event) -> String {
    let message = harmless(&event.message).replace('\n', " ");
    format!("{}  {:<17} {message}\n", local(event.time), event.kind.to_string())
}
