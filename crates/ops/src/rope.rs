//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in Hugging Face's "rotate half" order.
//!
//! With head size D, position p and frequencies f\[i\], i < D/2: the pair (x\[i\], x\[i + D/2\]) is turned by the angle
//! p·f\[i\]. The backward turns the gradient by the opposite angle. Both work in place on the first `heads` heads of each
//! row of x `[T, width]`, width ≥ heads·D: in a row of queries, keys and values, the first two are turned in one call.
//! The angles come from a table `[positions, D]` of D/2 cosines, then D/2 sines; positions `[T]` u32. Nothing is kept.
//! On a GPU the table is fp32 where x is bf16, and positions are checked by whoever uploads them, not here.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::for_row_blocks_of;
use crate::queue::{Device, Queue};
use crate::simd::vectorised;

/// Fills `table` `[positions, 2·frequencies]`, on the host, with cosines and sines; angles are computed in fp64.
pub fn fill_table(frequencies: &[f64], mut table: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "rope::fill_table";
    let (positions, width) = check::matrix(OPERATOR, "table", table.shape())?;
    check::shape(OPERATOR, "table", table.shape(), [positions, 2 * frequencies.len()])?;
    for_float!(OPERATOR, table, F => {
        for_row_blocks_of(table.as_slice_mut::<F>()?, width, |first, rows| {
            for (row, angles) in rows.chunks_exact_mut(width).enumerate() {
                let (cosines, sines) = angles.split_at_mut(frequencies.len());
                for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
                    let angle = (first + row) as f64 * frequency;
                    (*cosine, *sine) = (F::from_f64(angle.cos()), F::from_f64(angle.sin()));
                }
            }
        });
        Ok(())
    })
}

/// Turns the first `heads` heads of each row of x to its position.
pub fn forward(
    queue: &Queue,
    x: ViewMut<'_>,
    heads: usize,
    positions: View<'_>,
    table: View<'_>,
) -> Result<(), OpError> {
    rotate(queue, x, heads, positions, table, 1.0)
}

/// Turns the gradient of the first `heads` heads of each row back.
pub fn backward(
    queue: &Queue,
    dx: ViewMut<'_>,
    heads: usize,
    positions: View<'_>,
    table: View<'_>,
) -> Result<(), OpError> {
    rotate(queue, dx, heads, positions, table, -1.0)
}

fn rotate(
    queue: &Queue,
    mut x: ViewMut<'_>,
    heads: usize,
    positions: View<'_>,
    table: View<'_>,
    direction: f64,
) -> Result<(), OpError> {
    const OPERATOR: &str = "rope";
    let (rows, width) = check::matrix(OPERATOR, "x", x.shape())?;
    let (known_positions, head_size) = check::matrix(OPERATOR, "table", table.shape())?;
    check::shape(OPERATOR, "positions", positions.shape(), [rows])?;
    if !head_size.is_multiple_of(2) {
        let expected = "an even number of columns".into();
        let found = table.shape().extents().to_vec();
        return Err(OpError::Shape { operator: OPERATOR, argument: "table", found, expected });
    }
    if heads.saturating_mul(head_size) > width {
        let expected = format!("at least {heads} heads of {head_size} in a row");
        return Err(OpError::Shape { operator: OPERATOR, argument: "x", found: vec![rows, width], expected });
    }
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, table, F => {
            let (table, positions) = (table.as_slice::<F>()?, positions.as_slice::<u32>()?);
            check::indices(OPERATOR, positions, known_positions)?;
            let direction = F::from_f64(direction);
            for_row_blocks_of(x.as_slice_mut::<F>()?, width, |first, rows| vectorised(#[inline(always)] || {
                for (row, &position) in rows.chunks_exact_mut(width).zip(&positions[first..]) {
                    let angles = &table[position as usize * head_size..][..head_size];
                    for head in row[..heads * head_size].chunks_exact_mut(head_size) {
                        rotate_head(head, angles, direction);
                    }
                }
            }));
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            // A thread turns a pack of left halves with one of right halves.
            let grid = Grid::blocks(rows).threads_for(heads * head_size / 2 * dtype.size());
            stream
                .kernel(OPERATOR, "rope", &format!("rope_{variant}"))
                .output("x", &x, dtype)
                .u32(heads)
                .input("positions", positions, DType::U32)
                .input("table", table, DType::F32)
                .u32(width)
                .u32(head_size)
                .f32(direction)
                .launch(grid.shared(head_size * DType::F32.size()))
        }
    }
}

#[inline(always)]
fn rotate_head<T: Float>(head: &mut [T], angles: &[T], direction: T) {
    let half = head.len() / 2;
    let (cosines, sines) = angles.split_at(half);
    let (left, right) = head.split_at_mut(half);
    for (((a, b), &cosine), &sine) in left.iter_mut().zip(right).zip(cosines).zip(sines) {
        let sine = sine * direction;
        (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
    }
}
