//! Executes decoded kernels: blocks one after another, a block's warps in turns, a warp's lanes in lockstep.
//!
//! A warp that diverges is several groups of lanes; the group that is furthest behind runs, so that groups meet again
//! where the code does. What needs several lanes (`shfl`, `mma`, `bar`) waits until they have come, as the member mask
//! says: with a mask that is right, results are those of any schedule; with one that is wrong, the launch fails.

mod access;
mod atomic;
mod block;
mod byte_set;
mod copies;
mod exchange;
mod launch;
mod matrix;
pub(crate) mod memory;
mod print;
mod race;
pub(crate) mod registers;
mod report;
mod shared;
mod traffic;
mod warp;
mod warpgroup;

pub(crate) use launch::{DEFAULT_SHARED, Launch, check_extents, run};
pub use report::{Hazard, HazardKind, Report};

#[cfg(test)]
mod tests;
