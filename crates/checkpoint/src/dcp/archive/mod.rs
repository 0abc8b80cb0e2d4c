//! The zip archives that `torch.save` writes: a pickle, the storages it refers to, and a few marks. One lies in a
//! shard for every chunk and object; a monolithic checkpoint is a single one.
//!
//! Records are stored, not compressed, so a storage is a range of the file, which is mapped and not copied. The
//! `zip` crate reads and writes the containers.

mod read;
mod write;

pub(crate) use read::{Archive, Record, elements_range};
pub(crate) use write::{Serial, write_object, write_tensor};

/// The folder that `torch.save` puts the records of an unnamed archive into.
const PREFIX: &str = "archive";
/// The record that tells an archive from others.
const SERIALIZATION_ID: &str = ".data/serialization_id";
