//! What can be wrong with the question.

use tessera_model::catalogue::UnknownModel;
use tessera_ops::OpError;

use super::gpu::GPUS;
use crate::error::TrainError;

/// A plan cannot be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ClusterError {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("{0}. A folder in Hugging Face layout, or its config.json, can be planned for too")]
    Model(#[from] UnknownModel),
    /// The plan of a buffer failed, which the checks before it rule out.
    #[error("the memory cannot be planned: {0}")]
    Memory(#[from] OpError),
    #[error("no GPU is known as `{name}`; known are {}", known_gpus())]
    UnknownGpu { name: String },
    #[error("{nodes} nodes of {gpus} GPUs cannot be planned for; expected 1 to {most} GPUs in all")]
    Size { nodes: usize, gpus: usize, most: usize },
    #[error(
        "a network of {found} Gbit/s for each GPU cannot be planned for; expected a number above 0, such as 400"
    )]
    Network { found: f64 },
    #[error(
        "a mean time of {found} hours between failures cannot be planned for; expected a number above 0, such as 50000"
    )]
    TimeBetweenFailures { found: f64 },
}

fn known_gpus() -> String {
    GPUS.iter().map(|gpu| gpu.name).collect::<Vec<_>>().join(", ")
}
