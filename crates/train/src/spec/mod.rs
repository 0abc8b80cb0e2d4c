//! The run file as the user wrote it: keys and values checked, defaults not filled in.
//!
//! A file and the command line's `key=value` arguments become one tree in which every value remembers where it
//! was written; the tree is then read into [`RunSpec`]. So both are held to the same rules and get the same
//! messages, and one reading reports every mistake at once. The keys that a map may hold are those its reader
//! asks for: there is no second list that could differ.
//!
//! A key left out, or set to `null`, is `None`: what it then is depends on the model and the machine, and is
//! decided where those are known. The maps `eval_generation`, `optimizer`, `scheduler` and `parallel` have defaults of their own,
//! which depend on nothing, and are complete here once they are written at all.

mod data;
mod devices;
mod error;
mod generation;
mod keyword;
mod mlflow;
mod optimizer;
mod overrides;
mod parallel;
mod reader;
mod register;
mod scheduler;
mod settings;
#[cfg(test)]
mod tests;
mod tree;

use std::fs;
use std::path::Path;

use jiff::civil::Date;
use serde::Serialize;
use tessera_data::Columns;

pub use data::{DataPath, MixedSource};
pub use devices::{Devices, UnknownDevices};
pub use error::{Origin, Problem, ProblemKind, SpecError};
pub use generation::GenerationSpec;
pub use mlflow::{Artifacts, MlflowSpec, Unreachable};
pub use optimizer::{AdamSettings, LionSettings, OptimizerSpec};
pub use parallel::{Parallel, ReduceDType, ReshardAfterForward, ShardDegree};
pub use register::RegisterTo;
pub(crate) use register::registered_name;
pub use scheduler::SchedulerSpec;
pub use settings::{
    ActivationCheckpointing, CheckpointsToKeep, HfSavePrecision, Init, MicrobatchSize, Offload, Packing,
    Precision, TargetResponses, TaskType,
};

use reader::MapReader;
use tree::{Node, Value};

use crate::time::{Interval, TrainingDuration};

/// A run as its file and arguments describe it.
///
/// Every field but the first two may be left out; `None` then means that the plan decides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSpec {
    /// Hub id, folder in Hugging Face layout, or `.gguf` file.
    pub model: String,
    /// Where the training data is.
    pub train_data_path: DataPath,
    /// What an example is.
    pub task_type: Option<TaskType>,
    /// Data to evaluate on, in the form of `train_data_path`.
    pub eval_data_path: Option<DataPath>,
    /// The share of the training examples that is set aside to evaluate on.
    pub eval_split: Option<f64>,
    /// What the data's columns are called.
    pub columns: Option<Columns>,
    /// The cluster that prepared the service's data. None is needed here.
    pub data_prep_cluster_id: Option<String>,
    /// Prompts answered at every checkpoint.
    pub eval_prompts: Option<Vec<String>>,
    /// How they are answered.
    pub eval_generation: Option<GenerationSpec>,
    /// A checkpoint whose weights replace the model's.
    pub custom_weights_path: Option<String>,
    /// How long to train.
    pub training_duration: Option<TrainingDuration>,
    /// The peak learning rate.
    pub learning_rate: Option<f64>,
    /// Tokens of a packed row.
    pub context_length: Option<usize>,
    /// Whether the data is checked before the run.
    pub validate_inputs: Option<bool>,
    /// Where the first weights come from.
    pub init: Option<Init>,
    /// The run's folder below `save_folder`.
    pub run_name: Option<String>,
    /// Where runs are kept.
    pub save_folder: Option<String>,
    /// How often a checkpoint is saved.
    pub save_interval: Option<Interval>,
    /// How many checkpoints stay.
    pub save_num_checkpoints_to_keep: Option<CheckpointsToKeep>,
    /// Whether checkpoints leave the optimizer's state out.
    pub save_weights_only: Option<bool>,
    /// Whether training goes on while a checkpoint is written.
    pub save_async: Option<bool>,
    /// How often the model is exported in Hugging Face layout.
    pub hf_save_interval: Option<Interval>,
    /// The element type of exports.
    pub hf_save_precision: Option<HfSavePrecision>,
    /// Whether an interrupted run of this name is continued.
    pub autoresume: Option<bool>,
    /// Seed of shuffling, packing and random weights.
    pub seed: Option<u64>,
    /// Packed rows of one optimizer step, over all devices.
    pub global_train_batch_size: Option<usize>,
    /// Packed rows that one device computes at a time.
    pub device_train_microbatch_size: Option<MicrobatchSize>,
    /// What the arithmetic is done in.
    pub precision: Option<Precision>,
    /// The update rule.
    pub optimizer: Option<OptimizerSpec>,
    /// The learning rate over the run.
    pub scheduler: Option<SchedulerSpec>,
    /// What the global gradient norm is clipped to.
    pub max_grad_norm: Option<f64>,
    /// Which assistant turns have loss.
    pub target_responses: Option<TargetResponses>,
    /// How examples share rows.
    pub packing: Option<Packing>,
    /// Whether the order of rows is shuffled anew each epoch.
    pub shuffle: Option<bool>,
    /// What the forward pass keeps for the backward.
    pub activation_checkpointing: Option<ActivationCheckpointing>,
    /// What GPUs keep in the memory of the host.
    pub offload: Option<Offload>,
    /// What to train on.
    pub devices: Option<Devices>,
    /// How the model and data are spread over devices.
    pub parallel: Option<Parallel>,
    /// Seconds that ranks wait for one another in a step before the run ends with the name of the missing one.
    pub dist_timeout: Option<f64>,
    /// The same until the first batch: while data is tokenised and weights are read.
    pub dist_startup_timeout: Option<f64>,
    /// How often the evaluation data is evaluated.
    pub eval_interval: Option<Interval>,
    /// The MLflow experiment that the run belongs to.
    pub experiment_path: Option<String>,
    /// How it is told to MLflow.
    pub mlflow: Option<MlflowSpec>,
    /// Where the finished run's model is registered.
    pub register_to: Option<RegisterTo>,
    /// Whether event files are written for TensorBoard.
    pub tensorboard: Option<bool>,
    /// The port at which Prometheus finds the newest metrics.
    pub metrics_port: Option<u16>,
    /// The day that chat templates print.
    pub template_date: Option<Date>,
}

impl RunSpec {
    /// Reads the run file at `path` with the command line's arguments laid over it.
    ///
    /// # Errors
    /// When the file cannot be read or is no YAML, and for every key or value that is wrong.
    pub fn load(path: &Path, arguments: &[String]) -> Result<Self, SpecError> {
        let text =
            fs::read_to_string(path).map_err(|source| SpecError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path, arguments)
    }

    /// Reads the text of a run file with arguments laid over it; `path` is for messages.
    ///
    /// # Errors
    /// When the text is no YAML, and for every key or value that is wrong.
    pub fn parse(text: &str, path: &Path, arguments: &[String]) -> Result<Self, SpecError> {
        let mut root = tree::parse_file(text, path)?;
        if !matches!(root.value, Value::Map(_) | Value::Null) {
            return Err(SpecError::NoMap { path: path.to_owned(), found: root.shown() });
        }
        for argument in arguments {
            overrides::apply(&mut root, argument)?;
        }
        Self::read(&root).map_err(|problems| SpecError::Problems { path: path.to_owned(), problems })
    }

    /// The run as YAML that parses to the same again.
    ///
    /// # Errors
    /// When the serialiser refuses a value.
    pub fn to_yaml(&self) -> Result<String, SpecError> {
        Ok(serde_saphyr::to_string(self)?)
    }

    /// Every key of the run file with its form and range.
    fn read(root: &Node) -> Result<Self, Vec<Problem>> {
        let entries = match &root.value {
            Value::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        let mut map = MapReader::new(entries, &root.origin);
        let interval = || reader::time(Interval::EXPECTED);
        let model = map.required("model", "a hub id, a folder, or a .gguf file", reader::text);
        map.demand("train_data_path", DataPath::EXPECTED);
        let spec = Self {
            model: model.unwrap_or_default(),
            train_data_path: DataPath::read(&mut map, "train_data_path").unwrap_or(DataPath::Mix(Vec::new())),
            task_type: map.optional("task_type", reader::keyword),
            eval_data_path: DataPath::read(&mut map, "eval_data_path"),
            eval_split: map.optional(
                "eval_split",
                reader::number(|share| share > 0.0 && share < 1.0, "a share between 0 and 1, such as 0.02"),
            ),
            columns: map.map("columns", data::read_columns),
            data_prep_cluster_id: map.optional("data_prep_cluster_id", reader::text),
            eval_prompts: map.optional("eval_prompts", reader::list(reader::text, "texts")),
            eval_generation: map.map("eval_generation", GenerationSpec::read),
            custom_weights_path: map.optional("custom_weights_path", reader::text),
            training_duration: map.optional("training_duration", reader::time(TrainingDuration::EXPECTED)),
            learning_rate: map.optional(
                "learning_rate",
                reader::number(|rate| rate > 0.0, "a number above 0, such as 1.0e-5"),
            ),
            context_length: map.optional("context_length", reader::whole(2)),
            validate_inputs: map.optional("validate_inputs", reader::boolean),
            init: map.optional("init", reader::keyword),
            run_name: map.optional("run_name", folder_name),
            save_folder: map.optional("save_folder", reader::text),
            save_interval: map.optional("save_interval", interval()),
            save_num_checkpoints_to_keep: map
                .optional("save_num_checkpoints_to_keep", CheckpointsToKeep::read),
            save_weights_only: map.optional("save_weights_only", reader::boolean),
            save_async: map.optional("save_async", reader::boolean),
            hf_save_interval: map.optional("hf_save_interval", interval()),
            hf_save_precision: map.optional("hf_save_precision", reader::keyword),
            autoresume: map.optional("autoresume", reader::boolean),
            seed: map.optional("seed", reader::whole(0)),
            global_train_batch_size: map.optional("global_train_batch_size", reader::whole(1)),
            device_train_microbatch_size: map.optional("device_train_microbatch_size", MicrobatchSize::read),
            precision: map.optional("precision", reader::keyword),
            optimizer: map.map("optimizer", OptimizerSpec::read),
            scheduler: map.map("scheduler", SchedulerSpec::read),
            max_grad_norm: map.optional(
                "max_grad_norm",
                reader::number(|norm| norm > 0.0, "a number above 0, such as 1.0"),
            ),
            target_responses: map.optional("target_responses", reader::keyword),
            packing: map.optional("packing", reader::keyword),
            shuffle: map.optional("shuffle", reader::boolean),
            activation_checkpointing: map.optional("activation_checkpointing", reader::keyword),
            offload: map.optional("offload", reader::keyword),
            devices: map.optional("devices", devices::read),
            parallel: map.map("parallel", Parallel::read),
            dist_timeout: map.optional("dist_timeout", seconds()),
            dist_startup_timeout: map.optional("dist_startup_timeout", seconds()),
            eval_interval: map.optional("eval_interval", interval()),
            experiment_path: map.optional("experiment_path", reader::text),
            mlflow: map.map("mlflow", MlflowSpec::read),
            register_to: map.optional("register_to", RegisterTo::read),
            tensorboard: map.optional("tensorboard", reader::boolean),
            metrics_port: map.optional("metrics_port", port),
            template_date: map.optional("template_date", date),
        };
        if spec.eval_data_path.is_some() && spec.eval_split.is_some() {
            map.refuse("eval_split", "this key or eval_data_path, not both".to_owned());
        }
        let problems = map.finish();
        if problems.is_empty() { Ok(spec) } else { Err(problems) }
    }
}

/// A day of the calendar.
fn date(node: &Node) -> reader::Read<Date> {
    let expected = || "a day, such as 2026-11-22".to_owned();
    reader::text(node).map_err(|_| expected())?.parse().map_err(|_| expected())
}

/// A port of this machine.
fn port(node: &Node) -> reader::Read<u16> {
    reader::whole(1)(node).map_err(|_| "a port, 1 to 65535".to_owned())
}

/// A time to wait.
fn seconds() -> impl Fn(&Node) -> reader::Read<f64> {
    reader::number(|seconds| seconds > 0.0 && seconds < 1.0e9, "seconds, above 0, such as 600")
}

/// The name of a folder below another: no path, not hidden.
fn folder_name(node: &Node) -> reader::Read<String> {
    let expected = "a folder's name: text without `/` or `\\` that does not begin with a dot".to_owned();
    match reader::text(node) {
        Ok(name) if !name.starts_with('.') && !name.contains(['/', '\\', '\0']) => Ok(name),
        _ => Err(expected),
    }
}
