//! Setting, copying and adding whole views.

use half::bf16;
use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::DType;
use crate::error::OpError;
use crate::queue::{Device, Queue};

/// Elements handled by one task.
const PIECE: usize = 1 << 16;

/// x = 0.
pub fn zero(queue: &Queue, mut x: ViewMut<'_>) -> Result<(), OpError> {
    match queue.device() {
        Device::Cpu => for_float!("fill::zero", x, F => {
            x.as_slice_mut::<F>()?.par_chunks_mut(PIECE).for_each(|piece| piece.fill(0.0));
            Ok(())
        }),
        Device::Cuda(stream) => stream.zero("fill::zero", &mut x),
    }
}

/// to = from; same shape and dtype. On a GPU either may lie on the host, which then waits for the copy.
pub fn copy(queue: &Queue, from: View<'_>, mut to: ViewMut<'_>) -> Result<(), OpError> {
    check::shape("fill::copy", "to", to.shape(), from.shape())?;
    match queue.device() {
        Device::Cpu => for_float!("fill::copy", from, F => {
            to.as_slice_mut::<F>()?
                .par_chunks_mut(PIECE)
                .zip(from.as_slice::<F>()?.par_chunks(PIECE))
                .for_each(|(to, from)| to.copy_from_slice(from));
            Ok(())
        }),
        Device::Cuda(stream) => {
            check::dtype("fill::copy", "to", to.dtype(), from.dtype())?;
            stream.copy(from, to)
        }
    }
}

/// to += from; same shape and dtype, or `from` in bf16 and `to` in fp32.
pub fn add(queue: &Queue, from: View<'_>, mut to: ViewMut<'_>) -> Result<(), OpError> {
    check::shape("fill::add", "to", to.shape(), from.shape())?;
    let widens = (from.dtype(), to.dtype()) == (DType::BF16, DType::F32);
    match queue.device() {
        Device::Cpu if widens => {
            to.as_slice_mut::<f32>()?
                .par_chunks_mut(PIECE)
                .zip(from.as_slice::<bf16>()?.par_chunks(PIECE))
                .for_each(|(to, from)| {
                    for (to, &from) in to.iter_mut().zip(from) {
                        *to += from.to_f32();
                    }
                });
            Ok(())
        }
        Device::Cpu => for_float!("fill::add", from, F => {
            to.as_slice_mut::<F>()?
                .par_chunks_mut(PIECE)
                .zip(from.as_slice::<F>()?.par_chunks(PIECE))
                .for_each(|(to, from)| {
                    for (to, &from) in to.iter_mut().zip(from) {
                        *to += from;
                    }
                });
            Ok(())
        }),
        Device::Cuda(stream) => {
            const OPERATOR: &str = "fill::add";
            let (dtype, elements) = (to.dtype(), from.shape().elements());
            let variant = if widens { "bf16_f32" } else { stream.variant(OPERATOR, "to", dtype)? };
            stream
                .kernel(OPERATOR, "fill", &format!("fill_add_{variant}"))
                .input("from", from, if widens { DType::BF16 } else { dtype })
                .output("to", &to, dtype)
                .u64(elements)
                .launch(Grid::flat(stream, dtype, elements))
        }
    }
}
