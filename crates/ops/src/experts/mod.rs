//! The experts of a mixture, without a copy of any weight and without dropping a token.
//!
//! The router gives each token k experts. A *slot* is such a (token, choice) pair, slot = token·k + choice. [`sort()`]
//! orders the slots by expert, so that each expert's tokens are neighbours: expert e has the sorted rows
//! offsets\[e\]..offsets\[e + 1\]. [`gather`] copies the tokens into that order, [`linear`] multiplies each expert's rows by
//! its own weight where it lies, [`activation`] folds in the slot's routing weight, and [`combine`] adds the rows back
//! to their tokens. So a step costs what the chosen experts cost, and moves tokens, never weights.
//!
//! A layer's experts come in groups, whose weights are gathered one group after the other: everything but the sort
//! takes an [`ExpertRows`] and reads and writes that group's rows alone. `combine` adds, so the groups need not know of
//! one another. Gather and combine are each other's backward.
//!
//! On a GPU the offsets stay there: launches are as large as any choice of the tokens could need. What the sort made is not
//! checked again. Rows and weights are fp32 or bf16; routing weights, their gradients and those of the experts' weights are
//! fp32 with either.

use std::ops::Range;

use crate::buffer::View;
use crate::check;
use crate::cuda::Kernel;
use crate::dtype::DType;
use crate::error::OpError;

pub mod activation;
pub mod linear;
mod rows;
mod sort;

pub use rows::{combine, gather};
pub use sort::sort;

/// The sorted rows of a group of experts, offsets\[experts.start\]..offsets\[experts.end\].
#[derive(Clone)]
pub struct ExpertRows<'a> {
    /// Where each expert's sorted rows begin, `[E + 1]` u32, as [`sort()`] leaves them.
    pub offsets: View<'a>,
    /// The experts of the group.
    pub experts: Range<usize>,
}

impl<'a> ExpertRows<'a> {
    /// The number of experts in the group; fails where there are no offsets for them.
    fn len(&self, operator: &'static str) -> Result<usize, OpError> {
        let count = check::vector(operator, "offsets", self.offsets.shape())?;
        let Range { start, end } = self.experts;
        check::index(operator, end, count)?;
        check::index(operator, start, end + 1)?;
        Ok(end - start)
    }

    /// The group's offsets, one more than it has experts.
    fn own_offsets(&self, operator: &'static str) -> Result<View<'a>, OpError> {
        self.offsets.range(self.experts.start, self.len(operator)? + 1)
    }

    /// The group's bounds among `rows` sorted rows; fails where they lie outside of them or fall, or not on the host.
    fn resolve(&self, operator: &'static str, rows: usize) -> Result<Group<'a>, OpError> {
        let bounds = self.own_offsets(operator)?.as_slice::<u32>()?;
        for pair in bounds.windows(2) {
            check::index(operator, pair[0] as usize, pair[1] as usize + 1)?;
        }
        check::index(operator, bounds[bounds.len() - 1] as usize, rows + 1)?;
        Ok(Group { bounds })
    }

    /// Gives a kernel what it needs to find the group's rows.
    fn describe<'k>(&self, kernel: Kernel<'k>) -> Kernel<'k> {
        let Range { start, end } = self.experts;
        kernel.input("offsets", self.offsets, DType::U32).u32(start).u32(end)
    }
}

/// A group whose bounds were checked: they rise, and end within the sorted rows.
#[derive(Clone, Copy)]
struct Group<'a> {
    bounds: &'a [u32],
}

impl Group<'_> {
    /// The sorted rows of all the group's experts.
    fn rows(self) -> Range<usize> {
        self.bounds[0] as usize..self.bounds[self.bounds.len() - 1] as usize
    }

    /// The sorted rows of each expert.
    fn experts(self) -> impl Iterator<Item = Range<usize>> {
        self.bounds.windows(2).map(|pair| pair[0] as usize..pair[1] as usize)
    }

    /// The elements of the group's rows in a matrix of rows of `width`.
    fn elements(self, width: usize) -> Range<usize> {
        let rows = self.rows();
        rows.start * width..rows.end * width
    }
}
