//! What a run would need on a cluster of GPUs, and how long its steps would take: an estimate that needs neither GPU nor
//! weights nor data.
//!
//! Bytes are counted, not guessed: memory is the engine's own plan with compute tensors in bf16, and traffic is what the
//! step loop moves. Times follow from them by a simple model whose every assumption is part of the result.

mod catalogue;
mod error;
mod failures;
mod gpu;
mod memory;
mod step;
#[cfg(test)]
mod tests;
mod workload;

use serde::Serialize;
use tessera_dist::Degrees;
use tessera_ops::OpError;

use crate::engine::Moves;
use crate::spec::ReduceDType;

pub use catalogue::{Need, Smallest, SmallestCluster, smallest_clusters};
pub use error::ClusterError;
pub use failures::{Failures, Interval};
pub use gpu::{GPUS, Gpu, RESERVED_BYTES as GPU_RESERVED_BYTES, find_gpu, known_gpu};
pub use memory::DeviceMemory;
pub use step::{Assumptions, Links, Split, StepTime};
pub use workload::Workload;

/// The largest number of GPUs that a plan is made for.
const MOST_GPUS: usize = 1 << 17;
/// The largest micro-batch that is tried, in rows.
const MOST_ROWS: usize = 1 << 10;

/// The GPUs of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cluster {
    /// Machines.
    pub nodes: usize,
    /// GPUs in each, one rank each.
    pub gpus_per_node: usize,
    /// What they are.
    pub gpu: Gpu,
}

impl Cluster {
    /// A cluster of `nodes` machines with `gpus` GPUs each, on a network of `network_gbit` Gbit/s for each GPU, or the
    /// usual one.
    ///
    /// # Errors
    /// When there is nothing to compute on, or more than is ever built.
    pub fn new(
        nodes: usize,
        gpus: usize,
        gpu: &Gpu,
        network_gbit: Option<f64>,
    ) -> Result<Self, ClusterError> {
        let ranks = nodes.checked_mul(gpus);
        if !ranks.is_some_and(|ranks| (1..=MOST_GPUS).contains(&ranks)) {
            return Err(ClusterError::Size { nodes, gpus, most: MOST_GPUS });
        }
        let mut gpu = *gpu;
        if let Some(gbit) = network_gbit {
            if !(gbit.is_finite() && gbit > 0.0) {
                return Err(ClusterError::Network { found: gbit });
            }
            gpu.network_bytes_per_second = gbit * 1e9 / 8.0;
        }
        Ok(Self { nodes, gpus_per_node: gpus, gpu })
    }

    /// All GPUs.
    pub fn ranks(&self) -> usize {
        self.nodes * self.gpus_per_node
    }
}

/// How the ranks of a plan are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Ranks with rows of their own that share one copy of the model.
    pub shard: usize,
    /// Copies of the model.
    pub replicate: usize,
    /// Ranks that share one sequence.
    pub context: usize,
}

impl From<Degrees> for Layout {
    fn from(Degrees { shard, replicate, context }: Degrees) -> Self {
        Self { shard, replicate, context }
    }
}

impl From<Layout> for Degrees {
    fn from(Layout { shard, replicate, context }: Layout) -> Self {
        Self { shard, replicate, context }
    }
}

impl Layout {
    /// Ranks that share one copy of the model.
    pub fn copy(&self) -> usize {
        self.shard * self.context
    }

    /// Ranks, or groups of ranks, that take rows of their own.
    pub fn data(&self) -> usize {
        self.shard * self.replicate
    }
}

/// The rows of a step on one rank, or group of ranks that share its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rows {
    /// Of a micro-batch.
    pub micro_batch: usize,
    /// The most that fit, up to a thousand.
    pub largest_micro_batch: Option<usize>,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// Of a step, over all ranks.
    pub global_batch: usize,
}

/// What is copied to the host and to disk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Saving {
    /// Pinned host memory of each GPU's rank, for the copy of a checkpoint.
    pub pinned_bytes: u64,
    /// One checkpoint.
    pub checkpoint_bytes: u64,
    /// One export in Hugging Face layout.
    pub export_bytes: u64,
    /// For how long the training stands while a copy is taken.
    pub stall_seconds: f64,
    /// How long it takes until the checkpoint is on disk.
    pub save_seconds: f64,
    /// How long it takes to read it again.
    pub load_seconds: f64,
}

/// What a run would need on a cluster, and how long its steps would take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterPlan {
    /// The model's name as it was given.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// Those that a token uses.
    pub active_parameters: u64,
    /// Tokens of a packed row.
    pub context_length: usize,
    /// The GPUs.
    pub cluster: Cluster,
    /// How they are cut.
    pub parallel: Layout,
    /// The rows of a step.
    pub rows: Rows,
    /// Each GPU's memory.
    pub memory: DeviceMemory,
    /// Bytes of a GPU's memory that a plan may use.
    pub usable_bytes: u64,
    /// Whether the plan's memory is there.
    pub fits: bool,
    /// Host memory and disk.
    pub saving: Saving,
    /// Bytes that a GPU sends in a step, by link.
    pub links: Links,
    /// The type in which gradients travel.
    pub reduce_dtype: ReduceDType,
    /// How long a step takes.
    pub time: StepTime,
    /// What was assumed, in the order in which a reader asks.
    pub assumptions: Vec<String>,
}

impl ClusterPlan {
    /// Plans a workload on a cluster.
    ///
    /// # Errors
    /// When the ranks cannot be cut as the workload asks.
    pub fn new(workload: &Workload, cluster: Cluster) -> Result<Self, ClusterError> {
        let assumptions = Assumptions::default();
        let parallel: Layout = workload.degrees(cluster.ranks())?.into();
        let usable_bytes = cluster.gpu.usable_bytes();
        let rows = rows(workload, parallel, usable_bytes)?;
        let memory = DeviceMemory::new(workload, parallel, rows.micro_batch)?;
        let moves =
            Moves::of_step(workload.model(), workload.recomputes(), workload.residency(), rows.micro_batches);
        let links = Links::of_step(workload, &moves, parallel, &cluster, rows)?;
        let time = StepTime::new(workload, &cluster, parallel, rows, &links, &memory, &assumptions);
        let saving = saving(workload, &cluster, &memory, &time, &assumptions);
        let mut told = workload.assumptions();
        told.extend(assumptions.told(&cluster.gpu));
        Ok(Self {
            model: workload.name().to_owned(),
            parameters: workload.config().parameter_count(),
            active_parameters: workload.config().active_parameter_count(),
            context_length: workload.context_length(),
            cluster,
            parallel,
            rows,
            fits: memory.total_bytes() <= usable_bytes,
            memory,
            usable_bytes,
            saving,
            links,
            reduce_dtype: workload.reduce_dtype(),
            time,
            assumptions: told,
        })
    }

    /// What failures cost this run, where a GPU fails every `hours` hours on average.
    ///
    /// # Errors
    /// When that is no time.
    pub fn failures(&self, hours: f64) -> Result<Failures, ClusterError> {
        if !(hours.is_finite() && hours > 0.0) {
            return Err(ClusterError::TimeBetweenFailures { found: hours });
        }
        let assumptions = Assumptions::default();
        // What a save takes after the training has gone on.
        let beside = (self.saving.save_seconds - self.saving.stall_seconds).max(0.0);
        Ok(Failures {
            mean_seconds: hours * 3600.0 / self.cluster.ranks() as f64,
            stall_seconds: self.saving.stall_seconds + assumptions.save_slowdown * beside,
            save_seconds: beside,
            restart_seconds: assumptions.restart_seconds + self.saving.load_seconds,
            step_seconds: self.time.step_seconds,
        })
    }
}

/// The micro-batch that is asked for, or else the largest that fits, cut so that a rank's rows are dealt out evenly.
fn rows(workload: &Workload, parallel: Layout, usable_bytes: u64) -> Result<Rows, OpError> {
    let global_batch = workload.global_batch(parallel);
    let own = global_batch.div_ceil(parallel.data());
    let largest_micro_batch = largest_micro_batch(workload, parallel, usable_bytes)?;
    let micro_batch = workload.micro_batch().unwrap_or_else(|| largest_micro_batch.unwrap_or(1).min(own));
    let micro_batches = own.div_ceil(micro_batch);
    let micro_batch = workload.micro_batch().unwrap_or_else(|| own.div_ceil(micro_batches));
    Ok(Rows { micro_batch, largest_micro_batch, micro_batches, global_batch })
}

/// The most rows whose plan fits; more need more.
fn largest_micro_batch(
    workload: &Workload,
    parallel: Layout,
    usable_bytes: u64,
) -> Result<Option<usize>, OpError> {
    let most = MOST_ROWS.min(i32::MAX as usize / workload.context_length()).max(1);
    let (mut fitting, mut too_many) = (0, most + 1);
    while fitting + 1 < too_many {
        let rows = fitting.midpoint(too_many);
        let needed = DeviceMemory::new(workload, parallel, rows)?.total_bytes();
        if needed <= usable_bytes { fitting = rows } else { too_many = rows }
    }
    Ok((fitting > 0).then_some(fitting))
}

fn saving(
    workload: &Workload,
    cluster: &Cluster,
    memory: &DeviceMemory,
    time: &StepTime,
    assumptions: &Assumptions,
) -> Saving {
    let moments = memory.moment_bytes + memory.host_moment_bytes;
    let snapshot = memory.master_bytes + if workload.saves_weights_only() { 0 } else { moments };
    let parameters = workload.config().parameter_count();
    let copies = if workload.saves_weights_only() { 1 } else { 1 + workload.moments() as u64 };
    let checkpoint_bytes = parameters * size_of::<f32>() as u64 * copies;
    let export_bytes = parameters * workload.export_bytes_per_parameter();
    let copying = snapshot as f64 / (cluster.gpu.host_bytes_per_second * assumptions.link_efficiency);
    let storage = assumptions.storage_bytes_per_second * cluster.nodes as f64;
    let writing = checkpoint_bytes as f64 / storage;
    let computing = time.step_seconds - time.optimizer_seconds;
    let stall_seconds =
        if workload.saves_beside() { (copying - computing).max(0.0) } else { copying + writing };
    Saving {
        pinned_bytes: if workload.saves_beside() { snapshot } else { memory.passage_bytes },
        checkpoint_bytes,
        export_bytes,
        stall_seconds,
        save_seconds: copying + writing,
        load_seconds: writing,
    }
}
