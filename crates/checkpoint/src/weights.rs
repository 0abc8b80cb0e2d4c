//! What every place that weights can come from has in common: named tensors, read by ranges of elements, so that
//! a rank reads its own share and nothing else.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

/// The element type of a tensor as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredDType {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// A block-quantised type of GGUF, dequantised as it is read.
    Quantised,
}

/// Shape and element type of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// How the elements are stored.
    pub dtype: StoredDType,
}

impl TensorInfo {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Named tensors that can be read piece by piece, converted to fp32.
pub trait WeightSource: Send + Sync {
    /// Every tensor by its Hugging Face name.
    fn tensors(&self) -> &BTreeMap<String, TensorInfo>;

    /// Fills `out` with the elements `start..start + out.len()` of tensor `name`, counted in row-major order.
    ///
    /// # Errors
    /// When the tensor is unknown, the range passes its end, or the bytes cannot be read or are damaged.
    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// The files that tell one copy of the weights from another: none where they do not come from files.
    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}
