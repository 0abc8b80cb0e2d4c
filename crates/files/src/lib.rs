//! Bytes on disk, for every crate that reads or writes them: files and folders that appear whole or not at
//! all, memory-mapped reads, content hashes, and a lock that the death of its holder frees.
//!
//! A crash can come between any two system calls. What must survive it is therefore written under a name
//! that begins with a dot, synced, and renamed: a reader sees the old thing or the new thing, never half.

mod atomic;
mod error;
mod hash;
mod lock;
mod map;

pub use atomic::{AtomicFile, AtomicFolder, replace_symlink, sync_folder, write_atomic};
pub use error::{FileError, IoContext};
pub use hash::{Digest, Sha256, sha256_file, sha256_hex};
pub use lock::FolderLock;
pub use map::MappedFile;
