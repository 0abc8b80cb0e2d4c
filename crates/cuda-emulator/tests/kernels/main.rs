//! The kernels in `kernels/` on the emulator: the bytes that they move, how they feed tensor cores, and faults planted in
//! copies. What they compute is tested with the operators that launch them, by `crates/ops/tests/cuda`.
//!
//! They are compiled by nvcc, which cargo does not have: `scripts/test-cuda` compiles them and runs these tests.

#![allow(clippy::unwrap_used)]

mod attention;
mod device;
mod experts;
mod faults;
mod products;
mod support;
mod traffic;
mod trials;
