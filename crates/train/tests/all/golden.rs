//! Goldens that `scripts/goldens/make_goldens.py` writes, and engines made from them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tessera_checkpoint::WeightSource;
use tessera_checkpoint::huggingface::SafetensorsSource;
use tessera_data::MicroBatch;
use tessera_dist::{Deadline, Group, Mesh, Residency, Single, Wire};
use tessera_model::config::ModelConfig;
use tessera_model::{LossScale, Model, Names, Naming};
use tessera_ops::{Buffer, DType, Queue, transfer};
use tessera_train::engine::{CHUNK_TOKENS, Engine, EngineSettings, Optimizer};
use tessera_train::spec::{AdamSettings, Offload, OptimizerSpec};

#[derive(Deserialize)]
struct Batches {
    batches: Vec<Batch>,
}

#[derive(Deserialize)]
struct Batch {
    tokens: Vec<u32>,
    labels: Vec<i32>,
    positions: Vec<u32>,
    cu_seqlens: Vec<u32>,
    row_starts: Vec<u32>,
}

#[derive(Deserialize)]
pub struct Numbers {
    pub loss: f64,
    pub losses: Vec<f64>,
    pub gradient_norms: Vec<f64>,
    /// Of models with experts.
    pub balance_losses: Option<Vec<f64>>,
}

pub struct Golden {
    folder: PathBuf,
    config: ModelConfig,
    pub batches: Vec<MicroBatch>,
    pub numbers: Numbers,
    pub tensors: HashMap<String, Vec<f32>>,
}

impl Golden {
    pub fn open(case: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens").join(case);
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let Batches { batches } = serde_json::from_str(&text("batch.json")).unwrap();
        let batches = batches.into_iter().map(micro_batch).collect();
        let numbers = serde_json::from_str(&text("golden.json")).unwrap();
        let bytes = fs::read(folder.join("golden.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let values =
                    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
                (name, values.collect())
            })
            .collect();
        let config = ModelConfig::load(&folder.join("config.json")).unwrap();
        Self { folder, config, batches, numbers, tensors }
    }

    /// Where one of its files lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What losses count in a step over the batch with this index.
    pub fn scale(&self, index: usize) -> LossScale {
        let batch = &self.batches[index];
        let rows = batch.row_starts.windows(2).filter(|bounds| bounds[0] < bounds[1]).count();
        let coefficient = self.config.experts.map_or(0.0, |experts| experts.balance_loss_coefficient);
        LossScale { token: 1.0 / batch.loss_tokens as f64, balance: coefficient / rows as f64 }
    }

    /// An engine with the golden's weights and optimizer.
    pub fn engine(&self, recompute: bool) -> Engine {
        self.engine_in(Box::new(Single), recompute)
    }

    /// An engine whose feed-forward layers work on a few tokens at a time.
    pub fn engine_in_chunks(&self, chunk_tokens: usize) -> Engine {
        self.engine_with(Box::new(Single), true, chunk_tokens)
    }

    /// The same as a rank of a group.
    pub fn engine_in(&self, group: Box<dyn Group>, recompute: bool) -> Engine {
        self.engine_with(group, recompute, CHUNK_TOKENS)
    }

    fn engine_with(&self, group: Box<dyn Group>, recompute: bool, chunk_tokens: usize) -> Engine {
        self.engine_of(group, EngineSettings { chunk_tokens, ..self.settings(recompute) })
    }

    /// Settings that all batches fit.
    pub fn settings(&self, recompute: bool) -> EngineSettings {
        let adam = AdamSettings { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 };
        let largest = |size: fn(&MicroBatch) -> usize| self.batches.iter().map(size).max().unwrap();
        EngineSettings {
            micro_batch_tokens: largest(|batch| batch.tokens.len()),
            micro_batch_rows: largest(|batch| batch.row_starts.len() - 1),
            positions: 64,
            chunk_tokens: CHUNK_TOKENS,
            recompute,
            offload: Offload::None,
            residency: Residency::default(),
            wire: Wire::default(),
            optimizer: Optimizer { spec: OptimizerSpec::AdamW(adam), peak_learning_rate: 1e-3 },
            max_grad_norm: 1.0,
        }
    }

    fn source(&self) -> SafetensorsSource {
        SafetensorsSource::open(&self.folder).unwrap()
    }

    /// The golden's model.
    pub fn model(&self) -> Model {
        let naming = Naming::of(self.config.family, self.source().tensors().keys().map(String::as_str));
        Model::with_names(self.config.clone(), Names::new(self.config.family, naming))
    }

    /// An engine with the golden's weights, as a rank of a mesh.
    pub fn engine_of(&self, mesh: impl Into<Mesh>, settings: EngineSettings) -> Engine {
        self.engine_on(Queue::cpu(), self.model(), mesh, settings)
    }

    /// The same where `queue` works, of a model that may compute in another dtype.
    pub fn engine_on(
        &self,
        queue: Queue,
        model: Model,
        mesh: impl Into<Mesh>,
        settings: EngineSettings,
    ) -> Engine {
        let engine = Engine::new(queue, model, mesh, settings).unwrap();
        engine.load_weights(engine.model().units(), &self.source(), |_| {}).unwrap();
        engine
    }
}

/// A group of one that moves weights and gradients through the slots, as larger groups must.
pub fn gathering() -> Box<dyn Group> {
    tessera_dist::threads::groups(1, &Deadline::new(Duration::from_secs(60))).unwrap().remove(0)
}

fn micro_batch(batch: Batch) -> MicroBatch {
    let loss_tokens = batch.labels.iter().filter(|&&label| label >= 0).count();
    MicroBatch {
        row_starts: batch.row_starts,
        tokens: batch.tokens,
        labels: batch.labels,
        positions: batch.positions,
        cu_seqlens: batch.cu_seqlens,
        loss_tokens,
    }
}

/// Each row of a batch as a micro-batch of its own.
pub fn rows(batch: &MicroBatch) -> Vec<MicroBatch> {
    let row = |bounds: &[u32]| {
        let (start, end) = (bounds[0], bounds[1]);
        let range = start as usize..end as usize;
        micro_batch(Batch {
            tokens: batch.tokens[range.clone()].to_vec(),
            labels: batch.labels[range.clone()].to_vec(),
            positions: batch.positions[range].to_vec(),
            cu_seqlens: batch
                .cu_seqlens
                .iter()
                .filter(|&&bound| start <= bound && bound <= end)
                .map(|bound| bound - start)
                .collect(),
            row_starts: vec![0, end - start],
        })
    };
    batch.row_starts.windows(2).map(row).collect()
}

/// ‖a − b‖ / ‖b‖.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = square(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    (difference / square(&mut b.iter().map(|&b| f64::from(b)))).sqrt()
}

/// What to read of a unit.
#[derive(Clone, Copy)]
pub enum Kind {
    Weights,
    Gradient,
}

/// Every tensor's weights or gradient by name, where one rank has all of them.
pub fn parameters(engine: &Engine, kind: Kind) -> HashMap<String, Vec<f32>> {
    named(engine.model(), &slices(engine, kind))
}

/// This rank's slice of each unit.
pub fn slices(engine: &Engine, kind: Kind) -> Vec<Vec<f32>> {
    let values = |buffer: &Buffer| {
        transfer::to_host::<f32>(engine.queue(), buffer.view(DType::F32)).unwrap().into_owned()
    };
    let units = engine.units().iter().map(|unit| match kind {
        Kind::Weights => values(&unit.state().read().unwrap().master),
        Kind::Gradient => values(&unit.gradient().lock().unwrap()),
    });
    units.collect()
}

/// Tensors by name from whole units, put together from the parts that lie in several of them.
pub fn named(model: &Model, units: &[Vec<f32>]) -> HashMap<String, Vec<f32>> {
    let mut found: HashMap<String, Vec<f32>> = HashMap::new();
    for (flat, table) in units.iter().zip(model.units()) {
        for placed in table.parameters() {
            let parameter = placed.parameter;
            let tensor = found
                .entry(parameter.name.clone())
                .or_insert_with(|| vec![f32::NAN; parameter.shape.iter().product()]);
            tensor[parameter.part.clone()].copy_from_slice(&flat[placed.start..][..parameter.elements()]);
        }
    }
    found
}
