//! A workspace asked for what it has, in the form of a stand-in that listens on this machine.
#![allow(clippy::unwrap_used, missing_docs)]

mod server;
mod tables;
mod volumes;
