//! `tessera runs list`: a line for each run, those that were asked for.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::json;
use tessera_track::{RunStatus, RunSummary, list_runs};
use tessera_train::TrainError;
use tessera_train::elsewhere::{self, url_of};

use super::SAVE_FOLDER;
use crate::failure::Failure;
use crate::output::{complain, print, print_json};
use crate::text::{Align, count, duration, table, value};

/// Which runs.
#[derive(Debug, Args)]
pub struct ListArguments {
    /// Where runs are kept, also by url
    #[arg(value_name = "SAVE_FOLDER", default_value = SAVE_FOLDER)]
    save_folder: PathBuf,
    /// Only runs in these states, such as RUNNING,FAILED
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    status: Vec<RunStatus>,
    /// Only runs created before this day or time, such as 2026-11-20 or '2026-11-20 18:30'
    #[arg(long, value_name = "TIME", value_parser = moment)]
    before: Option<Timestamp>,
    /// Only runs created at or after this day or time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    after: Option<Timestamp>,
    /// Only the latest so many
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

impl ListArguments {
    /// Prints the table.
    pub fn run(&self) -> Result<(), Failure> {
        let listing = match url_of(&self.save_folder) {
            Some(url) => elsewhere::list_runs(url)?,
            None => list_runs(&self.save_folder).map_err(TrainError::from)?,
        };
        for error in &listing.unreadable {
            complain("warning", &error.to_string());
        }
        let there_are_runs = !listing.runs.is_empty();
        let wanted = listing.runs.into_iter().filter(|run| self.wants(run));
        let runs: Vec<_> = wanted.take(self.limit.unwrap_or(usize::MAX)).collect();
        if self.json {
            return print_json(&runs.iter().map(run_json).collect::<Result<Vec<_>, _>>()?);
        }
        if runs.is_empty() {
            let such = if there_are_runs { "no such runs" } else { "no runs" };
            return print(&format!("{such} in {}\n", self.save_folder.display()));
        }
        let heading =
            ["NAME", "STATUS", "MODEL", "TASK", "BATCHES", "LOSS", "CREATED", "TIME", "LEFT", "CHECKPOINTS"];
        let mut rows = vec![heading.map(str::to_owned)];
        rows.extend(runs.iter().map(row));
        use Align::{Left, Right};
        let align = [Left, Left, Left, Left, Right, Right, Left, Right, Right, Right];
        print(&table(align, &rows))
    }

    fn wants(&self, run: &RunSummary) -> bool {
        (self.status.is_empty() || self.status.contains(&run.status))
            && self.before.is_none_or(|before| run.started < before)
            && self.after.is_none_or(|after| run.started >= after)
    }
}

/// A day or a time of the local clock, or a time with its zone.
fn moment(text: &str) -> Result<Timestamp, String> {
    let zoned = text.parse::<Timestamp>();
    zoned.or_else(|_| Ok(text.parse::<DateTime>()?.to_zoned(TimeZone::system())?.timestamp())).map_err(
        |_: jiff::Error| {
            "expected a day or time, such as 2026-11-20, '2026-11-20 18:30' or 2026-11-20T18:30:00Z".into()
        },
    )
}

fn row(run: &RunSummary) -> [String; 10] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let batches = match run.total_batches {
        Some(total) => format!("{}/{}", count(run.batches), count(total)),
        None => count(run.batches),
    };
    [
        run.name.clone(),
        run.status.to_string(),
        or_dash(run.model.as_deref().map(last_part)),
        or_dash(run.task_type.clone()),
        batches,
        or_dash(run.last_loss.map(value)),
        local(run.started),
        duration(run.duration),
        or_dash(run.estimated_end.map(time_left)),
        count(run.checkpoints.len() as u64),
    ]
}

/// A time on the wall.
pub(super) fn local(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string()
}

/// The time until then; nothing once it has passed.
pub(super) fn time_left(end: Timestamp) -> String {
    duration(end.duration_since(Timestamp::now()).try_into().unwrap_or_default())
}

/// The time since then.
pub(super) fn time_since(then: Timestamp) -> String {
    duration(Timestamp::now().duration_since(then).try_into().unwrap_or_default())
}

/// A model without the folder or entity before it.
fn last_part(model: &str) -> String {
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model).to_owned()
}

/// The library's summary, its time in seconds.
pub(super) fn run_json(run: &RunSummary) -> Result<serde_json::Value, serde_json::Error> {
    let mut json = serde_json::to_value(run)?;
    json["duration"] = json!(run.duration.as_secs_f64());
    Ok(json)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn days_and_times_are_understood() {
        for text in ["2026-01-13", "2026-01-13 12:30", "2026-01-13T12:30:45", "2026-01-13 12:30:45.5"] {
            let local = moment(text).unwrap().to_zoned(TimeZone::system());
            assert!(local.to_string().starts_with("2026-01-13T"), "{text}: {local}");
        }
        assert_eq!(moment("2026-01-13T12:30:00+01:00").unwrap(), "2026-01-13T11:30:00Z".parse().unwrap());
        for text in ["", "13.1.2026", "yesterday", "2026-02-30"] {
            assert!(moment(text).unwrap_err().contains("2026-11-20"), "{text}");
        }
    }
}
