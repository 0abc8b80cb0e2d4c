//! Kernels that give rows to blocks and leave a sum of columns in each: the norms' gradients of their weights.

use super::launch::Grid;
use super::stream::{SCRATCH_BYTES, Stream};
use crate::buffer::ViewMut;
use crate::dtype::DType;
use crate::error::OpError;
use crate::memory::DeviceBytes;

/// Blocks for each multiprocessor: enough to hide the loads of one behind the sums of another, few enough that the partial
/// sums are a small part of what is read. There are fewer where their sums would not fit into a stream's scratch.
const BLOCKS_EACH: usize = 4;

/// Packs of 16 bytes of a row that a block of `kernels/bias.cu` adds up.
const PACKS: usize = 8;

/// Bytes of a pack, and what rows in shared memory are rounded up to.
const PACK_BYTES: usize = 16;

/// How rows of a matrix are given to blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowBlocks {
    width: usize,
    /// The number of blocks: block b takes the rows b, b + count, …
    pub count: usize,
    /// Bytes of a row of the matrix in shared memory.
    pub row_bytes: usize,
    /// Bytes of a row of fp32 sums there.
    pub sum_bytes: usize,
}

impl RowBlocks {
    pub fn new(stream: &Stream, rows: usize, width: usize, dtype: DType) -> Self {
        let padded = |size: usize| (width * size).next_multiple_of(PACK_BYTES);
        let count = rows.min(block_count(stream.gpu().multiprocessors(), width));
        Self { width, count, row_bytes: padded(dtype.size()), sum_bytes: padded(DType::F32.size()) }
    }

    /// Bytes of scratch for a sum of each block.
    pub fn partial_bytes(&self) -> usize {
        self.count * self.width * DType::F32.size()
    }

    /// sums += the blocks' sums, in their order.
    pub fn add_partial(
        &self,
        stream: &Stream,
        operator: &'static str,
        partial: DeviceBytes<'_>,
        sums: &ViewMut<'_>,
    ) -> Result<(), OpError> {
        if self.count == 0 {
            return Ok(());
        }
        stream
            .kernel(operator, "bias", "bias_backward_f32")
            .scratch(partial, 0)
            .output("the sums of columns", sums, DType::F32)
            .u32(self.count)
            .u32(self.width)
            .launch(column_grid(self.width, DType::F32, partial.address()))
    }
}

/// Blocks for rows of any number.
fn block_count(multiprocessors: usize, width: usize) -> usize {
    let fitting = SCRATCH_BYTES / (width * DType::F32.size()).max(1);
    (BLOCKS_EACH * multiprocessors).min(fitting).max(1)
}

/// The grid of a sum over the rows of a matrix `[.., width]` at `address`.
pub(crate) fn column_grid(width: usize, dtype: DType, address: u64) -> Grid {
    let elements = PACK_BYTES / dtype.size();
    let is_wide = width.is_multiple_of(elements) && address.is_multiple_of(PACK_BYTES as u64);
    Grid::blocks(width.div_ceil(PACKS * if is_wide { elements } else { 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_blocks_fit_into_a_streams_scratch() {
        for multiprocessors in [1, 108, 132, 148] {
            for width in [1, 2048, 8192, 16384, 32768] {
                let count = block_count(multiprocessors, width);
                assert!(count * width * DType::F32.size() <= SCRATCH_BYTES, "{multiprocessors} {width}");
            }
        }
        assert_eq!(block_count(132, 8192), 4 * 132);
    }
}
