//! Between fp32 masters and bf16 compute: to = from, rounded to the nearest, ties to even; widening is exact.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::check;
use crate::cuda::Grid;
use crate::dtype::DType;
use crate::error::OpError;
use crate::queue::{Device, Queue};

/// Elements handled by one task.
const PIECE: usize = 1 << 16;

/// to = from, from fp32 to bf16 or from bf16 to fp32; same shape.
pub fn forward(queue: &Queue, from: View<'_>, mut to: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "cast::forward";
    check::shape(OPERATOR, "to", to.shape(), from.shape())?;
    let narrows = match (from.dtype(), to.dtype()) {
        (DType::F32, DType::BF16) => true,
        (DType::BF16, DType::F32) => false,
        (DType::F32, found) => {
            return Err(OpError::DType { operator: OPERATOR, argument: "to", found, expected: "bf16" });
        }
        (DType::BF16, found) => {
            return Err(OpError::DType { operator: OPERATOR, argument: "to", found, expected: "f32" });
        }
        (found, _) => {
            return Err(OpError::DType {
                operator: OPERATOR,
                argument: "from",
                found,
                expected: "f32 or bf16",
            });
        }
    };
    match queue.device() {
        Device::Cpu if narrows => {
            let pieces = to.as_slice_mut::<bf16>()?.par_chunks_mut(PIECE);
            pieces
                .zip(from.as_slice::<f32>()?.par_chunks(PIECE))
                .for_each(|(to, from)| to.convert_from_f32_slice(from));
            Ok(())
        }
        Device::Cpu => {
            let pieces = to.as_slice_mut::<f32>()?.par_chunks_mut(PIECE);
            pieces
                .zip(from.as_slice::<bf16>()?.par_chunks(PIECE))
                .for_each(|(to, from)| from.convert_to_f32_slice(to));
            Ok(())
        }
        Device::Cuda(stream) => {
            let name = if narrows { "cast_f32_bf16" } else { "cast_bf16_f32" };
            let elements = from.shape().elements();
            stream
                .kernel(OPERATOR, "cast", name)
                .input("from", from, from.dtype())
                .output("to", &to, to.dtype())
                .u64(elements)
                .launch(Grid::flat(stream, DType::F32, elements))
        }
    }
}
