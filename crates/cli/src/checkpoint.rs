//! `tessera checkpoint`: what lies in checkpoints, whether it is whole, and models made from them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use tessera_train::TrainError;
use tessera_train::observe::Observer;
use tessera_train::spec::HfSavePrecision;
use tessera_train::state::checkpoints::{
    self, CheckpointDescription, ListedCheckpoint, StoredTensor, describe, verify,
};

use crate::failure::Failure;
use crate::output::{HEADING, Paint, print, print_json};
use crate::summary::labelled;
use crate::text::{Align, bytes, count, counted, duration, quoted, table};
use crate::watch::Watcher;

/// Lists, shows, verifies and exports checkpoints.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera checkpoint list runs/my-run")]
pub struct CheckpointArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArguments),
    Show(ShowArguments),
    Verify(VerifyArguments),
    Export(ExportArguments),
}

/// Lists the whole checkpoints of a run, newest first.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera checkpoint list runs/my-run")]
struct ListArguments {
    /// A run's folder, or its folder `checkpoints`, also by url
    #[arg(value_name = "RUN_FOLDER")]
    folder: PathBuf,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// Shows a checkpoint's position, settings and tensors.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera checkpoint show runs/my-run/checkpoints/ep1-ba10 --json")]
struct ShowArguments {
    /// A folder ep#-ba#, of this engine or of Composer, also by url
    #[arg(value_name = "CHECKPOINT")]
    folder: PathBuf,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Compares everything in a checkpoint with its checksums.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera checkpoint verify runs/my-run/checkpoints/ep1-ba10")]
struct VerifyArguments {
    /// A folder ep#-ba#, of this engine or of Composer, also by url
    #[arg(value_name = "CHECKPOINT")]
    folder: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Makes a model folder in Hugging Face layout from a checkpoint's weights.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tessera checkpoint export runs/my-run/checkpoints/ep1-ba10 \\\n    --model HuggingFaceTB/SmolLM2-135M-Instruct --output my-model"
)]
struct ExportArguments {
    /// A folder ep#-ba# of this engine or of Composer, a latest-sharded-rank0.symlink, or a Composer .pt file, also by url
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// Where config.json and tokenizer come from: a hub id, a model folder, or a .gguf file, the last two also by url
    #[arg(long)]
    model: String,
    /// The folder to make
    #[arg(long)]
    output: PathBuf,
    /// The element type of the weights; auto is that of the checkpoint
    #[arg(long, value_enum, default_value_t = PrecisionArgument::Auto)]
    precision: PrecisionArgument,
    /// Print where the model is as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionArgument {
    Auto,
    Fp32,
    Bf16,
}

impl From<PrecisionArgument> for HfSavePrecision {
    fn from(argument: PrecisionArgument) -> Self {
        match argument {
            PrecisionArgument::Auto => Self::Auto,
            PrecisionArgument::Fp32 => Self::Fp32,
            PrecisionArgument::Bf16 => Self::Bf16,
        }
    }
}

impl CheckpointArguments {
    /// Does what was asked for.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::List(arguments) => arguments.run(),
            Command::Show(arguments) => arguments.run(),
            Command::Verify(arguments) => arguments.run(),
            Command::Export(arguments) => arguments.run(),
        }
    }
}

/// Does something with its progress on standard error.
fn watched<T>(work: impl FnOnce(&Arc<dyn Observer>) -> Result<T, TrainError>) -> Result<T, TrainError> {
    let watcher = Arc::new(Watcher::default());
    let observer: Arc<dyn Observer> = watcher.clone();
    let done = work(&observer);
    watcher.clear();
    done
}

impl ListArguments {
    fn run(self) -> Result<(), Failure> {
        let found = checkpoints::list(&self.folder)?;
        if self.json {
            return print_json(&found);
        }
        if found.is_empty() {
            return print(&format!("no whole checkpoint in {}\n", self.folder.display()));
        }
        let mut rows = vec![["NAME", "EPOCHS", "BATCHES", "SIZE", "FOLDER"].map(str::to_owned)];
        rows.extend(found.into_iter().map(|checkpoint| {
            let ListedCheckpoint { name, folder, epoch, batch, bytes: size } = checkpoint;
            [name, count(epoch), count(batch), bytes(size), folder.display().to_string()]
        }));
        use Align::{Left, Right};
        print(&table([Left, Right, Right, Right, Left], &rows))
    }
}

impl ShowArguments {
    fn run(self) -> Result<(), Failure> {
        let description = watched(|observer| describe(&self.folder, observer))?;
        if self.json {
            return print_json(&description);
        }
        print(&shown(Paint::of_stdout(), &description))
    }
}

fn shown(paint: Paint, checkpoint: &CheckpointDescription) -> String {
    let mut rows = vec![("Checkpoint", checkpoint.folder.display().to_string())];
    rows.extend(checkpoint.run_name.clone().map(|name| ("Run", name)));
    let done = done(&checkpoint.timestamp);
    if !done.is_empty() {
        rows.push(("Done", done));
    }
    let optimizer = checkpoint.optimizer.clone().unwrap_or_else(|| "left out: weights only".to_owned());
    rows.push(("Optimizer", optimizer));
    if let Some(skipped) = checkpoint.skipped_updates.filter(|&skipped| skipped > 0) {
        rows.push(("Skipped", counted(skipped, "update", "updates")));
    }
    let elements = counted(checkpoint.weight_elements(), "element", "elements");
    rows.push(("Weights", format!("{}, {elements}", counted(checkpoint.weights.len(), "tensor", "tensors"))));
    let mut text = labelled(paint, &rows);
    if let Some(Value::Object(settings)) = &checkpoint.settings {
        let settings: Vec<_> = settings.iter().map(|(key, value)| [key.clone(), value.to_string()]).collect();
        text.push_str(&format!("\n{}\n", paint.paint(HEADING, "Settings")));
        text.push_str(&table([Align::Left; 2], &settings));
    }
    for (heading, tensors) in [("Weights", &checkpoint.weights), ("Other tensors", &checkpoint.other_tensors)]
    {
        if !tensors.is_empty() {
            text.push_str(&format!("\n{}\n{}", paint.paint(HEADING, heading), tensor_table(tensors)));
        }
    }
    text
}

/// How far the run had come, as far as it is known.
fn done(timestamp: &Map<String, Value>) -> String {
    let counts = [
        ("epoch", "epoch", "epochs"),
        ("batch", "batch", "batches"),
        ("sample", "row", "rows"),
        ("token", "token", "tokens"),
    ];
    let known = counts
        .iter()
        .filter_map(|(field, one, many)| Some(counted(timestamp.get(*field)?.as_u64()?, one, many)));
    let time = timestamp.get("total_wct").and_then(Value::as_f64);
    let time = time.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map(duration);
    known.chain(time).collect::<Vec<_>>().join(", ")
}

fn tensor_table(tensors: &BTreeMap<String, StoredTensor>) -> String {
    let row = |(name, tensor): (&String, &StoredTensor)| {
        [name.clone(), format!("{:?}", tensor.dtype).to_lowercase(), format!("{:?}", tensor.shape)]
    };
    table([Align::Left; 3], &tensors.iter().map(row).collect::<Vec<_>>())
}

impl VerifyArguments {
    fn run(self) -> Result<(), Failure> {
        let verified = watched(|observer| verify(&self.folder, observer))?;
        if self.json {
            return print_json(&verified);
        }
        print(&format!(
            "{} is whole: {} and {} match their checksums\n",
            verified.folder.display(),
            counted(verified.tensors, "tensor", "tensors"),
            counted(verified.objects, "object", "objects")
        ))
    }
}

impl ExportArguments {
    fn run(self) -> Result<(), Failure> {
        watched(|observer| {
            let precision = self.precision.into();
            checkpoints::export(&self.checkpoint, &self.model, &self.output, precision, observer)
        })?;
        if self.json {
            return print_json(&json!({"output": self.output}));
        }
        let output = self.output.display().to_string();
        print(&format!("{output} is written. Ask it:\n  tessera generate {} --prompt '…'\n", quoted(&output)))
    }
}
