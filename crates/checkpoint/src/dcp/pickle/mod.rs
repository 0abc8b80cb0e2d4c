//! Python's pickle format, as far as checkpoints use it, read without ever running anything.
//!
//! A pickle is a program for a small stack machine whose `REDUCE` calls any importable function; opening a
//! file from elsewhere with Python's `pickle` hands it the machine. [`read`] follows the same program but only
//! builds a tree: a call becomes a node that names what would have been called, and only the names in
//! [`Global`]'s list are let through. Everything is bounded by the length of the input, so a crafted pickle
//! gives an error.
//!
//! The crates for pickles (serde-pickle and others) map to plain data and know neither named classes nor
//! persistent ids, of which these files consist; candle's reader covers weight files only and accepts any
//! name. Hence this one.
//!
//! Source of the format: CPython's `Lib/pickletools.py`.

mod call;
mod global;
mod opcode;
mod read;
#[cfg(test)]
mod tests;
mod tree;
mod value;
mod write;

pub use global::Global;
pub use read::{PickleError, PickleFault, read};
pub use value::{Made, Object, StorageReference, TensorReference, TimeDelta, Value};
pub use write::{Protocol, write};
