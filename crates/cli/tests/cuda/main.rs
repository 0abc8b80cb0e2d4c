//! The binary on GPUs: one, several, none, too small ones, and ones that fail. What is emulated is told to the emulator by
//! its own variables, so the tests of faults run on it only; `scripts/test-cuda` does so.
#![allow(clippy::unwrap_used)]

mod faults;
mod several;
#[allow(dead_code)]
#[path = "../all/support.rs"]
mod support;
