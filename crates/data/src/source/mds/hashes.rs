//! The digests that an index gives of its shards.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::path::Path;

use sha1::Sha1;
use sha2::{Sha256, Sha512};
use tessera_files::Digest;
use twox_hash::XxHash64;

use super::damaged;
use crate::error::DataError;

/// Hashers for those of a file's digests that can be checked here. Of other algorithms nothing is known.
pub(crate) struct Hashes<'shard> {
    hashers: Vec<(&'shard str, Hasher, &'shard str)>,
}

enum Hasher {
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
    Xxh64(XxHash64),
}

impl<'shard> Hashes<'shard> {
    /// For digests by the names of their algorithms.
    pub(super) fn new(given: &'shard BTreeMap<String, String>) -> Self {
        let hashers = given.iter().filter_map(|(algorithm, digest)| {
            Some((algorithm.as_str(), Hasher::new(algorithm)?, digest.as_str()))
        });
        Self { hashers: hashers.collect() }
    }

    /// Takes the next bytes of the file.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for (_, hasher, _) in &mut self.hashers {
            match hasher {
                Hasher::Sha1(hasher) => hasher.update(bytes),
                Hasher::Sha256(hasher) => hasher.update(bytes),
                Hasher::Sha512(hasher) => hasher.update(bytes),
                Hasher::Xxh64(hasher) => hasher.write(bytes),
            }
        }
    }

    /// Holds the digests against all bytes of the file at `path`, which were taken.
    pub(crate) fn check(self, path: &Path) -> Result<(), DataError> {
        for (algorithm, hasher, expected) in self.hashers {
            let found = hasher.finish();
            if !found.eq_ignore_ascii_case(expected) {
                let problem = format!("its {algorithm} is {found}, but index.json says {expected}");
                return Err(damaged(path, "its beginning", problem));
            }
        }
        Ok(())
    }
}

impl Hasher {
    fn new(algorithm: &str) -> Option<Self> {
        Some(match algorithm {
            "sha1" => Self::Sha1(Sha1::new()),
            "sha256" => Self::Sha256(Sha256::new()),
            "sha512" => Self::Sha512(Sha512::new()),
            "xxh64" => Self::Xxh64(XxHash64::with_seed(0)),
            _ => return None,
        })
    }

    /// The digest in hexadecimal.
    fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha1(hasher) => hex(&hasher.finalize()),
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Sha512(hasher) => hex(&hasher.finalize()),
            Self::Xxh64(hasher) => hex(&hasher.finish().to_be_bytes()),
        }
    }
}
