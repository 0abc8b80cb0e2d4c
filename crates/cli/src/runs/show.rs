//! `tessera runs show`: one run, with all that its folder tells.

use std::path::Path;

use serde_json::json;
use tessera_files::FolderLock;
use tessera_track::{RunStatus, RunSummary, StoredFolder, read_run};
use tessera_train::TrainError;

use super::list::{local, run_json, time_left};
use crate::failure::Failure;
use crate::output::{Paint, print, print_json};
use crate::summary::labelled;
use crate::text::{bytes, count, duration, harmless, rate, value};

/// Cells of the bar that shows how far the run has come, as the service's.
const CELLS: u64 = 10;

/// Prints the run in `folder`.
pub fn show(folder: &Path, json: bool) -> Result<(), Failure> {
    let run = read_run(folder).map_err(TrainError::from)?;
    let is_held = FolderLock::is_held(folder).map_err(TrainError::from)?;
    if json {
        let mut shown = run_json(&run)?;
        shown["is_held"] = json!(is_held);
        return print_json(&shown);
    }
    print(&labelled(Paint::of_stdout(), &rows(&run, is_held)))
}

fn rows(run: &RunSummary, is_held: bool) -> Vec<(&'static str, String)> {
    let ended = matches!(run.status, RunStatus::Completed | RunStatus::Stopped | RunStatus::Failed);
    let status = match (ended, is_held) {
        (false, false) => format!(
            "{}, but no process works on it: it was killed; `tessera runs resume` goes on",
            run.status
        ),
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
