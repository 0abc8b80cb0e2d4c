//! SHA-256 of bytes and files, as lower-case hexadecimal.

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use sha2::{Digest, Sha256};

use crate::error::{FileError, IoContext};

/// The digest of what `hasher` has seen, as lower-case hexadecimal.
pub fn sha256_hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of a file's content, read in pieces.
pub fn sha256_file(path: &Path) -> Result<String, FileError> {
    let mut file = File::open(path).context("open", path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).context("read", path)? {
            0 => return Ok(sha256_hex(hasher)),
            length => hasher.update(&piece[..length]),
        }
    }
}
