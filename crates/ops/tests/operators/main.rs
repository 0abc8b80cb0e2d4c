//! The operators, each against finite differences, against candle's autograd or a closed form, and against misuse.
//!
//! Arithmetic that trains in fp32 is written once for both precisions, so the finite differences run in fp64 on the
//! same code.

#![allow(clippy::unwrap_used)]

mod adamw;
mod arguments;
mod attention;
mod bias;
mod clamp;
mod cross_entropy;
mod decode;
mod embedding;
mod experts;
mod fill;
mod layer_norm;
mod linear;
mod load_balance;
mod non_finite;
mod oracle;
mod random;
mod rms_norm;
mod rope;
mod router;
mod rows;
mod split;
mod squared_norm;
mod support;
mod swiglu;
mod threads;
