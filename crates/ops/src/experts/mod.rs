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

use std::ops::Range;

use crate::buffer::View;
use crate::check;
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
    /// The group's bounds among `rows` sorted rows; fails where they lie outside of them or fall.
    fn resolve(&self, operator: &'static str, rows: usize) -> Result<Group<'a>, OpError> {
        let below = |index: usize, bound: usize| match index < bound {
            true => Ok(()),
            false => Err(OpError::Index { operator, index, bound }),
        };
        let count = check::vector(operator, "offsets", self.offsets.shape())?;
        let Range { start, end } = self.experts;
        below(end, count)?;
        below(start, end + 1)?;
        let bounds = &self.offsets.as_slice::<u32>()?[start..=end];
        for pair in bounds.windows(2) {
            below(pair[0] as usize, pair[1] as usize + 1)?;
        }
        below(bounds[end - start] as usize, rows + 1)?;
        Ok(Group { bounds })
    }
}

/// A group whose bounds were checked: they rise, and end within the sorted rows.
#[derive(Clone, Copy)]
struct Group<'a> {
    bounds: &'a [u32],
}

impl Group<'_> {
    /// The number of experts.
    fn len(self) -> usize {
        self.bounds.len() - 1
    }

    /// The sorted rows of all the group's experts.
    fn rows(self) -> Range<usize> {
        self.bounds[0] as usize..self.bounds[self.len()] as usize
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
