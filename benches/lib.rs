//! What benches of a training step share: an engine with random weights, and rows of tokens without a pattern.

pub mod rooflines;
pub mod texts;

use std::path::Path;

use tessera_data::MicroBatch;
use tessera_dist::{DistError, Mesh, Residency, Single, Wire};
use tessera_model::config::ModelConfig;
use tessera_model::{LossScale, Model};
use tessera_ops::{Factors, Queue};
use tessera_train::engine::{CHUNK_TOKENS, Engine, EngineSettings, Optimizer, OwnNews, StepOutcome};
use tessera_train::spec::{Offload, OptimizerSpec};

/// Rows of equally many tokens, each one document.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// How many rows.
    pub count: u32,
    /// Tokens of each.
    pub tokens: u32,
}

impl Rows {
    /// The tokens of all rows.
    pub fn total(self) -> u32 {
        self.count * self.tokens
    }

    /// The rows as a micro-batch for a model of this vocabulary. Every token has a target.
    pub fn batch(self, vocabulary: u32) -> MicroBatch {
        let bounds = || (0..=self.count).map(|row| row * self.tokens).collect();
        MicroBatch {
            tokens: (0..self.total()).map(|place| place.wrapping_mul(2_654_435_761) % vocabulary).collect(),
            labels: (0..self.total()).map(|place| (place.wrapping_mul(40_503) % vocabulary) as i32).collect(),
            positions: (0..self.total()).map(|place| place % self.tokens).collect(),
            cu_seqlens: bounds(),
            row_starts: bounds(),
            loss_tokens: self.total() as usize,
        }
    }

    /// An engine for micro-batches of such rows: the model of a `config.json` with weights drawn from a seed, and AdamW.
    ///
    /// # Panics
    /// When `config` is none, or there is not enough memory.
    pub fn engine(self, config: &str, recompute: bool) -> Engine {
        self.engine_on(Single, config, recompute)
    }

    /// The same with products that take their factors so.
    ///
    /// # Panics
    /// As [`Rows::engine`].
    pub fn engine_with(self, factors: Factors, config: &str, recompute: bool) -> Engine {
        self.build(Queue::cpu().with_factors(factors), Single, config, recompute)
    }

    /// The same as one of several ranks. All of them call it.
    ///
    /// # Panics
    /// As [`Rows::engine`].
    pub fn engine_on(self, mesh: impl Into<Mesh>, config: &str, recompute: bool) -> Engine {
        self.build(Queue::cpu(), mesh, config, recompute)
    }

    fn build(self, queue: Queue, mesh: impl Into<Mesh>, config: &str, recompute: bool) -> Engine {
        let config = ModelConfig::parse(config, Path::new("config.json")).expect("the config is valid");
        let engine =
            Engine::new(queue, Model::new(config), mesh, self.settings(recompute)).expect("there is memory");
        engine.initialise(17).expect("weights can be drawn");
        engine
    }

    fn settings(self, recompute: bool) -> EngineSettings {
        EngineSettings {
            micro_batch_tokens: self.total() as usize,
            micro_batch_rows: self.count as usize,
            positions: self.tokens as usize,
            chunk_tokens: CHUNK_TOKENS,
            recompute,
            offload: Offload::None,
            residency: Residency::default(),
            wire: Wire::default(),
            optimizer: Optimizer { spec: OptimizerSpec::default(), peak_learning_rate: 1e-3 },
            max_grad_norm: 1.0,
        }
    }
}

/// Forward and backward of a micro-batch that is a whole step.
///
/// # Errors
/// When the batch does not fit the engine.
pub fn forward_backward(engine: &mut Engine, batch: &MicroBatch) -> Result<(), DistError> {
    let coefficient = engine.model().config().experts.map_or(0.0, |experts| experts.balance_loss_coefficient);
    let rows = batch.row_starts.len() - 1;
    let scale = LossScale { token: 1.0 / batch.loss_tokens as f64, balance: coefficient / rows as f64 };
    engine.train_micro_batch(batch, scale)
}

/// The update that ends a step.
///
/// # Errors
/// As [`Engine::finish_step`].
pub fn update(engine: &mut Engine) -> Result<StepOutcome, DistError> {
    engine.finish_step(1.0, OwnNews::default(), |_| {})
}

/// The middle one of some times; of two, the later.
///
/// # Panics
/// When there are none.
pub fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
