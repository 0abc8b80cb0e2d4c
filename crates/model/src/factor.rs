//! Factors of products where the model computes in less than fp32: what is kept in fp32 for its own sake is rounded when a
//! product with weights or activations needs it.

use tessera_ops::{Arena, DType, OpError, Queue, View, cast};

/// A matrix in fp32 as a factor of products whose other factor is in `compute`: rounded into `scratch` where they differ.
pub(crate) fn as_factor<'a, 'b: 'a>(
    queue: &Queue,
    compute: DType,
    wide: View<'a>,
    scratch: &mut Arena<'b>,
) -> Result<View<'a>, OpError> {
    if compute == wide.dtype() {
        return Ok(wide);
    }
    let mut rounded = scratch.take(compute, wide.shape())?;
    cast::forward(queue, wide, rounded.reborrow())?;
    Ok(rounded.into_view())
}

/// Bytes of the scratch that [`as_factor`] takes.
pub(crate) fn factor_bytes(compute: DType, elements: usize) -> usize {
    if compute == DType::F32 { 0 } else { Arena::cost(compute, elements) }
}
