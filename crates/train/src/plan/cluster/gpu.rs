//! GPUs as their vendor describes them: dense bf16 products, memory, links. Figures with sparsity are halved, links are
//! counted in one direction.

use serde::Serialize;

use super::ClusterError;

/// Memory that a plan leaves alone: CUDA context and kernels (about 0.6 GB), the workspace of cuBLAS, the channels of NCCL.
pub const RESERVED_BYTES: u64 = 2_000_000_000;

/// One kind of GPU, eight of which make up a node of the vendor's reference design.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gpu {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Its memory in decimal gigabytes, as it is sold; devices report a little more.
    pub memory_bytes: u64,
    /// bf16 matrix products with fp32 accumulation, without sparsity.
    pub peak_flops_per_second: f64,
    /// Of its own memory.
    pub memory_bytes_per_second: f64,
    /// To the other GPUs of a node, over NVLink.
    pub nvlink_bytes_per_second: f64,
    /// To other nodes: the network adapter that the reference design gives each GPU.
    pub network_bytes_per_second: f64,
    /// To the host, over PCIe.
    pub host_bytes_per_second: f64,
    /// The share of the peak that a training step's kernels reach, forward passes that are done twice included.
    pub achieved: f64,
    /// Where that share comes from.
    pub achieved_source: &'static str,
    /// Where the other figures come from.
    pub source: &'static str,
}

/// The GPUs that are known.
pub const GPUS: &[Gpu] = &[
    Gpu { name: "a100-40gb", memory_bytes: 40_000_000_000, memory_bytes_per_second: 1.555e12, ..A100 },
    A100,
    H100,
    Gpu {
        name: "h200",
        memory_bytes: 141_000_000_000,
        memory_bytes_per_second: 4.8e12,
        source: "NVIDIA H200 datasheet (SXM) and DGX H200 datasheet (400 Gbit/s a GPU)",
        ..H100
    },
    Gpu {
        name: "b200",
        memory_bytes: 180_000_000_000,
        peak_flops_per_second: 2.25e15,
        memory_bytes_per_second: 8.0e12,
        nvlink_bytes_per_second: 900e9,
        network_bytes_per_second: 50e9,
        host_bytes_per_second: 64e9,
        achieved: 0.5,
        achieved_source: "no published run of this kind; below the H100's, as with each generation before",
        source: "NVIDIA HGX B200 and DGX B200 datasheets (1,440 GB, 64 TB/s and 36 PFLOP/s with sparsity for eight)",
    },
];

const A100: Gpu = Gpu {
    name: "a100-80gb",
    memory_bytes: 80_000_000_000,
    peak_flops_per_second: 312e12,
    memory_bytes_per_second: 2.039e12,
    nvlink_bytes_per_second: 300e9,
    network_bytes_per_second: 25e9,
    host_bytes_per_second: 32e9,
    achieved: 0.65,
    achieved_source: "torchtitan, 64 A100: 8B at 58 % MFU, 70B with every block recomputed at 52 % (69 % with the recompute)",
    source: "NVIDIA A100 datasheet (SXM) and DGX A100 datasheet (200 Gbit/s a GPU)",
};

const H100: Gpu = Gpu {
    name: "h100",
    memory_bytes: 80_000_000_000,
    peak_flops_per_second: 989.5e12,
    memory_bytes_per_second: 3.35e12,
    nvlink_bytes_per_second: 450e9,
    network_bytes_per_second: 50e9,
    host_bytes_per_second: 64e9,
    achieved: 0.55,
    achieved_source: "between 8B on 8 H100 at 39 % MFU (torchtitan) and 7B at 61 % (llmq), each by its authors",
    source: "NVIDIA H100 datasheet (SXM) and DGX H100 datasheet (400 Gbit/s a GPU)",
};

impl Gpu {
    /// Bytes that a plan may use.
    pub fn usable_bytes(&self) -> u64 {
        self.memory_bytes - RESERVED_BYTES
    }

    /// Bytes that a plan leaves alone.
    pub fn reserved_bytes(&self) -> u64 {
        RESERVED_BYTES
    }
}

/// The GPU that a driver calls `device_name`, `NVIDIA A100-SXM4-80GB` say, if it is known. Cards for other slots, and slices
/// of a GPU, have other peaks.
pub fn known_gpu(device_name: &str) -> Option<&'static Gpu> {
    let words = device_name.to_ascii_lowercase();
    if ["mig", "pcie", "nvl"].iter().any(|other| words.contains(other)) {
        return None;
    }
    GPUS.iter().find(|gpu| gpu.name.split('-').all(|part| words.contains(part)))
}

/// The GPU of that name, in upper or lower case.
///
/// # Errors
/// When there is none.
pub fn find_gpu(name: &str) -> Result<&'static Gpu, ClusterError> {
    let known = GPUS.iter().find(|gpu| gpu.name.eq_ignore_ascii_case(name));
    known.ok_or_else(|| ClusterError::UnknownGpu { name: name.to_owned() })
}
