//! `tessera sweep`: the runs of every combination of some values, one after the other, and what came of them.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;

use clap::Args;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use tessera_track::{RunSummary, names, read_metrics, read_run};
use tessera_train::TrainError;
use tessera_train::sweep::{Sweep, SweepRun};

use crate::failure::Failure;
use crate::output::{complain, print, print_json};
use crate::run_file::RunFile;
use crate::text::{count, counted, value};

/// What a shell expects of a process that SIGINT or SIGTERM has ended.
const STOPPED: [i32; 2] = [130, 143];

/// Trains every combination of some values of a run file's keys, in turn, and prints a table of what came of them.
///
/// The sweep's file names a run file and the values: `{run: run.yaml, vary: {learning_rate: [1.0e-5, 2.0e-5], training_duration:
/// [1ep, 3ep]}}`. Each run is an ordinary one with a folder of its own. The same command again goes on where a sweep was
/// stopped; runs that are complete are not run again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tessera sweep sweep.yaml\n  tessera sweep sweep.yaml --results\n\n\
                  As an array job of a scheduler, one run a task:\n  \
                  tessera sweep sweep.yaml --commands | sed -n \"${SLURM_ARRAY_TASK_ID}p\" | sh")]
pub struct SweepArguments {
    /// The sweep's file
    #[arg(value_name = "SWEEP.yaml")]
    path: PathBuf,
    /// Print the command of each run, one a line, and run none
    #[arg(long, conflicts_with = "results")]
    commands: bool,
    /// Print what is there of the results, and run none
    #[arg(long)]
    results: bool,
    /// Print the results as JSON; what the runs print goes to standard error
    #[arg(long, conflicts_with = "commands")]
    json: bool,
}

impl SweepArguments {
    /// Runs what has not been run, and prints the results.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let sweep = Sweep::load(&self.path)?;
        if self.commands {
            let command =
                |run: &SweepRun| RunFile::new(&sweep.run_file, run.overrides.clone()).command("train");
            let lines: Vec<_> = sweep.runs.iter().map(command).collect();
            print(&(lines.join("\n") + "\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut worst = 0;
        if !self.results {
            for (index, run) in sweep.runs.iter().enumerate() {
                let folder = run.folder.display();
                complain("sweep", &format!("run {} of {}, {folder}", index + 1, sweep.runs.len()));
                let code = self.train(&sweep, run)?;
                worst = worst.max(code);
                if STOPPED.contains(&code) {
                    break;
                }
                if code != 0 {
                    complain(
                        "warning",
                        &format!("{folder} ended with {code}; the sweep goes on with the next"),
                    );
                }
            }
        }
        self.show(&sweep)?;
        Ok(ExitCode::from(u8::try_from(worst).unwrap_or(u8::MAX)))
    }

    /// One run, in a process of its own, and its exit code.
    fn train(&self, sweep: &Sweep, run: &SweepRun) -> Result<i32, Failure> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(Failure::Signals)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("train").arg(&sweep.run_file).args(&run.overrides);
        if self.json {
            // Standard output is for the results; how each run ended is among them.
            command.arg("--json").stdout(std::process::Stdio::null());
        }
        let mut child = command.spawn()?;
        let (id, handle) = (child.id().to_string(), signals.handle());
        let forward = move || {
            for signal in signals.forever() {
                // A terminal's Ctrl-C reaches the run by itself; twice it would leave at once.
                if signal != SIGINT {
                    let _ = Command::new("kill").args(["-TERM", &id]).status();
                }
            }
        };
        let forwarder =
            thread::Builder::new().name("signals".into()).spawn(forward).map_err(Failure::Signals)?;
        let ended = child.wait();
        handle.close();
        // It only hands signals on.
        let _ = forwarder.join();
        // A run that a signal has ended without its doing did not save.
        Ok(ended?.code().unwrap_or(STOPPED[1]))
    }

    fn show(&self, sweep: &Sweep) -> Result<(), Failure> {
        let results = sweep.runs.iter().map(Outcome::read).collect::<Result<Vec<_>, _>>()?;
        if self.json {
            let shown: Vec<_> =
                sweep.runs.iter().zip(&results).map(|(run, result)| result.json(sweep, run)).collect();
            return print_json(&shown);
        }
        let best = results.iter().filter_map(Outcome::score).min_by(f64::total_cmp);
        let mut rows = vec![heading(sweep)];
        for (run, result) in sweep.runs.iter().zip(&results) {
            let is_best = result.score().is_some() && result.score() == best;
            rows.push(result.row(run, is_best));
        }
        print(&format!("{}{}, * the best\n", columns(&rows), counted(sweep.runs.len(), "run", "runs")))
    }
}

/// What came of a run, as far as it has come.
struct Outcome {
    run: Option<RunSummary>,
    /// The last evaluation's.
    cross_entropy: Option<f64>,
}

impl Outcome {
    fn read(run: &SweepRun) -> Result<Self, Failure> {
        if !run.folder.join("events.jsonl").is_file() {
            return Ok(Self { run: None, cross_entropy: None });
        }
        let summary = read_run(&run.folder).map_err(TrainError::from)?;
        let mut cross_entropy = None;
        for line in read_metrics(&run.folder).map_err(TrainError::from)? {
            let evaluated = line.map_err(TrainError::from)?.number(names::EVAL_CROSS_ENTROPY);
            cross_entropy = evaluated.or(cross_entropy);
        }
        Ok(Self { run: Some(summary), cross_entropy })
    }

    /// What runs are compared by, the less the better: the evaluation's cross-entropy, else the last loss.
    fn score(&self) -> Option<f64> {
        self.cross_entropy.or_else(|| self.run.as_ref()?.last_loss)
    }

    fn row(&self, run: &SweepRun, is_best: bool) -> Vec<String> {
        let name = run.folder.file_name().unwrap_or_default().to_string_lossy();
        let or_dash = |number: Option<f64>| number.map_or_else(|| "–".to_owned(), value);
        let (status, batches, loss) = match &self.run {
            Some(run) => (run.status.to_string(), count(run.batches), or_dash(run.last_loss)),
            None => ("–".to_owned(), "–".to_owned(), "–".to_owned()),
        };
        let mut row = vec![if is_best { "*" } else { "" }.to_owned(), name.into_owned()];
        row.extend(run.values.iter().map(shown));
        row.extend([status, batches, loss, or_dash(self.cross_entropy)]);
        row
    }

    fn json(&self, sweep: &Sweep, run: &SweepRun) -> Value {
        let values: serde_json::Map<_, _> =
            sweep.keys.iter().cloned().zip(run.values.iter().cloned()).collect();
        json!({
            "run_folder": run.folder,
            "values": values,
            "status": self.run.as_ref().map(|run| run.status),
            "batches": self.run.as_ref().map(|run| run.batches),
            "loss": self.run.as_ref().and_then(|run| run.last_loss),
            "eval_cross_entropy": self.cross_entropy,
        })
    }
}

fn heading(sweep: &Sweep) -> Vec<String> {
    let mut heading = vec![String::new(), "NAME".to_owned()];
    heading.extend(sweep.keys.iter().cloned());
    heading.extend(["STATUS", "BATCHES", "LOSS", "EVAL CROSS-ENTROPY"].map(str::to_owned));
    heading
}

/// A value as a run file has it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Rows of cells with columns as wide as their widest cell, two blanks apart.
fn columns(rows: &[Vec<String>]) -> String {
    let number = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..number).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
