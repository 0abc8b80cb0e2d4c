//! Groups of ranks, the flat sharded unit, and the watch over both.
//!
//! A [`Unit`] is one flat buffer of parameters of which each rank owns an equal slice: fp32 masters, moments and the
//! reduced gradient. [`Units`] is what the step loop sees: weights that arrive before they are needed, gradients that
//! leave when they are complete. A group of one lends what it owns and moves nothing; the loop is the same.
//!
//! A [`Group`] is what moves them. [`Single`] is the group of one; [`threads`] are ranks in one process; `mpi` (a
//! feature) are processes, over hosts. A [`Mesh`] cuts the ranks of a run into those that share one copy of the model
//! and those that hold the same slice of it. What a group does is kept in a [`Recorder`], which a [`Watchdog`] looks
//! at: a collective that does not end is named with the ranks that did not come, and [`explain`] tells afterwards.

mod error;
mod explain;
mod flight;
mod group;
mod host;
mod mesh;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
mod presence;
mod pulse;
mod recorder;
pub mod rendezvous;
mod single;
mod slots;
pub mod threads;
mod unit;
mod units;
mod waiting;
mod watchdog;
mod wire;

pub use error::DistError;
pub use explain::{Explanation, Finding, explain};
pub use group::{Exchange, Group, Pending};
pub use mesh::{Degrees, Mesh};
pub use presence::Presence;
pub use recorder::{Call, Label, Operation, Record, Recorder, Totals};
pub use single::Single;
pub use slots::{PROCESS_SCRATCH_BYTES, Residency, SlotPlan};
pub use unit::{Moments, Unit, UnitSize, UnitState};
pub use units::{Gradient, Units, Weights};
pub use watchdog::{Alarm, Deadline, Reason, Watchdog};
pub use wire::Wire;
