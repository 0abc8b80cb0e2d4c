//! A training run, from the run file to the last checkpoint.
//!
//! [`spec`] is the run file as written, [`settings`] the same with every default filled in, [`plan`] adds what follows from
//! the model, the data and the machine. [`engine`] computes; [`run`] says when, and what happens between batches: `saving`,
//! `resuming`, `exporting`. Nothing here prints: whoever watches is told through [`observe`].

pub mod advice;
pub mod checkpoints;
pub mod engine;
mod error;
mod exporting;
mod first_weights;
pub mod generate;
mod needs;
pub mod observe;
pub mod plan;
mod position;
mod resuming;
pub mod run;
mod saving;
pub mod schedule;
pub mod settings;
pub mod spec;
pub mod speed;
pub mod time;

pub use error::{Fault, TrainError};
pub use exporting::export;
pub use first_weights::load_from;
pub use position::Position;
