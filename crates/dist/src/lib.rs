//! Groups of ranks, and the flat sharded unit.
//!
//! A [`Unit`] is one flat buffer of parameters of which each rank owns an equal slice: fp32 masters, moments and the
//! reduced gradient. [`Units`] is what the step loop sees: weights that arrive before they are needed, gradients that
//! leave when they are complete. A group of one lends what it owns and moves nothing; the loop is the same.

mod error;
mod group;
mod unit;
mod units;

pub use error::DistError;
pub use group::{Group, Handle, Single};
pub use unit::{Unit, UnitSize, UnitState};
pub use units::{Gradient, Units, Weights};
