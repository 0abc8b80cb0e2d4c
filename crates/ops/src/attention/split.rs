//! Heads dealt out to the ranks that share a sequence (DeepSpeed-Ulysses; Jacobs et al. 2023, arXiv:2309.14509).
//!
//! Each of C ranks holds t ≤ S tokens with all their heads. An all-to-all of blocks `[C, S, w]`, the c-th for rank c, gives
//! each rank all tokens with its share of the heads, and another brings them back. S is the same on all ranks; of a block
//! only the first t rows count, the rest is filler on the wire.
//!
//! pack:   blocks\[c, s\] = rank c's columns of x\[s\];  unpack: y\[s\] = Σ_c blocks\[c, s\], each in rank c's columns.
//! Rank c has query heads c·Hq/C to (c + 1)·Hq/C, and the key-value heads that they use. Where C > Hkv a key-value head goes
//! to C/Hkv ranks: `unpack` adds what they say in the order of the ranks, which is what its gradient needs.

use super::Heads;
use crate::buffer::{Shape, View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::{Grid, Kernel};
use crate::error::OpError;
use crate::parallel::for_row_blocks_of;
use crate::queue::{Device, Queue};

/// The heads that each of `ranks` ranks gets.
///
/// # Errors
/// [`OpError::HeadSplit`] unless `ranks` divides the query heads, and divides the key-value heads or is divided by them.
pub fn share(heads: Heads, ranks: usize) -> Result<Heads, OpError> {
    heads.check("attention::split")?;
    let Heads { query, key_value, .. } = heads;
    let fits = ranks > 0
        && query.is_multiple_of(ranks)
        && (key_value.is_multiple_of(ranks) || ranks.is_multiple_of(key_value));
    if !fits {
        return Err(OpError::HeadSplit { heads, ranks });
    }
    Ok(Heads { query: query / ranks, key_value: share_of(key_value, ranks), ..heads })
}

/// How many of `heads` heads a rank gets.
fn share_of(heads: usize, ranks: usize) -> usize {
    if heads == 0 { 0 } else { (heads / ranks).max(1) }
}

/// Which columns of a row go to which rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    ranks: usize,
    head_size: usize,
    /// Heads in each stretch of a row that is dealt out by itself.
    sections: [usize; 3],
}

/// A stretch of columns that goes to one rank.
struct Stretch {
    /// Where it begins in a whole row.
    whole: usize,
    /// Where it begins in the rank's share.
    share: usize,
    length: usize,
    /// Whether no earlier rank has it too.
    first: bool,
}

impl Columns {
    /// Of rows of queries, keys and values.
    ///
    /// # Errors
    /// As [`share`].
    pub fn of_qkv(heads: Heads, ranks: usize) -> Result<Self, OpError> {
        share(heads, ranks)?;
        let sections = [heads.query, heads.key_value, heads.key_value];
        Ok(Self { ranks, head_size: heads.size, sections })
    }

    /// Of rows of the output.
    ///
    /// # Errors
    /// As [`share`].
    pub fn of_output(heads: Heads, ranks: usize) -> Result<Self, OpError> {
        share(heads, ranks)?;
        Ok(Self { ranks, head_size: heads.size, sections: [heads.query, 0, 0] })
    }

    /// The number of ranks C.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Elements of a whole row.
    pub fn width(&self) -> usize {
        self.sections.iter().sum::<usize>() * self.head_size
    }

    /// Elements of one rank's share of a row w.
    pub fn share_width(&self) -> usize {
        self.sections.iter().map(|&heads| share_of(heads, self.ranks)).sum::<usize>() * self.head_size
    }

    /// What goes to a rank.
    fn stretches(&self, rank: usize) -> [Stretch; 3] {
        let (mut whole, mut share) = (0, 0);
        self.sections.map(|heads| {
            let length = share_of(heads, self.ranks) * self.head_size;
            let before = rank * heads / self.ranks;
            // Ranks with the same heads are neighbours.
            let first = rank == 0 || (rank - 1) * heads / self.ranks != before;
            let stretch = Stretch { whole: whole + before * self.head_size, share, length, first };
            whole += heads * self.head_size;
            share += length;
            stretch
        })
    }

    /// Tells a kernel what it takes last.
    fn describe<'a>(&self, kernel: Kernel<'a>) -> Kernel<'a> {
        let [queries, keys, values] = self.sections;
        kernel.u32(queries).u32(keys).u32(values).u32(self.head_size).u32(self.ranks)
    }

    /// S, if `blocks` is `[C, S, w]` with room for `tokens` rows.
    fn block_rows(&self, operator: &'static str, blocks: Shape, tokens: usize) -> Result<usize, OpError> {
        let (ranks, width) = (self.ranks, self.share_width());
        match *blocks.extents() {
            [found_ranks, rows, found_width]
                if found_ranks == ranks && found_width == width && rows >= tokens =>
            {
                Ok(rows)
            }
            _ => Err(OpError::Shape {
                operator,
                argument: "blocks",
                found: blocks.extents().to_vec(),
                expected: format!("[{ranks}, {tokens} or more, {width}]"),
            }),
        }
    }
}

/// Writes the first t rows of each block from x `[t, width]`; the other rows stay as they are.
pub fn pack(queue: &Queue, columns: Columns, x: View<'_>, mut blocks: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "attention::split::pack";
    let (tokens, width) = check::matrix(OPERATOR, "x", x.shape())?;
    check::shape(OPERATOR, "x", x.shape(), [tokens, columns.width()])?;
    let rows = columns.block_rows(OPERATOR, blocks.shape(), tokens)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let x = x.as_slice::<F>()?;
            for_row_blocks_of(blocks.as_slice_mut::<F>()?, columns.share_width(), |first, block| {
                for (index, share) in (first..).zip(block.chunks_exact_mut(columns.share_width())) {
                    let (rank, token) = (index / rows, index % rows);
                    if token >= tokens {
                        continue;
                    }
                    let whole = &x[token * width..][..width];
                    for stretch in columns.stretches(rank) {
                        share[stretch.share..][..stretch.length]
                            .copy_from_slice(&whole[stretch.whole..][..stretch.length]);
                    }
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            let kernel = stream
                .kernel(OPERATOR, "attention_split", &format!("attention_split_pack_{variant}"))
                .input("x", x, dtype)
                .output("blocks", &blocks, dtype)
                .u32(rows);
            columns.describe(kernel).launch(Grid::of([tokens, columns.ranks, 1]))
        }
    }
}

/// Writes y `[t, width]` from the first t rows of each block.
pub fn unpack(queue: &Queue, columns: Columns, blocks: View<'_>, mut y: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "attention::split::unpack";
    let (tokens, width) = check::matrix(OPERATOR, "y", y.shape())?;
    check::shape(OPERATOR, "y", y.shape(), [tokens, columns.width()])?;
    let rows = columns.block_rows(OPERATOR, blocks.shape(), tokens)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, blocks, F => {
            let (blocks, share_width) = (blocks.as_slice::<F>()?, columns.share_width());
            for_row_blocks_of(y.as_slice_mut::<F>()?, width, |first, block| {
                for (token, whole) in (first..).zip(block.chunks_exact_mut(width)) {
                    for rank in 0..columns.ranks {
                        let share = &blocks[(rank * rows + token) * share_width..][..share_width];
                        for stretch in columns.stretches(rank) {
                            let from = &share[stretch.share..][..stretch.length];
                            let to = &mut whole[stretch.whole..][..stretch.length];
                            if stretch.first {
                                to.copy_from_slice(from);
                                continue;
                            }
                            for (to, &from) in to.iter_mut().zip(from) {
                                *to += from;
                            }
                        }
                    }
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = blocks.dtype();
            let variant = stream.variant(OPERATOR, "blocks", dtype)?;
            let kernel = stream
                .kernel(OPERATOR, "attention_split", &format!("attention_split_unpack_{variant}"))
                .input("blocks", blocks, dtype)
                .output("y", &y, dtype)
                .u32(rows);
            columns.describe(kernel).launch(Grid::blocks(tokens))
        }
    }
}
