//! Buffers, views, queues, and one operator a file: its formula, shapes and dtypes at the top, the forward beside
//! the backward written by hand. Nothing here knows a model.
//!
//! Operators take views and a [`Queue`], allocate no device memory, and read no device value on the host: what one
//! operator computes for another (a loss sum, a squared norm, a clip factor) is a view too. On the CPU a queue runs
//! what is issued at once; a CUDA stream will not, and the operators' signatures are made for both.
//!
//! Every sum has one order, fixed by the shapes alone: results do not depend on the number of threads.

pub mod adamw;
pub mod attention;
pub mod bias;
mod buffer;
pub mod cast;
mod check;
pub mod clamp;
pub mod cross_entropy;
pub mod cuda;
mod dtype;
pub mod embedding;
mod error;
pub mod experts;
pub mod fill;
mod gemm;
pub mod layer_norm;
pub mod linear;
pub mod lion;
pub mod load_balance;
mod memory;
mod parallel;
pub mod peak;
mod queue;
pub mod random;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod rows;
mod simd;
pub mod squared_norm;
pub mod step;
pub mod swiglu;
pub mod transfer;

pub use buffer::{Arena, Buffer, Shape, View, ViewMut};
pub use dtype::{DType, Element, Float};
pub use error::OpError;
pub use gemm::Factors;
pub use queue::{Device, Event, Home, Queue};
