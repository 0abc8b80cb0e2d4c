//! What a run trains on: `auto`, `cpu`, `cpu:4`, `cuda` or `cuda:0,1`.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::reader::Read;
use super::tree::{Node, Value};

/// The devices of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// Every GPU where there are any, else the CPU.
    Auto,
    /// The CPU, as one rank or several: `cpu`, `cpu:4`.
    Cpu {
        /// Ranks, each a thread of one process.
        ranks: NonZeroUsize,
    },
    /// Every visible GPU: `cuda`.
    EveryGpu,
    /// The GPUs with these indices, each once, in this order: `cuda:0,1`.
    Gpus(Vec<usize>),
}

impl Devices {
    /// The CPU, as one rank.
    pub const ONE_CPU: Self = Self::Cpu { ranks: NonZeroUsize::MIN };

    /// The forms that a run file may give.
    pub const EXPECTED: &str = "auto, cpu, cpu:4 (ranks), cuda, or cuda:0,1 (different indices)";
}

/// The text names no devices. [`Devices::EXPECTED`] says what would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", Devices::EXPECTED)]
pub struct UnknownDevices;

impl FromStr for Devices {
    type Err = UnknownDevices;

    fn from_str(text: &str) -> Result<Self, UnknownDevices> {
        match text.split_once(':') {
            None => match text {
                "auto" => Ok(Self::Auto),
                "cpu" => Ok(Self::Cpu { ranks: NonZeroUsize::MIN }),
                "cuda" => Ok(Self::EveryGpu),
                _ => Err(UnknownDevices),
            },
            Some(("cpu", ranks)) => {
                ranks.parse().map(|ranks| Self::Cpu { ranks }).map_err(|_| UnknownDevices)
            }
            Some(("cuda", indices)) => different_indices(indices).map(Self::Gpus).ok_or(UnknownDevices),
            Some(_) => Err(UnknownDevices),
        }
    }
}

fn different_indices(text: &str) -> Option<Vec<usize>> {
    let mut indices = Vec::new();
    for index in text.split(',') {
        let index = index.trim().parse().ok()?;
        if indices.contains(&index) {
            return None;
        }
        indices.push(index);
    }
    Some(indices)
}

pub(super) fn read(node: &Node) -> Read<Devices> {
    let Value::Text(text) = &node.value else { return Err(Devices::EXPECTED.to_owned()) };
    text.parse().map_err(|UnknownDevices| Devices::EXPECTED.to_owned())
}

impl fmt::Display for Devices {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::Cpu { ranks } if ranks.get() == 1 => out.write_str("cpu"),
            Self::Cpu { ranks } => write!(out, "cpu:{ranks}"),
            Self::EveryGpu => out.write_str("cuda"),
            Self::Gpus(indices) => {
                let indices: Vec<String> = indices.iter().map(ToString::to_string).collect();
                write!(out, "cuda:{}", indices.join(","))
            }
        }
    }
}

impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
