//! Element types as PyTorch names them: in `.metadata` by dtype (`torch.float32`), in an item by the class of
//! its storage (`torch.FloatStorage`).

use crc32fast::Hasher;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::pickle::Global;
use crate::StoredDType;

/// The type of a stored tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ElementType {
    /// `torch.float64`
    F64,
    /// `torch.float32`
    F32,
    /// `torch.bfloat16`
    Bf16,
    /// `torch.float16`
    F16,
    /// `torch.int64`
    I64,
    /// `torch.int32`
    I32,
    /// `torch.int16`
    I16,
    /// `torch.int8`
    I8,
    /// `torch.uint8`
    U8,
    /// `torch.bool`
    Bool,
}

impl ElementType {
    /// Every element type.
    pub(crate) const ALL: [Self; 10] = [
        Self::F64,
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U8,
        Self::Bool,
    ];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// `torch.<dtype>`.
    pub(crate) const fn dtype(self) -> Global {
        Global::new(
            "torch",
            match self {
                Self::F64 => "float64",
                Self::F32 => "float32",
                Self::Bf16 => "bfloat16",
                Self::F16 => "float16",
                Self::I64 => "int64",
                Self::I32 => "int32",
                Self::I16 => "int16",
                Self::I8 => "int8",
                Self::U8 => "uint8",
                Self::Bool => "bool",
            },
        )
    }

    /// `torch.<storage class>`.
    pub(crate) const fn storage(self) -> Global {
        Global::new(
            "torch",
            match self {
                Self::F64 => "DoubleStorage",
                Self::F32 => "FloatStorage",
                Self::Bf16 => "BFloat16Storage",
                Self::F16 => "HalfStorage",
                Self::I64 => "LongStorage",
                Self::I32 => "IntStorage",
                Self::I16 => "ShortStorage",
                Self::I8 => "CharStorage",
                Self::U8 => "ByteStorage",
                Self::Bool => "BoolStorage",
            },
        )
    }

    /// The element type that `torch.<dtype>` names.
    pub(crate) fn from_dtype(global: Global) -> Option<Self> {
        Self::ALL.into_iter().find(|element| element.dtype() == global)
    }

    /// The element type that `torch.<storage class>` holds.
    pub(crate) fn from_storage(global: Global) -> Option<Self> {
        Self::ALL.into_iter().find(|element| element.storage() == global)
    }

    /// The type as a source of weights states it; `None` for what weights are not kept in.
    pub fn weight_type(self) -> Option<StoredDType> {
        match self {
            Self::F32 => Some(StoredDType::F32),
            Self::Bf16 => Some(StoredDType::Bf16),
            Self::F16 => Some(StoredDType::F16),
            _ => None,
        }
    }
}

/// What a thread reads at a time, where several share the reading: it stays in a core's cache.
const PIECE_BYTES: usize = 1 << 18;

/// The CRC-32 of some bytes, of whose pieces several threads take their part: one alone reads slower than a disk.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    joined(bytes.par_chunks(PIECE_BYTES).map(hashed))
}

/// [`decode`] and [`checksum`] in one go: the bytes come from memory once.
pub(crate) fn decode_and_sum(dtype: StoredDType, bytes: &[u8], out: &mut [f32]) -> u32 {
    let Some(size) = bytes.len().checked_div(out.len()) else { return checksum(bytes) };
    let pieces = out.par_chunks_mut(PIECE_BYTES / size).zip(bytes.par_chunks(PIECE_BYTES));
    joined(pieces.map(|(out, bytes)| {
        let hasher = hashed(bytes);
        decode(dtype, bytes, out);
        hasher
    }))
}

fn hashed(bytes: &[u8]) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher
}

/// The checksum of pieces that follow one another.
fn joined(pieces: impl IndexedParallelIterator<Item = Hasher>) -> u32 {
    let join = |mut first: Hasher, second: Hasher| {
        first.combine(&second);
        first
    };
    pieces.reduce(Hasher::new, join).finalize()
}

/// Converts little-endian elements to fp32. `bytes` holds exactly `out.len()` elements of type `dtype`.
pub(crate) fn decode(dtype: StoredDType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        StoredDType::F32 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        StoredDType::Bf16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        StoredDType::F16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        // No type of PyTorch's: `ElementType::weight_type` does not give it.
        StoredDType::Quantised => {}
    }
}
