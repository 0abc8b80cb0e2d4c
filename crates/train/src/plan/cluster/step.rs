//! How long a step takes: work and bytes over the rates at which a GPU does and sends them.
//!
//! Matrix products run at a share of the peak. Weights that arrive and gradients that leave do so while blocks compute; the
//! shorter of the two is hidden but for a rest. What cannot be hidden follows: the sum over replicas, exchanges of shared
//! sequences, the optimizer.

use serde::Serialize;
use tessera_dist::Wire;
use tessera_ops::OpError;

use super::{Cluster, DeviceMemory, Gpu, Layout, Rows, Workload};
use crate::engine::{ElementBytes, Moves, Traffic, balance_traffic_bytes, context_traffic_bytes};

/// What is taken for granted about machines in general.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assumptions {
    /// The share of a link's rate that collectives and copies reach.
    pub link_efficiency: f64,
    /// The share of the memory's rate that the optimizer reaches.
    pub memory_efficiency: f64,
    /// The share of the shorter of compute and transfer that the longer hides.
    pub overlap: f64,
    /// What a node writes to, and reads from, the storage of checkpoints.
    pub storage_bytes_per_second: f64,
    /// From a failure to the first batch, without reading the checkpoint: noticing, the scheduler, starting.
    pub restart_seconds: f64,
    /// How much slower the training is while a checkpoint is written beside it.
    pub save_slowdown: f64,
}

impl Default for Assumptions {
    fn default() -> Self {
        Self {
            link_efficiency: 0.8,
            memory_efficiency: 0.8,
            overlap: 0.9,
            storage_bytes_per_second: 2e9,
            restart_seconds: 300.0,
            save_slowdown: 0.05,
        }
    }
}

impl Assumptions {
    /// Each in a line, with the figures of the GPU that enter the estimate.
    pub fn told(&self, gpu: &Gpu) -> Vec<String> {
        let giga = |rate: f64| rate / 1e9;
        vec![
            format!(
                "memory: {:.0} GB as sold, of which {:.0} GB are left to CUDA context, kernels, cuBLAS and NCCL",
                giga(gpu.memory_bytes as f64),
                giga(gpu.reserved_bytes() as f64)
            ),
            format!("peak: {:.1} TFLOP/s, dense bf16 ({})", gpu.peak_flops_per_second / 1e12, gpu.source),
            format!("achieved: {:.0} % of it in compute ({})", 100.0 * gpu.achieved, gpu.achieved_source),
            format!(
                "links, each direction: NVLink {:.0} GB/s, network {:.0} GB/s a GPU, PCIe {:.0} GB/s, of which {:.0} % are reached",
                giga(gpu.nvlink_bytes_per_second),
                giga(gpu.network_bytes_per_second),
                giga(gpu.host_bytes_per_second),
                100.0 * self.link_efficiency
            ),
            "network: each node gets what it lacks once, over the adapters of all its GPUs".to_owned(),
            format!(
                "overlap: {:.0} % of the shorter of compute and transfer of weights and gradients is hidden",
                100.0 * self.overlap
            ),
            "recompute: every forward of the blocks is done twice and weights are gathered for it again, unless \
             activation_checkpointing: none and parallel.reshard_after_forward: false are given; one process whose GPUs \
             have the room does neither"
                .to_owned(),
            format!(
                "optimizer: bound by memory, {:.0} % of {:.2} TB/s; moments in the host's memory by PCIe, both directions at once",
                100.0 * self.memory_efficiency,
                gpu.memory_bytes_per_second / 1e12
            ),
            format!(
                "storage: {:.0} GB/s a node, written and read; training {:.0} % slower while a checkpoint is written",
                giga(self.storage_bytes_per_second),
                100.0 * self.save_slowdown
            ),
            format!("restart: {:.0} s and the time to read the checkpoint", self.restart_seconds),
        ]
    }
}

/// Bytes that the first GPU sends in a step; none sends more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Links {
    /// Weights, bf16.
    pub gathered: Split,
    /// Gradients, fp32 or bf16.
    pub reduced: Split,
    /// Reduced gradients to the other replicas, in the same type.
    pub replicated: Split,
    /// Queries, keys, values and what is attended, to the ranks that share the sequence, bf16.
    pub exchanged: Split,
}

/// Bytes by link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct Split {
    /// Inside the node.
    pub nvlink_bytes: u64,
    /// To other nodes.
    pub network_bytes: u64,
}

impl Split {
    /// `bytes`, of which `crossing` of `all` go to other nodes.
    fn new(bytes: u64, crossing: usize, all: usize) -> Self {
        let network_bytes =
            if all == 0 { 0 } else { (u128::from(bytes) * crossing as u128 / all as u128) as u64 };
        Self { nvlink_bytes: bytes - network_bytes, network_bytes }
    }

    /// Over both links.
    pub fn bytes(&self) -> u64 {
        self.nvlink_bytes + self.network_bytes
    }

    /// How long it takes where both links work at once.
    fn seconds(&self, gpu: &Gpu, efficiency: f64) -> f64 {
        let nvlink = self.nvlink_bytes as f64 / gpu.nvlink_bytes_per_second;
        nvlink.max(self.network_bytes as f64 / gpu.network_bytes_per_second) / efficiency
    }
}

impl Links {
    /// The bytes of a step that makes these `moves`.
    ///
    /// # Errors
    /// When the heads cannot be split over the ranks that share a sequence.
    pub fn of_step(
        workload: &Workload,
        moves: &Moves,
        parallel: Layout,
        cluster: &Cluster,
        rows: Rows,
    ) -> Result<Self, OpError> {
        let (copy, per_node) = (parallel.copy(), cluster.gpus_per_node);
        let bytes = ElementBytes { gathered: 2, reduced: Wire::from(workload.reduce_dtype()).size() };
        let traffic = Traffic::of_step(workload.model(), moves, parallel.into(), bytes);
        // Of a ring's copy − 1 steps, as many cross to another node as there are other nodes.
        let nodes = copy.div_ceil(per_node);
        let (crossing, all) = (nodes - 1, copy - 1);
        let replicas_per_node = (per_node / copy).max(1);
        let replica_nodes = parallel.replicate.div_ceil(replicas_per_node);
        let sharing = parallel.context;
        let outside = sharing.saturating_sub(per_node);
        Ok(Self {
            gathered: Split::new(traffic.gathered, crossing, all),
            reduced: Split::new(traffic.reduced, crossing, all),
            replicated: Split::new(traffic.replicated, replica_nodes - 1, parallel.replicate - 1),
            exchanged: Split::new(exchanged(workload, sharing, rows)?, outside, sharing - 1),
        })
    }

    /// Everything together.
    pub fn total(&self) -> Split {
        let all = [self.gathered, self.reduced, self.replicated, self.exchanged];
        Split {
            nvlink_bytes: all.iter().map(|split| split.nvlink_bytes).sum(),
            network_bytes: all.iter().map(|split| split.network_bytes).sum(),
        }
    }
}

/// Bytes that a step's exchanges of shared sequences send: half of what they send in fp32, and the sums of the
/// load-balancing loss.
fn exchanged(workload: &Workload, context: usize, rows: Rows) -> Result<u64, OpError> {
    if context == 1 {
        return Ok(0);
    }
    let model = workload.model();
    let tokens = rows.micro_batch * workload.context_length();
    let sequences = context_traffic_bytes(model, context, tokens, workload.recomputes())? / 2;
    let balance =
        model.balance().map_or(0, |balance| balance_traffic_bytes(balance, context, rows.micro_batch));
    Ok(rows.micro_batches as u64 * (sequences + balance))
}

/// How long a step takes, and what that comes to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepTime {
    /// Operations that a step needs, over all GPUs: attention within the causal half.
    pub model_flops: f64,
    /// Those that are done, what is computed twice included.
    pub hardware_flops: f64,
    /// Products and attention of the GPU with the most rows.
    pub compute_seconds: f64,
    /// Weights and gradients on the links.
    pub transfer_seconds: f64,
    /// The sum over replicas.
    pub replication_seconds: f64,
    /// Exchanges of shared sequences.
    pub exchange_seconds: f64,
    /// The update.
    pub optimizer_seconds: f64,
    /// All of it, what is hidden left out.
    pub step_seconds: f64,
    /// Over all GPUs.
    pub tokens_per_second: f64,
    /// Of each.
    pub tokens_per_second_per_gpu: f64,
    /// The share of the peak that `model_flops` come to.
    pub mfu: f64,
    /// The same with attention counted over the whole square, as torchtitan and LLM Foundry do.
    pub mfu_full_attention: f64,
}

impl StepTime {
    /// The time of a step of `rows`.
    pub fn new(
        workload: &Workload,
        cluster: &Cluster,
        parallel: Layout,
        rows: Rows,
        links: &Links,
        memory: &DeviceMemory,
        assumptions: &Assumptions,
    ) -> Self {
        let (gpu, ranks) = (&cluster.gpu, cluster.ranks() as f64);
        let own = rows.global_batch.div_ceil(parallel.data());
        let compute_seconds = hardware_flops(workload, own)
            / parallel.context as f64
            / (gpu.peak_flops_per_second * gpu.achieved);
        let seconds = |split: Split| split.seconds(gpu, assumptions.link_efficiency);
        let transfer_seconds = seconds(links.gathered) + seconds(links.reduced);
        let replication_seconds = seconds(links.replicated);
        let exchange_seconds = seconds(links.exchanged);
        let own_memory =
            optimizer_bytes(memory) as f64 / (gpu.memory_bytes_per_second * assumptions.memory_efficiency);
        // The bus carries both directions at once.
        let bus = memory.host_moment_bytes as f64 / (gpu.host_bytes_per_second * assumptions.link_efficiency);
        let optimizer_seconds = own_memory.max(bus);
        let shorter = compute_seconds.min(transfer_seconds);
        let step_seconds = compute_seconds.max(transfer_seconds)
            + (1.0 - assumptions.overlap) * shorter
            + replication_seconds
            + exchange_seconds
            + optimizer_seconds;
        let tokens = workload.work(rows.global_batch).tokens as f64;
        let model_flops = workload.config().training_flops(workload.work(rows.global_batch));
        let full = workload.config().training_flops_per_token(workload.context_length()).full * tokens;
        let peak = gpu.peak_flops_per_second * ranks * step_seconds;
        Self {
            model_flops,
            hardware_flops: hardware_flops(workload, rows.global_batch),
            compute_seconds,
            transfer_seconds,
            replication_seconds,
            exchange_seconds,
            optimizer_seconds,
            step_seconds,
            tokens_per_second: tokens / step_seconds,
            tokens_per_second_per_gpu: tokens / step_seconds / ranks,
            mfu: model_flops / peak,
            mfu_full_attention: full / peak,
        }
    }
}

/// Operations of `rows` rows: a third of those of the blocks is their forward, done twice with recompute.
fn hardware_flops(workload: &Workload, rows: usize) -> f64 {
    let work = workload.work(rows);
    let blocks = tessera_model::config::TrainingWork { loss_tokens: 0, ..work };
    let again = if workload.recomputes() { workload.config().training_flops(blocks) / 3.0 } else { 0.0 };
    workload.config().training_flops(work) + again
}

/// Bytes of its own memory that an update reads and writes: masters and moments both, gradients read for the norm and the update and then
/// cleared.
fn optimizer_bytes(memory: &DeviceMemory) -> u64 {
    2 * (memory.master_bytes + memory.moment_bytes) + 3 * memory.gradient_bytes
}
