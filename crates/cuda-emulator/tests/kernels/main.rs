//! The kernels in `kernels/` on the emulator, each against the operator on the CPU in fp64: fp32 to 1e-5, bf16 to 2e-2.
//!
//! They are compiled by nvcc, which cargo does not have: `scripts/test-cuda` compiles them and runs these tests.

#![allow(clippy::unwrap_used)]

mod attention;
mod device;
mod elementwise;
mod experts;
mod faults;
mod loss;
mod norms;
mod optimizers;
mod products;
mod rows;
mod support;
mod traffic;
