//! Goldens that `scripts/goldens/make_llama_goldens.py` writes, and engines made from them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use tessera_checkpoint::huggingface::SafetensorsSource;
use tessera_data::MicroBatch;
use tessera_dist::{DistError, Group, Handle, Single};
use tessera_model::Model;
use tessera_model::config::LlamaConfig;
use tessera_ops::{DType, Queue, View, ViewMut};
use tessera_train::engine::{Engine, EngineSettings, Optimizer};
use tessera_train::spec::{AdamSettings, OptimizerSpec};

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
}

#[derive(Deserialize)]
pub struct Numbers {
    pub loss: f64,
    pub losses: Vec<f64>,
    pub gradient_norms: Vec<f64>,
}

pub struct Golden {
    folder: PathBuf,
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
        Self { folder, batches, numbers, tensors }
    }

    /// An engine with the golden's weights and optimizer.
    pub fn engine(&self, recompute: bool) -> Engine {
        self.engine_in(Box::new(Single), recompute)
    }

    /// The same as a rank of a group.
    pub fn engine_in(&self, group: Box<dyn Group>, recompute: bool) -> Engine {
        let model = Model::new(LlamaConfig::load(&self.folder.join("config.json")).unwrap());
        let adam = AdamSettings { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 };
        let settings = EngineSettings {
            micro_batch_tokens: self.batches.iter().map(|batch| batch.tokens.len()).max().unwrap(),
            positions: 64,
            recompute,
            optimizer: Optimizer { spec: OptimizerSpec::AdamW(adam), peak_learning_rate: 1e-3 },
            max_grad_norm: 1.0,
        };
        let engine = Engine::new(model, group, settings).unwrap();
        engine.load_weights(&SafetensorsSource::open(&self.folder).unwrap(), |_| {}).unwrap();
        engine
    }
}

/// A group of one that moves weights and gradients through the slots, as larger groups must.
pub struct Copying;

impl Group for Copying {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn lends(&self) -> bool {
        false
    }

    fn all_gather(&self, queue: &Queue, shard: View<'_>, full: ViewMut<'_>) -> Result<Handle, DistError> {
        Single.all_gather(queue, shard, full)
    }

    fn reduce_scatter(&self, queue: &Queue, full: View<'_>, shard: ViewMut<'_>) -> Result<Handle, DistError> {
        Single.reduce_scatter(queue, full, shard)
    }

    fn all_reduce(&self, queue: &Queue, values: ViewMut<'_>) -> Result<Handle, DistError> {
        Single.all_reduce(queue, values)
    }
}

fn micro_batch(batch: Batch) -> MicroBatch {
    let loss_tokens = batch.labels.iter().filter(|&&label| label >= 0).count();
    MicroBatch {
        row_starts: vec![0, batch.tokens.len() as u32],
        tokens: batch.tokens,
        labels: batch.labels,
        positions: batch.positions,
        cu_seqlens: batch.cu_seqlens,
        loss_tokens,
    }
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

/// Every parameter's weights or gradient by name.
pub fn parameters(engine: &Engine, kind: Kind) -> HashMap<String, Vec<f32>> {
    let mut found = HashMap::new();
    for (unit, table) in engine.units().iter().zip(engine.model().units()) {
        let flat = match kind {
            Kind::Weights => {
                unit.state().read().unwrap().master.view(DType::F32).as_slice::<f32>().unwrap().to_vec()
            }
            Kind::Gradient => {
                unit.gradient().lock().unwrap().view(DType::F32).as_slice::<f32>().unwrap().to_vec()
            }
        };
        for placed in table.parameters() {
            let values = flat[placed.start..][..placed.parameter.elements()].to_vec();
            found.insert(placed.parameter.name.clone(), values);
        }
    }
    found
}
