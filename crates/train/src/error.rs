//! What can end a run, sorted by who can put it right.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tessera_checkpoint::dcp::DcpError;
use tessera_checkpoint::huggingface::{HuggingFaceError, TensorMismatch};
use tessera_data::DataError;
use tessera_dist::DistError;
use tessera_files::FileError;
use tessera_model::config::ConfigError;
use tessera_ops::OpError;
use tessera_track::TrackError;
use tessera_track::mlflow::MlflowError;
use tessera_workspace::WorkspaceError;

use crate::plan::Difference;
use crate::schedule::ScheduleError;
use crate::spec::SpecError;
use crate::state::Attempt;

/// A run could not start or go on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrainError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Model(#[from] HuggingFaceError),
    #[error("{path} is neither a file nor a folder here, and cannot be had as a data set: {source}")]
    DataSet { path: String, source: HuggingFaceError },
    #[error(
        "Delta table input to train_data_path or eval_data_path must be in the format catalog.schema.table, but got {path}, and no \
         file or folder of that name is here"
    )]
    NoTableName { path: String },
    /// Something in an object store or on a server.
    #[cfg(feature = "stores")]
    #[error(transparent)]
    Store(#[from] tessera_stores::StoreError),
    #[error(
        "{key}: {url} cannot be had by this build; build it with --features stores, or give a path on this machine"
    )]
    NoStores { key: &'static str, url: String },
    #[error("{key}: {path} {place}; fetch it with `{command}`, and name what lies there")]
    OnWorkspace { key: &'static str, path: String, place: &'static str, command: String },
    #[error(
        "the run is whole in {folder}, but not all of it could be uploaded to {url}: {problem}. Nothing is lost: the same command \
         uploads the rest",
        folder = folder.display()
    )]
    NotUploaded { folder: PathBuf, url: String, problem: String },
    #[error(
        "{here} and {there} are not the same: {difference}. Nothing was replaced there; set another run_name, or move one of the \
         two away",
        here = here.display()
    )]
    OtherRun { here: PathBuf, there: String, difference: String },
    #[error("{place}: {mismatch}")]
    Tensors { place: String, mismatch: TensorMismatch },
    #[error(transparent)]
    Checkpoint(#[from] DcpError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Track(#[from] TrackError),
    #[error(transparent)]
    Mlflow(#[from] MlflowError),
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    #[error(transparent)]
    Engine(#[from] DistError),
    /// Weights could not be read.
    #[error("{0}")]
    Weights(#[from] Box<dyn Error + Send + Sync>),
    #[error("cannot draw a token: {0}")]
    Sampling(#[from] candle_core::Error),
    #[error("cannot write the settings as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("cannot write run.yaml: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
    /// A value of the run file that this model or build cannot serve.
    #[error("{key}: {found} cannot be had; expected {expected}")]
    Unsupported { key: &'static str, found: String, expected: String },
    #[error(
        "{folder} is in use by another process; wait for it, stop it, or set another run_name",
        folder = folder.display()
    )]
    Busy { folder: PathBuf },
    #[error(
        "{folder} holds checkpoints of an earlier run and autoresume is false; set autoresume: true to go on from the \
         newest, or another run_name to start afresh",
        folder = folder.display()
    )]
    AlreadyStarted { folder: PathBuf },
    #[error(
        "{checkpoint} was trained with {key} {before}, the run file says {now}. A resumed run keeps what its numbers depend \
         on: set {key} back, or start a new run (another run_name) from these weights with custom_weights_path",
        checkpoint = checkpoint.display(), key = difference.key, before = difference.before, now = difference.now
    )]
    Changed { checkpoint: PathBuf, difference: Difference },
    #[error(
        "{checkpoint} was trained on other data or with another tokenizer than {path} gives now; restore them, or start a \
         new run (another run_name) from these weights with custom_weights_path",
        checkpoint = checkpoint.display()
    )]
    OtherData { checkpoint: PathBuf, path: String },
    #[error(
        "{checkpoint} was trained on {before}, but now this is {now}; restore the source, or start a new run (another run_name) \
         from these weights with custom_weights_path",
        checkpoint = checkpoint.display()
    )]
    SourceChanged { checkpoint: PathBuf, before: String, now: String },
    #[error(
        "{checkpoint}: `{missing}` is not there, so training cannot go on from it. Its weights can start a new run \
         (another run_name) with custom_weights_path",
        checkpoint = checkpoint.display()
    )]
    NotResumable { checkpoint: PathBuf, missing: String },
    #[error(
        "no checkpoint in {folder} can be gone on from; the newest: {newest}. Restore one, or start afresh with another \
         run_name",
        folder = folder.display()
    )]
    NoReadableCheckpoint { folder: PathBuf, newest: Box<TrainError> },
    #[error(
        "the run needs {needed} of memory with {tokens} tokens at a time, but {place} has {total} ({states} for \
         weights, gradients and optimizer); use a smaller model, context_length or \
         device_train_microbatch_size, save_async: false, on GPUs offload: optimizer, more ranks that share the model, \
         or a larger machine. \
         `tessera plan` shows what takes how much"
    )]
    TooLarge { needed: String, place: String, total: String, states: String, tokens: usize },
    #[error(
        "the GPUs need {needed} of the machine's memory for copies of checkpoints and for what is offloaded, but it has \
         {total}; use save_async: false, save_weights_only: true, offload: none, fewer GPUs of this machine, or a larger one. \
         `tessera plan` shows what takes how much"
    )]
    TooMuchPinned { needed: String, total: String },
    #[error(
        "loss or gradient was not finite in {count} steps in a row, the last being batch {batch}; nothing of them was kept: \
         {advice}"
    )]
    NotFinite { count: u64, batch: u64, advice: String },
    #[error(
        "{name} holds a value that is not finite, so it was not saved; the learning_rate is probably too high: start another \
         run (another run_name) with a lower one"
    )]
    NotFiniteWeights { name: String },
    #[error(
        "the weights to start from are damaged: element {element} of {name} is {value}; fetch them again, or start from an \
         earlier checkpoint"
    )]
    NotFiniteSource { name: String, element: usize, value: f32 },
    #[error(
        "{launcher} set {name} to '{found}', which names no process; start the run by mpirun, srun or torchrun, or unset the \
         variable"
    )]
    Launch { launcher: &'static str, name: &'static str, found: String },
    #[error(
        "{launcher} started this process as one of several, but does not say of how many; give --world-size"
    )]
    LaunchedOfUnknown { launcher: &'static str },
    #[error("--rank and --world-size belong together where no launcher says the other; give both or neither")]
    LaunchedHalf,
    #[error(
        "{launcher} started {processes} processes, but this build joins none to another; build it with --features mpi, or \
         start one process"
    )]
    NoProcesses { launcher: &'static str, processes: usize },
    #[error(
        "this process is rank {} of {} as {launcher} says, but rank {} of {} as MPI found; start the run by the mpirun of the MPI \
         that the binary was built with, or by srun --mpi=pmix, and give --rank and --world-size only where neither says them",
        .said.0, .said.1, .found.0, .found.1
    )]
    Unlaunched { launcher: &'static str, said: (usize, usize), found: (usize, usize) },
    #[error("rank 0 could not start the run: {message}")]
    NotStarted { message: String, fault: Fault },
    #[error(
        "rank {rank} sees another {key} than rank 0: {found} instead of {expected}; give all nodes the same run file, model and \
         data, and the same binary"
    )]
    Disagreement { rank: usize, key: String, found: String, expected: String },
    #[error(
        "ranks {} and {} start from different weights: {name} is not the same for both; give all nodes the same model",
        .ranks[0], .ranks[1]
    )]
    OtherWeights { ranks: [usize; 2], name: String },
    #[error(
        "rank {rank} holds another state than rank {other} {moment}: {found} instead of {expected}. Replicated state must be \
         equal; go on from the last checkpoint, and have the memory of its machine checked if it comes again"
    )]
    Diverged { rank: usize, other: usize, moment: &'static str, found: String, expected: String },
    /// Another rank could not use a checkpoint that this one could.
    #[error("rank {rank}: {message}")]
    Elsewhere { rank: usize, message: String, attempt: Attempt },
    #[error(
        "all batches are done and the model is whole in {export}, but it is not registered as {place}: {source}. The same command \
         registers it, without training again",
        export = export.display()
    )]
    NotRegistered { place: String, export: PathBuf, source: Box<TrainError> },
    #[error("rank {rank} failed in its thread; its last words are above")]
    Panicked { rank: usize },
    #[error("{folder} is not there for rank {rank}: save_folder must be one folder that all nodes see", folder = folder.display())]
    NotShared { folder: PathBuf, rank: usize },
    #[error("rank {rank} could not write its part of a checkpoint: {message}")]
    ShardFailed { rank: usize, message: String },
    #[error("the thread that wrote a checkpoint failed")]
    SaverFailed,
    /// A sweep's file cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Sweep { path: PathBuf, reason: String },
    #[error("eval_prompts: prompt {number} has no token; remove it")]
    EmptyPrompt { number: usize },
    #[error(
        "the final checkpoint could not be saved: {source}. Make room and run the same command again: it goes on from the last one"
    )]
    FinalSave { source: Box<TrainError> },
}

/// Who can put an error right: the binary's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// What the user gave: run file, data, model.
    Input,
    /// The machine: memory, disk, device.
    Machine,
    /// Another rank or the network.
    Network,
}

impl TrainError {
    pub(crate) fn unsupported(key: &'static str, found: impl Display, expected: String) -> Self {
        Self::Unsupported { key, found: found.to_string(), expected }
    }

    /// Whether a disk was full.
    pub fn is_storage_full(&self) -> bool {
        self.file_error().is_some_and(FileError::is_storage_full)
    }

    /// Whether a run can go on although this came of a checkpoint: the older ones stay as they are.
    pub fn spares_the_run(&self) -> bool {
        self.is_storage_full() || matches!(self, Self::ShardFailed { .. })
    }

    /// The error of the file system behind it, if there is one.
    fn file_error(&self) -> Option<&FileError> {
        match self {
            Self::File(error)
            | Self::Checkpoint(DcpError::File(error))
            | Self::Model(HuggingFaceError::File(error))
            | Self::Data(DataError::File(error))
            | Self::DataSet { source: HuggingFaceError::File(error), .. }
            | Self::Track(TrackError::File(error))
            | Self::Workspace(WorkspaceError::File(error))
            | Self::Mlflow(MlflowError::File(error)) => Some(error),
            #[cfg(feature = "stores")]
            Self::Store(tessera_stores::StoreError {
                problem: tessera_stores::Problem::File(error), ..
            }) => Some(error),
            Self::FinalSave { source } | Self::NotRegistered { source, .. } => source.file_error(),
            _ => None,
        }
    }

    /// Who can put it right.
    pub fn fault(&self) -> Fault {
        if self.file_error().is_some_and(|error| is_of_the_path(&error.source)) {
            return Fault::Input;
        }
        match self {
            Self::NotStarted { fault, .. } => *fault,
            Self::NotRegistered { source, .. } => source.fault(),
            Self::Engine(error) if error.is_between_ranks() => Fault::Network,
            Self::Engine(DistError::NoRings { .. } | DistError::Ring { .. })
            | Self::Track(TrackError::NotARun { .. } | TrackError::RunFile { .. }) => Fault::Input,
            Self::Checkpoint(DcpError::File(_))
            | Self::Model(HuggingFaceError::File(_))
            | Self::Engine(_)
            | Self::File(_)
            | Self::Track(_)
            | Self::TooLarge { .. }
            | Self::TooMuchPinned { .. }
            | Self::SaverFailed
            | Self::Panicked { .. }
            | Self::Diverged { .. }
            | Self::FinalSave { .. }
            | Self::Data(DataError::File(_) | DataError::CacheUnreadable { .. }) => Fault::Machine,
            #[cfg(feature = "stores")]
            Self::Store(error) if error.passes() => Fault::Network,
            Self::NotUploaded { .. } => Fault::Network,
            Self::Mlflow(MlflowError::File(_) | MlflowError::Start(_))
            | Self::Workspace(WorkspaceError::File(_) | WorkspaceError::Start(_)) => Fault::Machine,
            Self::Model(HuggingFaceError::Hub { .. })
            | Self::DataSet { source: HuggingFaceError::Hub { .. }, .. }
            | Self::Mlflow(MlflowError::Unreachable { .. } | MlflowError::Storage { passes: true, .. })
            | Self::Workspace(WorkspaceError::Unreachable { .. })
            | Self::ShardFailed { .. } => Fault::Network,
            _ => Fault::Input,
        }
    }
}

/// Whether the path that was given is at fault: it is not there, or not a place to read or write.
fn is_of_the_path(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), NotFound | PermissionDenied | NotADirectory | IsADirectory | ReadOnlyFilesystem)
}

impl From<OpError> for TrainError {
    fn from(error: OpError) -> Self {
        Self::Engine(error.into())
    }
}
