//! Setting, copying and adding whole views.

use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
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
    }
}

/// to = from; same shape and dtype.
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
    }
}

/// to += from; same shape and dtype.
pub fn add(queue: &Queue, from: View<'_>, mut to: ViewMut<'_>) -> Result<(), OpError> {
    check::shape("fill::add", "to", to.shape(), from.shape())?;
    match queue.device() {
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
    }
}
