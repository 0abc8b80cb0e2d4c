//! `tessera train`: a run from its file to its last checkpoint.

mod reporter;
mod signals;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use tessera_train::launch::{Given, Launch};
use tessera_train::observe::{EvaluationReport, Observer};
use tessera_train::run::{self, Finished, Outcome, StopSignal};

use crate::failure::Failure;
use crate::output::{GOOD, Paint, print, print_json};
use crate::run_file::RunFile;
use crate::summary::labelled;
use crate::text::{counted, percent, quoted, value};
use reporter::Reporter;

/// Trains what a run file describes, or goes on with it where it was interrupted.
///
/// The first Ctrl-C (SIGINT), SIGTERM or SIGUSR1 finishes the batch, saves, and ends with 130 or 143; a second one leaves at once.
/// The same command then goes on from the newest whole checkpoint.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tessera train run.yaml\n  tessera train run.yaml training_duration=3ep learning_rate=2e-5 run_name=longer"
)]
pub struct TrainArguments {
    #[command(flatten)]
    run_file: RunFile,
    /// Which of the run's processes this is, from 0, where no launcher says it in its environment
    #[arg(long, value_name = "NUMBER")]
    rank: Option<usize>,
    /// How many processes the run has, where no launcher says it
    #[arg(long, value_name = "PROCESSES")]
    world_size: Option<usize>,
    /// Print how the run ended as JSON on standard output; all else goes to standard error
    #[arg(long)]
    json: bool,
}

impl TrainArguments {
    /// Those of a run file alone.
    pub fn of(run_file: RunFile, json: bool) -> Self {
        Self { run_file, rank: None, world_size: None, json }
    }

    /// Trains, and says where everything is.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let spec = self.run_file.load()?;
        let launch = Launch::find(Given { rank: self.rank, world_size: self.world_size })?;
        let reporter = Arc::new(Reporter::new(self.json));
        let stop = StopSignal::default();
        signals::watch(stop.clone(), reporter.clone()).map_err(Failure::Signals)?;
        let observer: Arc<dyn Observer> = reporter.clone();
        let outcome = run::train(spec, &launch, &observer, &stop);
        reporter.clear();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                let failure = Failure::from(error);
                failure.say();
                launch.abort(failure.exit_code());
                return Ok(ExitCode::from(failure.exit_code()));
            }
        };
        let code = match outcome {
            Outcome::Stopped { signal, .. } => ExitCode::from(signals::exit_code(signal)),
            Outcome::Completed(_) | Outcome::AlreadyCompleted(_) => ExitCode::SUCCESS,
        };
        if !launch.leads() {
            return Ok(code);
        }
        let printed = if self.json {
            print_json(&outcome_json(&outcome))
        } else {
            print(&self.closing(&outcome, &reporter))
        };
        match printed {
            // The run ended as it ended, whoever still reads.
            Err(failure) if failure.is_closed_pipe() => Ok(code),
            printed => printed.map(|()| code),
        }
    }

    /// The last words of a run.
    fn closing(&self, outcome: &Outcome, reporter: &Reporter) -> String {
        let paint = Paint::of_stdout();
        match outcome {
            Outcome::Completed(finished) => {
                let batches = counted(finished.batch, "batch", "batches");
                let done = paint.paint(GOOD, &format!("Done: {batches}."));
                format!("\n{done}\n{}", self.places(paint, finished, reporter))
            }
            Outcome::AlreadyCompleted(finished) => {
                let batches = counted(finished.batch, "batch", "batches");
                let done = paint.paint(GOOD, &format!("This run is finished: all {batches} are done."));
                format!("{done}\n{}", self.places(paint, finished, reporter))
            }
            Outcome::Stopped { signal, canceled, batch, checkpoint } => format!(
                "\n{} after {}; saved in {}.\nThe same command goes on from there:\n  {}\n",
                match canceled {
                    true => "Canceled".to_owned(),
                    false => format!("Stopped by {}", signals::name(*signal)),
                },
                counted(*batch, "batch", "batches"),
                checkpoint.display(),
                self.run_file.command("train")
            ),
        }
    }

    /// What became better, where everything is, and what to type next.
    fn places(&self, paint: Paint, finished: &Finished, reporter: &Reporter) -> String {
        let mut rows = Vec::new();
        if let (Some(first), Some(last)) = (finished.first_evaluation, finished.last_evaluation) {
            rows.push(("Evaluation", change(&first, &last)));
        }
        let place = |path: &Path| path.display().to_string();
        rows.extend([
            ("Run folder", place(&finished.folder)),
            ("Report", place(&finished.folder.join("report.html"))),
            ("Checkpoint", place(&finished.checkpoint)),
            ("Model", place(&finished.export)),
        ]);
        rows.extend(finished.registered.as_ref().map(|registered| ("Registered", registered.to_string())));
        format!("{}\nNext:\n{}", labelled(paint, &rows), next_commands(finished, reporter))
    }
}

/// Both evaluations, figure by figure.
fn change(first: &EvaluationReport, last: &EvaluationReport) -> String {
    format!(
        "cross-entropy {} → {}, perplexity {} → {}, accuracy {} → {}",
        value(first.cross_entropy),
        value(last.cross_entropy),
        value(first.perplexity()),
        value(last.perplexity()),
        percent(first.accuracy),
        percent(last.accuracy)
    )
}

fn next_commands(finished: &Finished, reporter: &Reporter) -> String {
    let path = |path: &Path| quoted(&path.display().to_string());
    let prompt = reporter.first_prompt().unwrap_or_else(|| "Hello".to_owned());
    let task = reporter.task().map(|task| format!(" --task {task}")).unwrap_or_default();
    let save_folder = finished.folder.parent().unwrap_or(Path::new("."));
    format!(
        "  tessera generate {}{task} --prompt {}\n  tessera checkpoint list {}\n  tessera runs {}\n",
        path(&finished.export),
        quoted(&prompt),
        path(&finished.folder),
        path(save_folder)
    )
}

fn outcome_json(outcome: &Outcome) -> Value {
    let evaluation = |evaluation: Option<EvaluationReport>| {
        evaluation.map(|report| {
            json!({
                "batch": report.batch,
                "cross_entropy": report.cross_entropy,
                "perplexity": report.perplexity(),
                "accuracy": report.accuracy,
            })
        })
    };
    let finished = |outcome: &str, finished: &Finished| {
        json!({
            "outcome": outcome,
            "batches": finished.batch,
            "run_folder": finished.folder,
            "report": finished.folder.join("report.html"),
            "checkpoint": finished.checkpoint,
            "export": finished.export,
            "registered": finished.registered,
            "first_evaluation": evaluation(finished.first_evaluation),
            "last_evaluation": evaluation(finished.last_evaluation),
        })
    };
    match outcome {
        Outcome::Completed(run) => finished("completed", run),
        Outcome::AlreadyCompleted(run) => finished("already_completed", run),
        Outcome::Stopped { signal, canceled, batch, checkpoint } => {
            let outcome = if *canceled { "canceled" } else { "stopped" };
            json!({"outcome": outcome, "signal": signal, "batches": batch, "checkpoint": checkpoint})
        }
    }
}
