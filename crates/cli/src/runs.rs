//! `tessera runs`: the runs of a folder, and what can be asked of one that is there.
//!
//! Everything is read from the run folders, which the runs themselves write, or from their copies at a url: there is no list beside
//! them that could say something else.

mod asked;
mod compare;
mod control;
mod events;
mod list;
mod plot;
mod show;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use tessera_dist::explain;
use tessera_train::TrainError;
use tessera_train::elsewhere::url_of;
use tessera_train::run::FLIGHT;

use crate::failure::Failure;
use crate::output::{print, print_json};

use asked::folder_of;
use list::ListArguments;

/// Where runs are kept if nothing else is said.
const SAVE_FOLDER: &str = "runs";

/// Lists the runs in a save_folder, the latest first, or does what is asked with one of them.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tessera runs runs\n  tessera runs list --status RUNNING,FAILED --after 2026-11-01\n  \
                  tessera runs show my-run\n  tessera runs events my-run --follow\n  tessera runs compare my-run other-run\n\n\
                  A RUN is a run's folder, the name of one in the folder `runs`, or a url: s3://bucket/runs/my-run."
)]
pub struct RunsArguments {
    #[command(subcommand)]
    command: Option<RunsCommand>,
    #[command(flatten)]
    list: ListArguments,
}

/// One run that is there.
#[derive(Debug, Args)]
struct Run {
    /// The run's folder, its name where that is in `runs`, or its url
    #[arg(value_name = "RUN")]
    run: PathBuf,
}

/// Some runs that are there.
#[derive(Debug, Args)]
struct Runs {
    /// The runs' folders, their names where those are in `runs`, or their urls
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum RunsCommand {
    /// Lists runs, the latest first
    #[command(after_help = "Example:\n  tessera runs list --status COMPLETED --before 2026-11-20")]
    List(ListArguments),
    /// Shows what is known of a run: state, progress, estimated end, settings, checkpoints
    #[command(after_help = "Example:\n  tessera runs show my-run")]
    Show {
        #[command(flatten)]
        run: Run,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints a run's events, oldest first
    #[command(after_help = "Example:\n  tessera runs events my-run --follow")]
    Events {
        #[command(flatten)]
        run: Run,
        /// Go on printing until the run ends
        #[arg(long)]
        follow: bool,
        /// Print each event as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Asks runs to stop after the batch under way and to save; they can be resumed
    #[command(after_help = "Example:\n  tessera runs cancel my-run")]
    Cancel {
        #[command(flatten)]
        runs: Runs,
    },
    /// Goes on with a run from its newest checkpoint, as its run.yaml says
    #[command(after_help = "Example:\n  tessera runs resume my-run")]
    Resume {
        #[command(flatten)]
        run: Run,
        /// Print how the run ended as JSON on standard output; all else goes to standard error
        #[arg(long)]
        json: bool,
    },
    /// Deletes runs with their checkpoints and models
    #[command(after_help = "Example:\n  tessera runs delete my-run --yes")]
    Delete {
        #[command(flatten)]
        runs: Runs,
        /// Delete them; without it is only said what would be deleted
        #[arg(long)]
        yes: bool,
    },
    /// Explains which rank the others waited for, from what each did last
    #[command(after_help = "Example:\n  tessera runs why my-run")]
    Why {
        #[command(flatten)]
        run: Run,
        /// Print the explanation as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows the settings in which two runs differ, and their curves over one another
    #[command(after_help = "Example:\n  tessera runs compare my-run other-run")]
    Compare {
        /// The first run
        #[arg(value_name = "RUN")]
        first: PathBuf,
        /// The second
        #[arg(value_name = "OTHER")]
        second: PathBuf,
        /// Print settings and curves as JSON
        #[arg(long)]
        json: bool,
    },
}

impl RunsArguments {
    /// Does what is asked for.
    pub fn run(self) -> Result<std::process::ExitCode, Failure> {
        match self.command {
            None => self.list.run(),
            Some(RunsCommand::List(list)) => list.run(),
            Some(RunsCommand::Show { run, json }) => show::show(&run.run, json),
            Some(RunsCommand::Events { run, follow, json }) => events::print_events(&run.run, follow, json),
            Some(RunsCommand::Cancel { runs }) => control::cancel(&runs.runs),
            Some(RunsCommand::Resume { run, json }) => return control::resume(&run.run, json),
            Some(RunsCommand::Delete { runs, yes }) => control::delete(&runs.runs, yes),
            Some(RunsCommand::Why { run, json }) => why(&run.run, json),
            Some(RunsCommand::Compare { first, second, json }) => compare::compare([&first, &second], json),
        }
        .map(|()| std::process::ExitCode::SUCCESS)
    }
}

fn why(run: &Path, json: bool) -> Result<(), Failure> {
    if let Some(url) = url_of(run) {
        return Err(Failure::Argument(format!(
            "{url}: what each rank did last is not uploaded; run `tessera runs why` on a machine that sees the folder in which the \
             run works, runs/<run_name> where it was started"
        )));
    }
    let explanation = explain(&folder_of(run).join(FLIGHT)).map_err(TrainError::from)?;
    if json { print_json(&explanation) } else { print(&format!("{explanation}\n")) }
}
