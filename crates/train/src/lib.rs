//! A training run, from the run file to the last checkpoint.
//!
//! [`spec`] is the run file as written; [`plan`] fills in every default and adds what follows from the model, the data and the
//! machine. [`engine`] computes; [`run`] says when, and what happens between batches. [`state`] is what lasts: where a run
//! starts from, its checkpoints, its exports. [`sweep`] makes several runs of one file. [`mod@generate`] asks a model outside a run. [`elsewhere`] is what a run has in object stores. Nothing here prints: whoever watches
//! is told through [`observe`].

pub mod doctor;
pub mod elsewhere;
pub mod engine;
mod error;
pub mod generate;
mod gpus;
pub mod launch;
pub mod observe;
pub mod plan;
pub mod run;
pub mod schedule;
pub mod spec;
pub mod speed;
pub mod state;
pub mod sweep;
pub mod time;

pub use error::{Fault, TrainError};
