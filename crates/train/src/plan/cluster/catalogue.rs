//! The smallest clusters that fine-tune the models of the catalogue.

use serde::Serialize;
use tessera_model::catalogue;
use tessera_model::config::ModelConfig;

use super::{ClusterError, DeviceMemory, Gpu, Layout, Workload};
use crate::engine::check_context;
use crate::error::TrainError;
use crate::plan::DEFAULT_CONTEXT_LENGTH;

/// GPUs of one node.
const NODE: usize = 8;
/// More nodes than these are not tried.
const MOST_NODES: usize = 512;

/// Models of one shape, and what they need at least.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SmallestCluster {
    /// Their names on the hub.
    pub models: Vec<&'static str>,
    /// Parameters of each.
    pub parameters: u64,
    /// At a context of 8192 tokens, or the models' maximum where that is less.
    pub usual: Need,
    /// At their maximum.
    pub maximum: Need,
}

/// The smallest cluster for a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Tokens of a row.
    pub context_length: usize,
    /// GPUs and the memory that they need; none where nothing that was tried is enough.
    pub cluster: Option<Smallest>,
}

/// A cluster and what is needed of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Smallest {
    /// GPUs, in whole nodes of eight where they are more than that.
    pub gpus: usize,
    /// Those of them that share a sequence.
    pub context: usize,
    /// Bytes of each GPU's memory, with one row at a time.
    pub memory_bytes: u64,
}

/// The smallest clusters of `gpu` for every model of the catalogue, with AdamW, blocks computed again, one row at a time.
///
/// # Errors
/// When a model of the catalogue cannot be planned for, which a test rules out.
pub fn smallest_clusters(gpu: &Gpu) -> Result<Vec<SmallestCluster>, ClusterError> {
    let mut rows: Vec<(&str, SmallestCluster)> = Vec::new();
    for entry in catalogue::all() {
        if let Some((_, row)) = rows.iter_mut().find(|(config, _)| *config == entry.config_text()) {
            row.models.push(entry.name);
            continue;
        }
        let config = entry.config().map_err(TrainError::from)?;
        let maximum = config.max_position_embeddings;
        let row = SmallestCluster {
            models: vec![entry.name],
            parameters: config.parameter_count(),
            usual: need(entry.name, DEFAULT_CONTEXT_LENGTH.min(maximum), gpu)?,
            maximum: need(entry.name, maximum, gpu)?,
        };
        rows.push((entry.config_text(), row));
    }
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

fn need(model: &str, context_length: usize, gpu: &Gpu) -> Result<Need, ClusterError> {
    let workload = Workload::of_model(model, &[format!("context_length={context_length}")])?;
    let sizes = [1, 2, 4].into_iter().chain((1..=MOST_NODES).map(|nodes| nodes * NODE));
    for gpus in sizes {
        for context in context_degrees(workload.config(), context_length, gpus) {
            let parallel = Layout { shard: gpus / context, replicate: 1, context };
            let memory_bytes = DeviceMemory::new(&workload, parallel, 1)?.total_bytes();
            if memory_bytes <= gpu.usable_bytes() {
                return Ok(Need { context_length, cluster: Some(Smallest { gpus, context, memory_bytes }) });
            }
        }
    }
    Ok(Need { context_length, cluster: None })
}

/// How many of `gpus` GPUs can share a sequence, from none on.
fn context_degrees(config: &ModelConfig, context_length: usize, gpus: usize) -> impl Iterator<Item = usize> {
    (1..=gpus.min(config.num_attention_heads)).filter(move |&context| {
        gpus.is_multiple_of(context) && check_context(config, context_length, context).is_ok()
    })
}
