//! The run file with every default filled in: what `run.yaml` holds, and what decides whether a checkpoint belongs to a run.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::civil::Date;
use serde::Serialize;
use tessera_checkpoint::StoredDType;
use tessera_data::{Columns, DataSettings, HoldOut, Task};
use tessera_dist::Degrees;
use tessera_files::{Digest, Sha256, sha256_hex};
use tessera_model::Compute;
use tessera_model::config::{ModelConfig, TorchDType};
use tessera_ops::{DType, Factors, Home};

use crate::elsewhere;
use crate::engine::check_context;
use crate::error::TrainError;
use crate::gpus;
use crate::spec::{
    ActivationCheckpointing, CheckpointsToKeep, DataPath, Devices, GenerationSpec, HfSavePrecision, Init,
    MicrobatchSize, MlflowSpec, Offload, OptimizerSpec, Packing, Parallel, Precision, RegisterTo,
    ReshardAfterForward, RunSpec, SchedulerSpec, ShardDegree, TargetResponses, TaskType,
};
use crate::time::{Interval, TrainingDuration};

/// The longest context that is taken without being asked for.
pub const DEFAULT_CONTEXT_LENGTH: usize = 8192;
/// More rows in a batch than any run has use for.
const MOST_ROWS: usize = 1 << 20;
/// Places of tokens in a micro-batch are counted in 32 bits.
const MOST_MICRO_BATCH_TOKENS: usize = i32::MAX as usize;

/// Every key of the run file. The meaning of each is told at [`RunSpec`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub model: String,
    pub train_data_path: DataPath,
    pub task_type: TaskType,
    pub eval_data_path: Option<DataPath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_split: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    pub eval_prompts: Vec<String>,
    pub eval_generation: GenerationSpec,
    pub custom_weights_path: Option<String>,
    pub training_duration: TrainingDuration,
    pub learning_rate: f64,
    pub context_length: usize,
    pub validate_inputs: bool,
    pub init: Init,
    pub run_name: String,
    pub save_folder: String,
    pub save_interval: Interval,
    pub save_num_checkpoints_to_keep: CheckpointsToKeep,
    pub save_weights_only: bool,
    pub save_async: bool,
    pub hf_save_interval: Interval,
    pub hf_save_precision: HfSavePrecision,
    pub autoresume: bool,
    pub seed: u64,
    pub global_train_batch_size: usize,
    /// `auto` until the memory plan has decided.
    pub device_train_microbatch_size: MicrobatchSize,
    pub precision: Precision,
    pub optimizer: OptimizerSpec,
    pub scheduler: SchedulerSpec,
    pub max_grad_norm: f64,
    pub target_responses: TargetResponses,
    pub packing: Packing,
    pub shuffle: bool,
    pub activation_checkpointing: ActivationCheckpointing,
    /// What `auto` means on this machine, once the memory plan has decided: that blocks keep everything. It is decided anew
    /// wherever the run goes on.
    #[serde(skip)]
    pub(super) has_room_for_blocks: bool,
    /// Likewise that gathered weights stay for the step.
    #[serde(skip)]
    pub(super) has_room_for_weights: bool,
    pub offload: Offload,
    pub devices: Devices,
    pub parallel: Parallel,
    pub dist_timeout: f64,
    pub dist_startup_timeout: f64,
    pub eval_interval: Interval,
    pub experiment_path: Option<String>,
    /// None where there is no experiment.
    pub mlflow: Option<MlflowSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register_to: Option<RegisterTo>,
    pub tensorboard: bool,
    pub metrics_port: Option<u16>,
    pub template_date: Date,
    /// Whether the run file says the day.
    #[serde(skip)]
    date_is_given: bool,
    /// Whether it says the precision.
    #[serde(skip)]
    precision_is_given: bool,
    /// The GPUs that this process drives; none where it computes on the CPU.
    #[serde(skip)]
    pub gpus: Vec<usize>,
    /// Where the weights of `custom_weights_path` lie on this machine.
    #[serde(skip)]
    pub(super) fetched_weights: Option<PathBuf>,
}

/// What the run file itself says where the day or the machine decides else.
struct Named {
    template_date: Option<Date>,
    devices: Devices,
    precision: Precision,
}

/// Keys that a resumed run may change: they do not touch the numbers of training, or only their rounding.
const FREE_KEYS: [&str; 26] = [
    "eval_data_path",
    "eval_prompts",
    "eval_generation",
    "validate_inputs",
    "run_name",
    "save_folder",
    "save_interval",
    "save_num_checkpoints_to_keep",
    "save_weights_only",
    "save_async",
    "hf_save_interval",
    "hf_save_precision",
    "autoresume",
    "activation_checkpointing",
    "device_train_microbatch_size",
    "offload",
    "devices",
    "parallel",
    "dist_timeout",
    "dist_startup_timeout",
    "eval_interval",
    "experiment_path",
    "mlflow",
    "register_to",
    "tensorboard",
    "metrics_port",
];

/// What a resumed run may not change of a key that it may change otherwise, or of one that may be left out, as JSON pointers. What a checkpoint does not say
/// came after it, and the run had its default.
const FIXED_PARTS: [&str; 3] = ["/parallel/reduce_dtype", "/columns", "/eval_split"];

impl Settings {
    /// Fills in what `spec` leaves open, for a model of this config whose tensors are all of the type `stored`, if they are of
    /// one.
    ///
    /// # Errors
    /// When the model or this build cannot do what is asked for.
    pub fn resolve(
        spec: RunSpec,
        config: &ModelConfig,
        stored: impl FnOnce() -> Option<StoredDType>,
    ) -> Result<Self, TrainError> {
        let maximum = config.max_position_embeddings;
        let context_length = spec.context_length.unwrap_or(DEFAULT_CONTEXT_LENGTH.min(maximum));
        if context_length > maximum {
            return Err(TrainError::unsupported(
                "context_length",
                context_length,
                format!("at most {maximum}, the model's max_position_embeddings"),
            ));
        }
        if let (Some(_), None) = (&spec.mlflow, &spec.experiment_path) {
            return Err(TrainError::unsupported(
                "mlflow",
                "a tracking server without an experiment",
                "experiment_path beside it, such as /Shared/my-experiment".to_owned(),
            ));
        }
        if let (Some(RegisterTo::Registry { .. }), None) = (&spec.register_to, &spec.experiment_path) {
            return Err(TrainError::unsupported(
                "register_to",
                "a registered model without an experiment",
                "experiment_path beside it, since a version is made of the artifacts of an MLflow run"
                    .to_owned(),
            ));
        }
        let named = Named {
            template_date: spec.template_date,
            devices: spec.devices.clone().unwrap_or(Devices::Auto),
            precision: spec.precision.unwrap_or(Precision::Auto),
        };
        let (devices, gpus) = gpus::resolve(spec.devices.unwrap_or(Devices::Auto))?;
        let mut settings = Self {
            task_type: spec.task_type.unwrap_or(TaskType::ChatCompletion),
            eval_prompts: spec.eval_prompts.unwrap_or_default(),
            eval_generation: spec.eval_generation.unwrap_or_default(),
            training_duration: spec.training_duration.unwrap_or(TrainingDuration::ONE_EPOCH),
            learning_rate: spec.learning_rate.unwrap_or(1.0e-5),
            context_length,
            validate_inputs: spec.validate_inputs.unwrap_or(true),
            init: spec.init.unwrap_or(Init::Pretrained),
            run_name: spec.run_name.unwrap_or_default(),
            save_folder: spec.save_folder.unwrap_or_else(|| elsewhere::DEFAULT_FOLDER.into()),
            save_interval: spec.save_interval.unwrap_or(Interval::EACH_EPOCH),
            save_num_checkpoints_to_keep: spec.save_num_checkpoints_to_keep.unwrap_or(CheckpointsToKeep::All),
            save_weights_only: spec.save_weights_only.unwrap_or(false),
            save_async: spec.save_async.unwrap_or(true),
            hf_save_interval: spec.hf_save_interval.unwrap_or(Interval::AT_THE_END),
            hf_save_precision: export_precision(spec.hf_save_precision, config, stored),
            autoresume: spec.autoresume.unwrap_or(true),
            seed: spec.seed.unwrap_or(17),
            global_train_batch_size: spec.global_train_batch_size.unwrap_or(8),
            device_train_microbatch_size: spec.device_train_microbatch_size.unwrap_or(MicrobatchSize::Auto),
            precision: match spec.precision.unwrap_or(Precision::Auto) {
                Precision::Auto if gpus.is_empty() => Precision::Fp32,
                Precision::Auto => Precision::AmpBf16,
                precision => precision,
            },
            optimizer: spec.optimizer.unwrap_or_default(),
            scheduler: spec.scheduler.unwrap_or_default(),
            max_grad_norm: spec.max_grad_norm.unwrap_or(1.0),
            target_responses: spec.target_responses.unwrap_or(TargetResponses::All),
            packing: spec.packing.unwrap_or(Packing::BestFit),
            shuffle: spec.shuffle.unwrap_or(true),
            activation_checkpointing: spec.activation_checkpointing.unwrap_or(ActivationCheckpointing::Auto),
            has_room_for_blocks: false,
            has_room_for_weights: false,
            offload: spec.offload.unwrap_or(Offload::None),
            devices,
            gpus,
            fetched_weights: None,
            parallel: spec.parallel.unwrap_or_default(),
            dist_timeout: spec.dist_timeout.unwrap_or(600.0),
            dist_startup_timeout: spec.dist_startup_timeout.unwrap_or(1800.0),
            eval_interval: spec.eval_interval.unwrap_or(Interval::EACH_EPOCH),
            mlflow: spec.experiment_path.as_ref().map(|_| spec.mlflow.unwrap_or_default()),
            experiment_path: spec.experiment_path,
            register_to: spec.register_to,
            tensorboard: spec.tensorboard.unwrap_or(false),
            metrics_port: spec.metrics_port,
            date_is_given: spec.template_date.is_some(),
            precision_is_given: spec.precision.is_some_and(|precision| precision != Precision::Auto),
            template_date: spec.template_date.unwrap_or_else(|| jiff::Zoned::now().date()),
            model: spec.model,
            train_data_path: spec.train_data_path,
            eval_data_path: spec.eval_data_path,
            eval_split: spec.eval_split,
            columns: spec.columns,
            custom_weights_path: spec.custom_weights_path,
        };
        settings.check_sizes()?;
        settings.check_columns()?;
        if settings.run_name.is_empty() {
            settings.run_name = settings.derived_name(named)?;
        }
        Ok(settings)
    }

    /// Fails if a source names a column that the task does not read.
    fn check_columns(&self) -> Result<(), TrainError> {
        let paths = [Some(&self.train_data_path), self.eval_data_path.as_ref()];
        for source in paths.into_iter().flatten().flat_map(|path| path.sources(self.columns.as_ref())) {
            if let Some(name) = source.columns.unknown(self.task()) {
                let expected = format!("{}, which {} reads", self.task().columns().join(", "), self.task());
                return Err(TrainError::unsupported("columns", name, expected));
            }
        }
        Ok(())
    }

    /// Fails if a batch or micro-batch has more rows or tokens than can be counted.
    fn check_sizes(&self) -> Result<(), TrainError> {
        let batch = self.global_train_batch_size;
        if batch > MOST_ROWS {
            return Err(TrainError::unsupported(
                "global_train_batch_size",
                batch,
                format!("at most {MOST_ROWS}"),
            ));
        }
        let MicrobatchSize::Rows(rows) = self.device_train_microbatch_size else { return Ok(()) };
        let rows = rows.get();
        let most = batch.min(MOST_MICRO_BATCH_TOKENS / self.context_length);
        if rows > most {
            return Err(TrainError::unsupported(
                "device_train_microbatch_size",
                rows,
                format!("at most {most}: global_train_batch_size, and {MOST_MICRO_BATCH_TOKENS} tokens"),
            ));
        }
        Ok(())
    }

    /// Takes over from the `saved` settings of a checkpoint what was resolved by machine and day, where the run file does not
    /// say: a resumed run repeats it.
    pub fn keep_resolved(&mut self, saved: &serde_json::Value) {
        let rows = saved.get("device_train_microbatch_size").and_then(serde_json::Value::as_u64);
        let rows = rows.and_then(|rows| NonZeroUsize::new(usize::try_from(rows).ok()?));
        if let (MicrobatchSize::Auto, Some(rows)) = (self.device_train_microbatch_size, rows) {
            self.device_train_microbatch_size = MicrobatchSize::Rows(rows);
        }
        let precision = saved.get("precision").and_then(serde_json::Value::as_str);
        let mut known = [Precision::Fp32, Precision::AmpBf16].into_iter();
        let precision = known.find(|known| precision == Some(&known.to_string()));
        if let (false, Some(precision)) = (self.precision_is_given, precision) {
            self.precision = precision;
        }
        let date = saved.get("template_date").and_then(|date| date.as_str()?.parse().ok());
        if let (false, Some(date)) = (self.date_is_given, date) {
            self.template_date = date;
        }
    }

    /// `<model>-<hash>`: the same run file gives the same name on any day and machine, so that running it again resumes.
    fn derived_name(&self, named: Named) -> Result<String, TrainError> {
        let Named { template_date, devices, precision } = named;
        let template_date = template_date.unwrap_or_default();
        let lasting = Self {
            template_date,
            devices,
            precision,
            // Who follows a run does not make it another.
            experiment_path: None,
            mlflow: None,
            register_to: None,
            tensorboard: false,
            metrics_port: None,
            ..self.clone()
        };
        let model = self.model.trim_end_matches('/').rsplit('/').next().unwrap_or("run");
        let model = model.split('@').next().unwrap_or(model).trim_start_matches('.');
        let digest = sha256_hex(Sha256::new_with_prefix(serde_json::to_string(&lasting)?));
        Ok(format!("{}-{}", model.strip_suffix(".gguf").unwrap_or(model), &digest[..8]))
    }

    /// The run's folder on this machine.
    pub fn run_folder(&self) -> PathBuf {
        elsewhere::local_folder(&self.save_folder).join(&self.run_name)
    }

    /// Where prepared data, and what comes from elsewhere, is kept.
    pub fn cache(&self) -> PathBuf {
        elsewhere::cache(&self.save_folder)
    }

    /// The checkpoint whose weights replace the model's, as it lies on this machine.
    pub(crate) fn custom_weights(&self) -> Option<&Path> {
        self.fetched_weights.as_deref().or(self.custom_weights_path.as_ref().map(Path::new))
    }

    /// Rows of a micro-batch, once they are decided.
    pub fn microbatch_rows(&self) -> usize {
        match self.device_train_microbatch_size {
            MicrobatchSize::Auto => 1,
            MicrobatchSize::Rows(rows) => rows.get(),
        }
    }

    /// Whether blocks are computed again on the way back.
    pub fn recomputes(&self) -> bool {
        match self.activation_checkpointing {
            ActivationCheckpointing::Auto => !self.has_room_for_blocks,
            ActivationCheckpointing::Block => true,
            ActivationCheckpointing::None => false,
        }
    }

    /// Whether gathered weights are given up once they have been used.
    pub fn reshards(&self) -> bool {
        match self.parallel.reshard_after_forward {
            ReshardAfterForward::Auto => !self.has_room_for_weights,
            ReshardAfterForward::Given(given) => given,
        }
    }

    /// How long ranks wait for one another.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.dist_timeout)
    }

    /// How long they do until the first batch.
    pub fn startup_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.dist_startup_timeout)
    }

    /// The ranks of this process: one a device.
    pub fn local_ranks(&self) -> NonZeroUsize {
        match self.devices {
            Devices::Cpu { ranks } => ranks,
            _ => NonZeroUsize::new(self.gpus.len()).unwrap_or(NonZeroUsize::MIN),
        }
    }

    /// Whether this process computes on GPUs.
    pub fn on_gpus(&self) -> bool {
        !self.gpus.is_empty()
    }

    /// What the model computes in, and where. On CPUs mixed precision is a matter of [`Settings::factors`] alone.
    pub fn compute(&self) -> Compute {
        match (self.precision, self.on_gpus()) {
            (Precision::AmpBf16, true) => Compute { dtype: DType::BF16, home: Home::Gpu },
            (_, true) => Compute { dtype: DType::F32, home: Home::Gpu },
            (_, false) => Compute { dtype: DType::F32, home: Home::Host },
        }
    }

    /// How products on CPUs take their factors.
    pub fn factors(&self) -> Factors {
        match self.precision {
            Precision::AmpBf16 => Factors::Bf16,
            Precision::Auto | Precision::Fp32 => Factors::Exact,
        }
    }

    /// How `world_size` ranks share the work.
    ///
    /// # Errors
    /// When `parallel` does not divide them, or asks for what the model cannot be divided into.
    pub fn degrees(&self, world_size: usize, config: &ModelConfig) -> Result<Degrees, TrainError> {
        let Parallel { shard, replicate, context, .. } = self.parallel;
        let (replicate, context) = (replicate.get(), context.get());
        let others = replicate.saturating_mul(context);
        let shard = match shard {
            ShardDegree::Remaining if world_size.is_multiple_of(others) => world_size / others,
            ShardDegree::Ranks(shard) if shard.get().saturating_mul(others) == world_size => shard.get(),
            _ => {
                let found = serde_json::to_string(&self.parallel)?;
                let expected = format!(
                    "degrees whose product is {world_size}, the number of ranks (shard: -1 takes what the others leave)"
                );
                return Err(TrainError::unsupported("parallel", found, expected));
            }
        };
        check_context(config, self.context_length, context)?;
        Ok(Degrees { shard, replicate, context })
    }

    /// What data preparation needs to know of the training data.
    pub fn train_data(&self, config: &ModelConfig) -> DataSettings {
        let hold_out = self.eval_split.map(|fraction| HoldOut { fraction, held_out: false });
        self.data_settings(&self.train_data_path, hold_out, config)
    }

    /// The same of the evaluation data, if there is any: data of its own, or what was set aside of the training data.
    pub fn eval_data(&self, config: &ModelConfig) -> Option<DataSettings> {
        let set_aside = self.eval_split.map(|fraction| HoldOut { fraction, held_out: true });
        match (&self.eval_data_path, set_aside) {
            (Some(path), _) => Some(self.data_settings(path, None, config)),
            (None, Some(_)) => Some(self.data_settings(&self.train_data_path, set_aside, config)),
            (None, None) => None,
        }
    }

    fn data_settings(
        &self,
        path: &DataPath,
        hold_out: Option<HoldOut>,
        config: &ModelConfig,
    ) -> DataSettings {
        DataSettings {
            sources: path.sources(self.columns.as_ref()),
            hold_out,
            task: self.task(),
            context_length: self.context_length,
            target_responses: match self.target_responses {
                TargetResponses::All => tessera_data::TargetResponses::All,
                TargetResponses::Last => tessera_data::TargetResponses::Last,
            },
            packing: match self.packing {
                Packing::BestFit => tessera_data::Packing::BestFit,
                Packing::None => tessera_data::Packing::None,
            },
            seed: self.seed,
            vocab_size: config.vocab_size,
        }
    }

    /// What an example is.
    pub fn task(&self) -> Task {
        match self.task_type {
            TaskType::ChatCompletion => Task::ChatCompletion,
            TaskType::InstructionFinetune => Task::InstructionFinetune,
            TaskType::ContinuedPretrain => Task::ContinuedPretrain,
        }
    }

    /// The settings as a flat JSON object, as checkpoints keep them.
    pub fn to_json(&self) -> Result<serde_json::Value, TrainError> {
        Ok(serde_json::to_value(self)?)
    }

    /// The first key that differs from the `saved` settings of a checkpoint and touches the numbers of training, with the
    /// saved value and this one's.
    pub fn difference(&self, saved: &serde_json::Value) -> Result<Option<Difference>, TrainError> {
        let own = self.to_json()?;
        let null = serde_json::Value::Null;
        let defaults = serde_json::json!({ "parallel": Parallel::default() });
        let keys = own.as_object().into_iter().flat_map(serde_json::Map::keys);
        let keys = keys.filter(|key| !FREE_KEYS.contains(&key.as_str())).map(|key| format!("/{key}"));
        Ok(keys.chain(FIXED_PARTS.map(str::to_owned)).find_map(|pointer| {
            let now = own.pointer(&pointer).unwrap_or(&null);
            let before = saved.pointer(&pointer).or_else(|| defaults.pointer(&pointer)).unwrap_or(&null);
            (now != before).then(|| Difference {
                key: pointer[1..].replace('/', "."),
                before: before.to_string(),
                now: now.to_string(),
            })
        }))
    }
}

/// A key whose value in a checkpoint is another than in the run file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// The checkpoint's value, as JSON.
    pub before: String,
    /// The run file's value, as JSON.
    pub now: String,
}

/// The source's element type. What is not fp32 is exported in bf16: trained weights may leave fp16's range.
fn export_precision(
    given: Option<HfSavePrecision>,
    config: &ModelConfig,
    stored: impl FnOnce() -> Option<StoredDType>,
) -> HfSavePrecision {
    match given.unwrap_or(HfSavePrecision::Auto) {
        HfSavePrecision::Auto => match config.stored_dtype {
            Some(TorchDType::Float32) => HfSavePrecision::Fp32,
            Some(TorchDType::BFloat16 | TorchDType::Float16) => HfSavePrecision::Bf16,
            None if stored() == Some(StoredDType::F32) => HfSavePrecision::Fp32,
            None => HfSavePrecision::Bf16,
        },
        precision => precision,
    }
}
