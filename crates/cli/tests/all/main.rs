//! The built binary as a person or a script uses it: runs of a tiny model from their run file to their folder, what is
//! refused and with which words and exit codes, and what survives signals and damage.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod checkpoints;
mod damage;
mod full_disk;
mod hub_data;
mod kills;
mod launching;
mod models;
mod planning;
mod ranks;
mod registering;
mod running;
mod runs;
mod showing;
mod signals;
#[cfg(feature = "stores")]
mod stored_runs;
#[cfg(all(feature = "stores", feature = "delta"))]
mod stored_tables;
mod support;
mod sweep;
#[cfg(feature = "delta")]
mod tables;
mod tracking;
mod volumes;
