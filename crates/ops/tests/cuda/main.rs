//! The operators on a GPU, each against the same operator on the CPU in fp64: fp32 to 1e-5, bf16 to 2e-2.
//!
//! `scripts/test-cuda` runs them on the emulator. Where a GPU is, the same tests run on it:
//! `cargo test -p tessera-ops --features cuda --test cuda`.

#![allow(clippy::unwrap_used)]

mod attention;
mod decode;
mod elementwise;
mod expert_products;
mod experts;
mod load_balance;
mod loss;
mod norms;
mod optimizers;
mod order;
mod products;
mod router;
mod rows;
mod split;
mod support;
