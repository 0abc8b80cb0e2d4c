//! The way to a GPU: its memory, its streams, the kernels of `kernels/`, and cuBLAS.
//!
//! The libraries of CUDA are loaded when the first GPU is opened, so one program serves machines with and without one.
//! The kernels are compiled into the program by `build.rs` where the feature `cuda` is on, which needs nvcc; what is
//! here compiles anywhere. candle's own CUDA backend is not used: it would have to be linked, so that the program would
//! not start where no driver is, and brings 700 kernels of which training needs none.
//!
//! Operators issue work with [`Stream::kernel`] and [`Stream::product`]; both trust the shapes that the operator has
//! checked. All `unsafe` of the CUDA path of this crate is here.

mod blas;
mod gpu;
mod kernels;
mod launch;
mod memory;
mod rows;
mod stream;

pub(crate) use blas::{Operand, Product};
pub use gpu::{Found, Gpu, count, driver_version, find, name, total_memory};
pub use kernels::toolkit as toolkit_version;
pub(crate) use launch::{Grid, Kernel, is_aligned};
pub(crate) use memory::{DeviceMemory, MappedMemory, PinnedMemory};
pub(crate) use rows::{RowBlocks, column_grid};
pub use stream::{SCRATCH_BYTES, Stream, StreamEvent, WORKSPACE_BYTES};
