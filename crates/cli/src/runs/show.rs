//! `tessera runs show`: one run, with all that its folder tells.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};
use tessera_files::FolderLock;
use tessera_track::{RunSummary, StoredFolder};
use tessera_train::TrainError;

use super::asked::Asked;
use super::list::{local, run_json, time_left, time_since};
use crate::failure::Failure;
use crate::output::{Paint, print, print_json};
use crate::summary::labelled;
use crate::text::{bytes, count, duration, harmless, rate, value};

/// Cells of the bar that shows how far the run has come, as the service's.
const CELLS: u64 = 10;

/// What can be known of the process that works on a run.
enum Worker {
    /// Whether there is one.
    Seen(bool),
    /// It is elsewhere, and uploaded something at this time.
    Elsewhere(Timestamp),
}

/// Prints a run.
pub fn show(run: &Path, json: bool) -> Result<(), Failure> {
    let asked = Asked::open(run)?;
    let run = asked.summary()?;
    let worker = match &asked {
        Asked::Here(folder) => Worker::Seen(FolderLock::is_held(folder).map_err(TrainError::from)?),
        Asked::There(run) => Worker::Elsewhere(run.uploaded()),
    };
    if json {
        let mut shown = run_json(&run)?;
        match worker {
            Worker::Seen(is_held) => shown["is_held"] = json!(is_held),
            Worker::Elsewhere(uploaded) => {
                shown["is_held"] = Value::Null;
                shown["uploaded"] = json!(uploaded);
            }
        }
        return print_json(&shown);
    }
    print(&labelled(Paint::of_stdout(), &rows(&run, &worker)))
}

fn rows(run: &RunSummary, worker: &Worker) -> Vec<(&'static str, String)> {
    let status = match worker {
        Worker::Seen(false) if !run.status.has_ended() => format!(
            "{}, but no process works on it: it was killed; `tessera runs resume` goes on",
            run.status
        ),
        Worker::Elsewhere(uploaded) if !run.status.has_ended() => {
            format!("{} when it was last uploaded, {} ago", run.status, time_since(*uploaded))
        }
        _ => run.status.to_string(),
    };
    let mut rows = vec![("Name", run.name.clone()), ("Status", status), ("Details", harmless(&run.details))];
    if let Some(total) = run.total_batches {
        rows.push(("Progress", progress(run.batches, total)));
    }
    rows.extend(run.last_loss.map(|loss| ("Loss", value(loss))));
    let texts = [
        ("Model", &run.model),
        ("Task", &run.task_type),
        ("Training data", &run.train_data_path),
        ("Duration", &run.training_duration),
    ];
    rows.extend(texts.into_iter().filter_map(|(label, text)| Some((label, harmless(text.as_ref()?)))));
    rows.extend(run.learning_rate.map(|peak| ("Learning rate", rate(peak))));
    rows.push(("Created", local(run.started)));
    rows.push(("Last event", local(run.last_event)));
    rows.push(("Time", duration(run.duration)));
    rows.extend(
        run.estimated_end.map(|end| ("Estimated end", format!("{}, in {}", local(end), time_left(end)))),
    );
    rows.push(("Checkpoints", folders(&run.checkpoints)));
    rows.push(("Models", folders(&run.exports)));
    rows.push(("Run folder", run.folder.display().to_string()));
    rows
}

fn progress(done: u64, total: u64) -> String {
    let full = done.min(total) * CELLS / total.max(1);
    let bar: String = (0..CELLS).map(|cell| if cell < full { '■' } else { '□' }).collect();
    format!("{bar} {} of {} batches", count(done), count(total))
}

fn folders(folders: &[StoredFolder]) -> String {
    if folders.is_empty() {
        return "none".to_owned();
    }
    let line = |folder: &StoredFolder| format!("{} ({})", folder.name, bytes(folder.bytes));
    folders.iter().map(line).collect::<Vec<_>>().join("\n")
}
