//! The engine and whole runs on GPUs, held against the CPU. `scripts/test-cuda` runs them on the emulator.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code)]
#[path = "../all/golden.rs"]
mod golden;
mod launches;
mod runs;
mod steps;
#[allow(dead_code)]
#[path = "../all/tiny.rs"]
mod tiny;
