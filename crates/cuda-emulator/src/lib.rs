//! Test machinery: CUDA without a GPU. PTX, as nvcc makes it, is executed on the CPU and watched while it runs.
//!
//! The crate is two things over one engine. As a Rust library it runs kernels for tests: [`Emulator::new`],
//! [`Emulator::load_module`], [`Module::function`], [`Emulator::launch`], and a [`Report`] of what the launch did. As
//! `libtessera_cuda_emulator.so` it has the C functions of libcuda, libcublas, libcurand and libnccl: linked under
//! their sonames, it lets the unchanged CUDA build of a program run where there is no driver.
//!
//! The way of a kernel: [`ptx`] parses the text, [`program`] decodes one kernel, [`machine`] executes it.
//!
//! What it shows: that kernels compute what they should, for any schedule of blocks and warps that the seed draws;
//! that they stay inside their allocations, aligned, and read nothing that was not written; that barriers, shuffles
//! and asynchronous copies are used as CUDA demands; that streams are ordered by events where they must be. It counts
//! instructions and bytes.
//!
//! What it does not show: anything about ptxas and the machine code it makes, about time, the last bits of
//! `approx` instructions and of cuBLAS, that products of `wgmma` are waited for, or other hardware newer than sm_80 (TMA,
//! clusters). A result from here is called emulated, never run on a GPU.

mod abi;
mod blas;
mod driver;
mod emulator;
mod error;
mod machine;
mod number;
mod program;
mod ptx;
mod random;

pub use emulator::{Argument, Checks, DevicePointer, Emulator, Function, Module, Options};
pub use error::{EmulatorError, Place};
pub use machine::{Hazard, HazardKind, Report};
pub use random::Random;
