//! What this machine offers to a run, and whether it computes right: what `tessera doctor` shows.
//!
//! Each device trains two tiny models for two steps. The processors are held against losses that were written down once, a GPU
//! against the processors: a driver, a library or a card that computes wrong is found before it costs a run.

use std::path::Path;
use std::thread::available_parallelism;

use tessera_data::MicroBatch;
use tessera_dist::{Residency, Single, Wire, nccl};
use tessera_model::config::ModelConfig;
use tessera_model::{Compute, LossScale, Model};
use tessera_ops::cuda::{self, Gpu};
use tessera_ops::{DType, Queue};

use crate::engine::{Engine, EngineSettings, Optimizer, OwnNews};
use crate::error::TrainError;
use crate::plan::total_memory;
use crate::spec::{Offload, OptimizerSpec};

/// Heads of 64 and of 128, for which a GPU's tensor cores have kernels of their own.
const HEAD_SIZES: [usize; 2] = [64, 128];
/// Documents of so many tokens, all in one micro-batch: the last one begins anywhere, and is long enough for every buffer of
/// attention to be used again.
const DOCUMENTS: [u32; 3] = [50, 20, 330];
const VOCABULARY: u32 = 128;

/// The mean loss of the two steps of each model, as fp32 on processors gave it.
const LOSSES: Losses = [4.853_769_047, 4.751_438_248, 4.853_081_326, 4.744_690_327];
/// How far losses may be from those, relatively: sums are taken in other orders.
const FP32: f64 = 1e-4;
/// Eight bits of a product's factors are kept.
const BF16: f64 = 1e-2;

type Losses = [f64; 2 * HEAD_SIZES.len()];

/// A machine, as a run would find it.
#[derive(Debug)]
pub struct Report {
    /// Threads that processors offer.
    pub threads: usize,
    /// Bytes of memory, or of the control group's limit.
    pub memory: usize,
    /// Of the steps on processors.
    pub steps: Verdict,
    /// What there is of CUDA.
    pub cuda: Found<Cuda>,
}

/// What a machine has, has not, or has but cannot use, and why.
#[derive(Debug)]
pub enum Found<T> {
    /// It is there.
    Here(T),
    /// It is not there.
    None(String),
    /// It is there and cannot be used.
    Broken(String),
}

/// CUDA, as this build finds it.
#[derive(Debug)]
pub struct Cuda {
    /// The version that the driver is made for, major and minor.
    pub driver: Option<(i32, i32)>,
    /// The version of the toolkit that compiled the kernels.
    pub toolkit: Option<(i32, i32)>,
    /// NCCL's version, which several GPUs need; why there is none.
    pub nccl: Result<(i32, i32, i32), String>,
    /// Each GPU; why it cannot be used.
    pub gpus: Vec<Result<GpuReport, String>>,
}

/// One GPU.
#[derive(Debug)]
pub struct GpuReport {
    /// What NVIDIA calls it.
    pub name: String,
    /// Its compute capability.
    pub capability: (i32, i32),
    /// Bytes of its memory that are free, and all.
    pub memory: (usize, usize),
    /// Of the steps in fp32 and in bf16.
    pub steps: [(&'static str, Verdict); 2],
}

/// How the steps of a device went.
#[derive(Debug)]
pub enum Verdict {
    /// As they should: the largest relative error of a loss.
    Right(f64),
    /// Too far from what they should give: the largest relative error, and what is allowed.
    Wrong(f64, f64),
    /// They could not be made.
    Failed(String),
}

impl Verdict {
    fn of(losses: Result<Losses, TrainError>, allowed: f64) -> Self {
        let losses = match losses {
            Ok(losses) => losses,
            Err(error) => return Self::Failed(error.to_string()),
        };
        let errors = losses.iter().zip(LOSSES).map(|(loss, expected)| (loss / expected - 1.0).abs());
        // What is no number counts as the largest.
        match errors.max_by(f64::total_cmp).unwrap_or_default() {
            error if error <= allowed => Self::Right(error),
            error => Self::Wrong(error, allowed),
        }
    }

    /// Whether the device can be trusted.
    pub fn is_right(&self) -> bool {
        matches!(self, Self::Right(_))
    }
}

impl Report {
    /// Whether every device that was found can be trusted.
    pub fn is_well(&self) -> bool {
        let is_right = |gpu: &Result<GpuReport, String>| {
            gpu.as_ref().is_ok_and(|gpu| gpu.steps.iter().all(|(_, verdict)| verdict.is_right()))
        };
        let gpus_are_right = match &self.cuda {
            Found::Here(cuda) => cuda.gpus.iter().all(is_right),
            Found::None(_) => true,
            Found::Broken(_) => false,
        };
        self.steps.is_right() && gpus_are_right
    }
}

/// Looks at the machine and tries each of its devices.
pub fn examine() -> Report {
    Report {
        threads: available_parallelism().map_or(1, usize::from),
        memory: total_memory(),
        steps: Verdict::of(losses(&Queue::cpu(), DType::F32), FP32),
        cuda: examine_cuda(),
    }
}

fn examine_cuda() -> Found<Cuda> {
    let count = match cuda::find() {
        Ok(cuda::Found::Some(count)) => count,
        Ok(cuda::Found::None(reason)) => return Found::None(reason),
        Err(error) => return Found::Broken(error.to_string()),
    };
    Found::Here(Cuda {
        driver: cuda::driver_version(),
        toolkit: cuda::toolkit_version(),
        nccl: nccl::version().map_err(|error| error.to_string()),
        gpus: (0..count).map(|ordinal| examine_gpu(ordinal).map_err(|error| error.to_string())).collect(),
    })
}

fn examine_gpu(ordinal: usize) -> Result<GpuReport, TrainError> {
    let gpu = Gpu::open(ordinal)?;
    let steps = |dtype, allowed| {
        let losses = Queue::cuda(&gpu).map_err(TrainError::from).and_then(|queue| losses(&queue, dtype));
        Verdict::of(losses, allowed)
    };
    Ok(GpuReport {
        name: gpu.name().to_owned(),
        capability: gpu.capability(),
        memory: gpu.memory()?,
        steps: [("fp32", steps(DType::F32, FP32)), ("amp_bf16", steps(DType::BF16, BF16))],
    })
}

/// The losses of two steps of each model.
fn losses(queue: &Queue, dtype: DType) -> Result<Losses, TrainError> {
    let mut losses = Losses::default();
    for (losses, head_size) in losses.chunks_exact_mut(2).zip(HEAD_SIZES) {
        two_steps(queue.clone(), dtype, head_size, losses)?;
    }
    Ok(losses)
}

fn config(head_size: usize) -> String {
    format!(
        r#"{{
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": {head_size}, "vocab_size": {VOCABULARY}, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true
        }}"#
    )
}

/// Fills in the losses of two steps from weights that are always the same.
fn two_steps(queue: Queue, dtype: DType, head_size: usize, losses: &mut [f64]) -> Result<(), TrainError> {
    let batch = batch();
    let settings = EngineSettings {
        micro_batch_tokens: batch.tokens.len(),
        micro_batch_rows: 1,
        positions: batch.tokens.len(),
        chunk_tokens: batch.tokens.len(),
        recompute: true,
        offload: Offload::None,
        residency: Residency::default(),
        wire: Wire::default(),
        optimizer: Optimizer { spec: OptimizerSpec::default(), peak_learning_rate: 1e-3 },
        max_grad_norm: 1.0,
    };
    let config = ModelConfig::parse(&config(head_size), Path::new("config.json"))?;
    let model = Model::new(config).computing(Compute { dtype, home: queue.home() });
    let mut engine = Engine::new(queue, model, Single, settings)?;
    engine.initialise(17)?;
    let token = 1.0 / batch.loss_tokens as f64;
    for loss in losses {
        engine.train_micro_batch(&batch, LossScale { token, balance: 0.0 })?;
        *loss = token * engine.finish_step(1.0, OwnNews::default(), |_| {})?.loss_sum;
    }
    Ok(())
}

/// One row of documents without a pattern, where every token has a target.
fn batch() -> MicroBatch {
    let tokens = DOCUMENTS.iter().sum::<u32>();
    let bounds = DOCUMENTS.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    MicroBatch {
        tokens: (0..tokens).map(|place| place.wrapping_mul(2_654_435_761) % VOCABULARY).collect(),
        labels: (0..tokens).map(|place| (place.wrapping_mul(40_503) % VOCABULARY) as i32).collect(),
        positions: DOCUMENTS.iter().flat_map(|&length| 0..length).collect(),
        cu_seqlens: [0].into_iter().chain(bounds).collect(),
        row_starts: vec![0, tokens],
        loss_tokens: tokens as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn these_processors_compute_right() {
        let steps = examine().steps;
        assert!(steps.is_right(), "{steps:?}");
    }

    #[test]
    fn what_is_far_off_or_no_number_is_wrong() {
        let off = |factor: f64| Verdict::of(Ok(LOSSES.map(|loss| factor * loss)), FP32);
        assert!(off(1.0 + 5e-5).is_right());
        assert!(matches!(off(1.001), Verdict::Wrong(..)));
        assert!(matches!(off(f64::NAN), Verdict::Wrong(..)));
        let mut one = LOSSES;
        one[0] = f64::NAN;
        assert!(matches!(Verdict::of(Ok(one), FP32), Verdict::Wrong(..)));
    }
}
