//! From a run file to a run that is ready to start: every default filled, every path read, every size known.

pub mod advice;
pub mod cluster;
mod findings;
mod memory;
mod pins;
mod settings;
mod sources;
mod tables;

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tessera_checkpoint::huggingface::{HubOptions, ModelLocation, ModelSource};
use tessera_checkpoint::{StoredDType, WeightSource};
use tessera_data::{DataSettings, Dataset, Order, Summary, TextTokenizer};
use tessera_dist::Residency;
use tessera_files::FileError;
use tessera_model::config::{ModelConfig, TrainingWork};
use tessera_model::{Model, Names};

use crate::elsewhere;
use crate::engine::{CHUNK_TOKENS, EngineSettings, MemoryPlan, Optimizer, answer_cache_bytes};
use crate::error::TrainError;
use crate::observe::{Observer, Split, Update};
use crate::schedule::Schedule;
use crate::spec::RunSpec;
use crate::speed::expected_flops_per_second;
use crate::state::{self, checkpoints_in};
use crate::time::{EpochLength, RunLength};

pub use findings::Findings;
pub(crate) use memory::limiting_group;
pub use memory::{gibibytes, total_memory};
pub(crate) use pins::Pins;
pub use settings::{DEFAULT_CONTEXT_LENGTH, Difference, Settings};

use memory::{decide_microbatch, process_scratch_bytes};

/// What a run will do and need.
#[derive(Debug, Clone, PartialEq)]
pub struct RunPlan {
    /// The run file with every default filled in.
    pub settings: Settings,
    /// The number of parameters.
    pub parameters: usize,
    /// Operations of forward and backward in one epoch.
    pub epoch_flops: f64,
    /// Batches and samples of the run.
    pub length: RunLength,
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// Bytes that the engine needs.
    pub memory: MemoryPlan,
    /// Bytes that answers to the eval prompts need while they are made.
    pub answer_bytes: usize,
    /// Bytes that a rank needs to reach those of other processes.
    pub process_scratch_bytes: usize,
}

impl RunPlan {
    /// Floating-point operations that this process may be expected to do in a second. `None`: nothing is known of its GPU.
    pub fn expected_flops_per_second(&self) -> Option<f64> {
        expected_flops_per_second(&self.settings)
    }

    /// How long the batches take at that rate, blocks that are computed twice included.
    pub fn estimated_time(&self) -> Option<Duration> {
        let flops_per_second = self.expected_flops_per_second()?;
        let epochs = self.length.total_batches as f64 / self.length.epoch.batches().max(1) as f64;
        let recompute = if self.settings.recomputes() { 4.0 / 3.0 } else { 1.0 };
        let seconds = self.epoch_flops * epochs * recompute / flops_per_second.max(1.0);
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// What the engine is to be made with.
    pub fn engine_settings(&self) -> EngineSettings {
        engine_settings(&self.settings, self.settings.microbatch_rows())
    }
}

/// A run that is ready to start.
pub struct Prepared {
    /// What it will do.
    pub plan: RunPlan,
    /// Whether its folder holds a checkpoint to go on from.
    pub resumes: bool,
    /// The model's config.
    pub config: ModelConfig,
    /// What the tensors of its checkpoints and exports are called.
    pub names: Names,
    /// The model's files.
    pub source: ModelSource,
    /// The model's tokenizer.
    pub tokenizer: TextTokenizer,
    /// The tokens of the eval prompts.
    pub prompts: Vec<Vec<u32>>,
    /// What is trained on.
    pub train: Dataset,
    /// What became of the training examples.
    pub train_summary: Summary,
    /// What is evaluated on.
    pub eval: Option<(Dataset, Summary)>,
    /// What was found of all this at places that may change.
    pub findings: Findings,
}

impl Prepared {
    /// The order of the training rows.
    pub fn order(&self) -> Order {
        let settings = &self.plan.settings;
        Order {
            seed: settings.seed,
            rows: self.train.rows(),
            shuffle: settings.shuffle,
            rows_per_batch: settings.global_train_batch_size,
        }
    }
}

/// A model whose files, but not weights, have been read.
pub struct OpenedModel {
    /// The model's files.
    pub source: ModelSource,
    /// What its `config.json` says.
    pub config: ModelConfig,
    /// What names the same files again, where `model` may name others later.
    found: Option<String>,
}

impl OpenedModel {
    /// Opens what a run file's `model` names. What comes by a url is kept in `cache`.
    pub fn open(model: &str, cache: &Path, observer: Option<Arc<dyn Observer>>) -> Result<Self, TrainError> {
        let is_url = elsewhere::is_url(model);
        let location = match is_url {
            true => elsewhere::model(model, cache, observer.as_ref())?,
            false => match elsewhere::on_workspace("model", model)? {
                Some(mounted) => ModelLocation::parse(&mounted.to_string_lossy())?,
                None => ModelLocation::parse(model)?,
            },
        };
        let source = ModelSource::open(&location, &hub_options(observer))?;
        let found = match &location {
            ModelLocation::Hub { id, .. } => source.commit().map(|commit| format!("{id}@{commit}")),
            ModelLocation::Folder(path) | ModelLocation::Gguf(path) => {
                is_url.then(|| path.display().to_string())
            }
        };
        let place = Path::new(model).join("config.json");
        let config = ModelConfig::parse(&source.config.to_string(), &place)?;
        Ok(Self { source, config, found })
    }
}

/// How the hub is reached, with downloads told to `observer`.
fn hub_options(observer: Option<Arc<dyn Observer>>) -> HubOptions {
    let mut hub = HubOptions::from_env();
    if let Some(observer) = observer {
        hub.progress = Some(Arc::new(move |progress| observer.observe(Update::Downloading(progress))));
    }
    hub
}

/// A run whose every key is known, before its data is read.
pub struct Resolved {
    /// The run file with every default filled in.
    pub settings: Settings,
    /// Processes of the run on this machine, which share its memory; until a launcher has told of more, this one.
    pub processes_here: usize,
    /// All ranks of the run; until a launcher has told of more, those of this process.
    pub ranks: usize,
    source: ModelSource,
    config: ModelConfig,
    /// What is known of places that may change: of the model by this process, else by rank 0.
    findings: Findings,
}

/// Reads the model's files and fills in the run file's defaults.
///
/// # Errors
/// For everything that can be wrong with the run file and the model's files.
pub fn resolve(spec: RunSpec, observer: &Arc<dyn Observer>) -> Result<Resolved, TrainError> {
    if spec.data_prep_cluster_id.is_some() {
        observer.observe(Update::Warning(
            "data_prep_cluster_id: no cluster is needed, data is read and prepared here; the key may be left out",
        ));
    }
    let cache = elsewhere::cache(spec.save_folder.as_deref().unwrap_or(elsewhere::DEFAULT_FOLDER));
    let opened = OpenedModel::open(&spec.model, &cache, Some(observer.clone()))?;
    let OpenedModel { source, config, found } = opened;
    let stored = || source.open_weights().ok().and_then(|weights| stored_dtype(weights.as_ref()));
    let settings = Settings::resolve(spec, &config, stored)?;
    let findings = Findings { model: found, ..Findings::default() };
    Ok(Resolved {
        processes_here: 1,
        ranks: settings.local_ranks().get(),
        settings,
        source,
        config,
        findings,
    })
}

impl Resolved {
    /// The model's config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The same run over so many processes, of which this is one.
    ///
    /// # Errors
    /// When `parallel` does not fit all their ranks.
    pub fn over(mut self, processes: usize) -> Result<Self, TrainError> {
        self.ranks = self.settings.local_ranks().get() * processes;
        self.settings.degrees(self.ranks, &self.config)?;
        Ok(self)
    }

    /// The same run, of what rank 0 has found.
    ///
    /// # Errors
    /// When the model that it found cannot be had here.
    pub fn of_findings(mut self, findings: Findings) -> Result<Self, TrainError> {
        if let Some(model) = &findings.model
            && self.findings.model.as_ref() != Some(model)
        {
            let opened = OpenedModel::open(model, &self.settings.cache(), None)?;
            (self.source, self.config) = (opened.source, opened.config);
        }
        self.findings = findings;
        Ok(self)
    }

    /// Reads the data, and plans the run.
    ///
    /// # Errors
    /// For everything that can be wrong with the weights, the data, or the size of the machine.
    pub fn prepare(self, observer: &Arc<dyn Observer>) -> Result<Prepared, TrainError> {
        let Self { mut settings, processes_here, ranks, source, config, mut findings } = self;
        let saved = state::newest(&checkpoints_in(&settings.run_folder()))?;
        if let Some(saved) = &saved {
            settings.keep_resolved(&saved.settings);
        }
        if let (None, Some(given)) = (&saved, settings.custom_weights_path.as_ref()) {
            settings.fetched_weights = Some(match findings.weights() {
                Some(path) => path.to_owned(),
                None => elsewhere::checkpoint(
                    "custom_weights_path",
                    Path::new(given),
                    &settings.cache(),
                    observer,
                )?,
            });
        }
        if settings.validate_inputs && saved.is_none() {
            state::check(&settings, &source, &config)?;
        }
        let names = match &saved {
            Some(saved) => saved.names(&config),
            None => state::names(&settings, &source, &config)?,
        };
        let model = Model::with_names(config.clone(), names).computing(settings.compute());
        let tokenizer = TextTokenizer::with_date(
            &source.tokenizer_json,
            source.tokenizer_config.as_ref(),
            source.chat_template.as_deref(),
            settings.template_date,
        )?
        .with_eos_id(config.eos_token_ids.first().copied());
        let prompts = encode_prompts(&settings, &tokenizer)?;
        let longest = prompts.iter().map(Vec::len).max();
        let answer_tokens = longest.map(|longest| {
            longest.saturating_add(settings.eval_generation.max_new_tokens).min(settings.context_length)
        });
        let answer_bytes = answer_tokens.map_or(0, |tokens| answer_cache_bytes(&model, tokens));
        // A run that goes on reads the versions that it began with.
        let pins = saved.as_ref().and_then(|_| Pins::read(&settings.run_folder().join(Pins::FILE)));
        let mut open = |mut data: DataSettings, split: Split| -> Result<(Dataset, Summary), TrainError> {
            let cache = settings.cache();
            sources::fetch(&mut data, &mut findings, pins.as_ref(), &cache, observer)?;
            let report = |progress| observer.observe(Update::Preparing(split, progress));
            let (dataset, summary) = tessera_data::prepare(&data, &tokenizer, &cache, &report)?;
            observer.observe(Update::Prepared(split, &summary));
            Ok((dataset, summary))
        };
        let (train, train_summary) = open(settings.train_data(&config), Split::Train)?;
        let eval = settings.eval_data(&config).map(|data| open(data, Split::Eval)).transpose()?;
        let memory = decide_microbatch(&mut settings, &model, answer_bytes, ranks, processes_here)?;
        let length = run_length(&settings, &train);
        let plan = RunPlan {
            parameters: model.parameter_count(),
            epoch_flops: config.training_flops(work_of(&train, 0..train.rows())),
            schedule: Schedule::resolve(&settings.scheduler, &length)?,
            length,
            memory,
            answer_bytes,
            process_scratch_bytes: process_scratch_bytes(&settings, ranks),
            settings,
        };
        let resumes = saved.is_some();
        findings.weights.clone_from(&plan.settings.fetched_weights);
        Ok(Prepared {
            plan,
            resumes,
            config,
            names,
            source,
            tokenizer,
            prompts,
            train,
            train_summary,
            eval,
            findings,
        })
    }
}

/// The eval prompts' tokens; none of them is empty.
fn encode_prompts(settings: &Settings, tokenizer: &TextTokenizer) -> Result<Vec<Vec<u32>>, TrainError> {
    let prompts = settings.eval_prompts.iter().enumerate();
    prompts
        .map(|(index, prompt)| match tokenizer.encode_prompt(prompt, settings.task())? {
            tokens if tokens.is_empty() => Err(TrainError::EmptyPrompt { number: index + 1 }),
            tokens => Ok(tokens),
        })
        .collect()
}

/// The element type that all tensors share, if they do.
fn stored_dtype(weights: &dyn WeightSource) -> Option<StoredDType> {
    let mut dtypes = weights.tensors().values().map(|tensor| tensor.dtype);
    let first = dtypes.next()?;
    dtypes.all(|dtype| dtype == first).then_some(first)
}

fn run_length(settings: &Settings, train: &Dataset) -> RunLength {
    let rows = settings.global_train_batch_size as u64;
    let epoch = EpochLength {
        samples: train.rows() as u64,
        samples_per_batch: NonZeroU64::new(rows).unwrap_or(NonZeroU64::MIN),
        tokens: (0..train.rows()).map(|row| train.tokens(row) as u64).sum(),
    };
    RunLength { total_batches: settings.training_duration.total_batches(&epoch), epoch }
}

/// The work of some rows.
pub(crate) fn work_of(data: &Dataset, rows: impl IntoIterator<Item = usize>) -> TrainingWork {
    let mut work = TrainingWork::default();
    for row in rows {
        work.tokens += data.tokens(row) as u64;
        work.loss_tokens += data.loss_tokens(row) as u64;
        work.squared_lengths += data.squared_lengths(row);
    }
    work
}

/// What an engine for these settings is to be made with, where `microbatch_rows` rows are computed at a time.
pub(crate) fn engine_settings(settings: &Settings, microbatch_rows: usize) -> EngineSettings {
    EngineSettings {
        micro_batch_tokens: (microbatch_rows * settings.context_length)
            .div_ceil(settings.parallel.context.get()),
        micro_batch_rows: microbatch_rows,
        positions: settings.context_length,
        chunk_tokens: CHUNK_TOKENS,
        recompute: settings.recomputes(),
        offload: settings.offload,
        residency: if settings.reshards() { Residency::WhileUsed } else { Residency::WholeStep },
        wire: settings.parallel.reduce_dtype.into(),
        optimizer: Optimizer { spec: settings.optimizer, peak_learning_rate: settings.learning_rate },
        max_grad_norm: settings.max_grad_norm,
    }
}

/// An error of the file system, for the crate's own file operations.
pub(crate) fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> TrainError {
    FileError { action, path: path.to_owned(), source }.into()
}
