//! What is to be trained: a model's shape and the keys of a run file that bear on memory and time. Weights and data are not
//! asked for.

use std::path::Path;

use tessera_dist::{Degrees, Residency};
use tessera_model::catalogue;
use tessera_model::config::{ModelConfig, TrainingWork};
use tessera_model::{Compute, Model};
use tessera_ops::{DType, Home};

use super::{ClusterError, Layout};
use crate::elsewhere;
use crate::engine::EngineSettings;
use crate::error::TrainError;
use crate::plan::{OpenedModel, Settings, engine_settings};
use crate::spec::{Devices, HfSavePrecision, MicrobatchSize, ReduceDType, RunSpec, SpecError};

/// What is to be trained.
pub struct Workload {
    settings: Settings,
    model: Model,
    /// Whether the number of rows of a batch was asked for.
    batch_is_given: bool,
}

impl Workload {
    /// That of a run file. Its data is not read; `devices` and `precision` are those of the plan.
    ///
    /// # Errors
    /// When the model is unknown, or cannot be trained as the file says.
    pub fn of_run(spec: RunSpec) -> Result<Self, ClusterError> {
        let config = match local_config(&spec.model)? {
            Some(config) => config,
            None => match catalogue::find(&spec.model) {
                Ok(entry) => entry.config().map_err(TrainError::from)?,
                Err(_) => {
                    OpenedModel::open(&spec.model, &elsewhere::cache(elsewhere::DEFAULT_FOLDER), None)?.config
                }
            },
        };
        let batch_is_given = true;
        Self::new(spec, config, batch_is_given)
    }

    /// That of a model by its name in the catalogue, its folder, or its `config.json`, with keys of the run file laid over the
    /// defaults.
    ///
    /// # Errors
    /// When the model is unknown, or cannot be trained as the keys say.
    pub fn of_model(name: &str, arguments: &[String]) -> Result<Self, ClusterError> {
        let config = match local_config(name)? {
            Some(config) => config,
            None => catalogue::find(name)?.config().map_err(TrainError::from)?,
        };
        let quoted = serde_json::to_string(name).map_err(TrainError::from)?;
        let text = format!("model: {quoted}\ntrain_data_path: none\n");
        let parse = |arguments: &[String]| -> Result<RunSpec, SpecError> {
            RunSpec::parse(&text, Path::new("the arguments"), arguments)
        };
        let spec = parse(arguments).map_err(TrainError::from)?;
        let batch_is_given = spec.global_train_batch_size.is_some();
        Self::new(spec, config, batch_is_given)
    }

    fn new(mut spec: RunSpec, config: ModelConfig, batch_is_given: bool) -> Result<Self, ClusterError> {
        // The plan says on what the run computes.
        spec.devices = Some(Devices::ONE_CPU);
        spec.precision = None;
        let settings = Settings::resolve(spec, &config, || None)?;
        let compute = Compute { dtype: DType::BF16, home: Home::Gpu };
        Ok(Self { settings, model: Model::new(config).computing(compute), batch_is_given })
    }

    /// The model's name as it was given.
    pub fn name(&self) -> &str {
        &self.settings.model
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Tokens of a row.
    pub fn context_length(&self) -> usize {
        self.settings.context_length
    }

    /// How `ranks` ranks share the work.
    ///
    /// # Errors
    /// When `parallel` does not divide them, or the model cannot be divided so.
    pub fn degrees(&self, ranks: usize) -> Result<Degrees, TrainError> {
        self.settings.degrees(ranks, self.config())
    }

    /// Rows of a step: at least one for each rank that takes rows, where nothing else is asked for.
    pub fn global_batch(&self, parallel: Layout) -> usize {
        let rows = self.settings.global_train_batch_size;
        if self.batch_is_given { rows } else { rows.max(parallel.data()) }
    }

    /// Rows of a micro-batch, where they are asked for.
    pub fn micro_batch(&self) -> Option<usize> {
        match self.settings.device_train_microbatch_size {
            MicrobatchSize::Auto => None,
            MicrobatchSize::Rows(rows) => Some(rows.get()),
        }
    }

    /// The engine's settings for micro-batches of `rows` rows, each shared by `context` ranks.
    pub fn engine_settings(&self, rows: usize, context: usize) -> EngineSettings {
        let micro_batch_tokens = (rows * self.context_length()).div_ceil(context);
        EngineSettings { micro_batch_tokens, ..engine_settings(&self.settings, rows) }
    }

    /// Whether blocks are computed again on the way back.
    pub fn recomputes(&self) -> bool {
        self.engine_settings(1, 1).recompute
    }

    /// How long gathered weights stay.
    pub fn residency(&self) -> Residency {
        self.engine_settings(1, 1).residency
    }

    /// The type in which gradients travel.
    pub fn reduce_dtype(&self) -> ReduceDType {
        self.settings.parallel.reduce_dtype
    }

    /// The optimizer's moments of each parameter.
    pub fn moments(&self) -> usize {
        self.engine_settings(1, 1).optimizer.moments().len()
    }

    /// Whether checkpoints leave the moments out.
    pub fn saves_weights_only(&self) -> bool {
        self.settings.save_weights_only
    }

    /// Whether training goes on while a checkpoint is written.
    pub fn saves_beside(&self) -> bool {
        self.settings.save_async
    }

    /// Bytes of an exported parameter.
    pub fn export_bytes_per_parameter(&self) -> u64 {
        match self.settings.hf_save_precision {
            HfSavePrecision::Fp32 => 4,
            HfSavePrecision::Auto | HfSavePrecision::Bf16 => 2,
        }
    }

    /// The work of `rows` rows, each one document of which every token has a target: no data costs more.
    pub fn work(&self, rows: usize) -> TrainingWork {
        let (rows, length) = (rows as u64, self.context_length() as u64);
        TrainingWork {
            tokens: rows * length,
            loss_tokens: rows * length,
            squared_lengths: rows * length * length,
        }
    }

    /// What is taken for granted about the run.
    pub fn assumptions(&self) -> Vec<String> {
        let mut told = vec![
            "data: not read; each row is one document of context_length tokens, all with a target".to_owned(),
        ];
        if !self.batch_is_given {
            told.push(format!(
                "global_train_batch_size: not given; one row for each rank that takes rows, and at least the run file's \
                 default of {}",
                self.settings.global_train_batch_size
            ));
        }
        told
    }
}

/// The shape of a model whose `config.json`, folder or `.gguf` lies at `path`; none where nothing lies there.
fn local_config(path: &str) -> Result<Option<ModelConfig>, TrainError> {
    let place = Path::new(path);
    if place.is_dir() {
        return Ok(Some(ModelConfig::load(&place.join("config.json"))?));
    }
    match place.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok(Some(ModelConfig::load(place)?)),
        _ if place.is_file() => {
            Ok(Some(OpenedModel::open(path, &elsewhere::cache(elsewhere::DEFAULT_FOLDER), None)?.config))
        }
        _ => Ok(None),
    }
}
