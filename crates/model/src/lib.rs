//! Model families: what a `config.json` says, which parameters follow from it, and the stages that compute with them.
//!
//! A model is an ordered list of stages: embedding, blocks, head. Each has one unit of parameters, a forward, and a
//! backward written by hand; a block keeps its input only and can compute the rest again. The step loop decides when
//! weights arrive and gradients leave; a stage sees views.

mod balance;
mod block;
pub mod catalogue;
pub mod config;
mod factor;
mod head;
mod model;
mod names;
mod norm;
mod sequence;
mod stage;
mod table;

pub use balance::{Balance, BalanceGradient, BalanceSums};
pub use block::{Block, Visit};
pub use head::{Head, LossScale};
pub use model::{Compute, Model};
pub use names::{Names, Naming};
pub use sequence::{SequenceExchange, SequenceSplit};
pub use stage::{Context, DecodeContext, MicroBatch};
pub use table::{Initial, Parameter, Piece, Placed, Segment, UnitTable};
