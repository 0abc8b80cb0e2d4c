//! `tessera runs`: the runs of a folder, and why the ranks of one waited for one another in vain.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use tessera_dist::explain;
use tessera_track::{RunSummary, list_runs};
use tessera_train::TrainError;
use tessera_train::run::FLIGHT;

use crate::failure::Failure;
use crate::output::{complain, print, print_json};
use crate::text::{Align, count, duration, table, value};

/// Lists the runs in a save_folder, the latest first.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tessera runs runs\n  tessera runs why runs/my-run"
)]
pub struct RunsArguments {
    #[command(subcommand)]
    command: Option<RunsCommand>,
    /// Where runs are kept
    #[arg(value_name = "SAVE_FOLDER", default_value = "runs")]
    save_folder: PathBuf,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum RunsCommand {
    /// Explains which rank the others waited for, from what each did last
    Why {
        /// The run's folder
        #[arg(value_name = "RUN_FOLDER")]
        folder: PathBuf,
        /// Print the explanation as JSON
        #[arg(long)]
        json: bool,
    },
}

impl RunsArguments {
    /// Prints the table, or the explanation.
    pub fn run(self) -> Result<(), Failure> {
        if let Some(RunsCommand::Why { folder, json }) = self.command {
            let explanation = explain(&folder.join(FLIGHT)).map_err(TrainError::from)?;
            return if json { print_json(&explanation) } else { print(&format!("{explanation}\n")) };
        }
        let listing = list_runs(&self.save_folder).map_err(TrainError::from)?;
        for error in &listing.unreadable {
            complain("warning", &error.to_string());
        }
        if self.json {
            return print_json(&listing.runs.iter().map(run_json).collect::<Result<Vec<_>, _>>()?);
        }
        if listing.runs.is_empty() {
            return print(&format!("no runs in {}\n", self.save_folder.display()));
        }
        let heading =
            ["NAME", "STATUS", "MODEL", "TASK", "BATCHES", "LOSS", "STARTED", "TIME", "CHECKPOINTS"];
        let mut rows = vec![heading.map(str::to_owned)];
        rows.extend(listing.runs.iter().map(row));
        use Align::{Left, Right};
        print(&table([Left, Left, Left, Left, Right, Right, Left, Right, Right], &rows))
    }
}

fn row(run: &RunSummary) -> [String; 9] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let started = run.started.to_zoned(jiff::tz::TimeZone::system());
    [
        run.name.clone(),
        run.status.to_string(),
        or_dash(run.model.as_deref().map(last_part)),
        or_dash(run.task_type.clone()),
        count(run.batches),
        or_dash(run.last_loss.map(value)),
        started.strftime("%Y-%m-%d %H:%M").to_string(),
        duration(run.duration),
        count(run.checkpoints.len() as u64),
    ]
}

/// A model without the folder or entity before it.
fn last_part(model: &str) -> String {
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model).to_owned()
}

/// The library's summary, its time in seconds.
fn run_json(run: &RunSummary) -> Result<serde_json::Value, serde_json::Error> {
    let mut json = serde_json::to_value(run)?;
    json["duration"] = json!(run.duration.as_secs_f64());
    Ok(json)
}
