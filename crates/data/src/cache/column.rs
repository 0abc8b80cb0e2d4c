//! A file of numbers: written once with digests, then mapped and checked against them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::Digest;
use tessera_files::{FileError, IoContext, MappedFile, Sha256, sha256_hex};

use crate::source::hex;

/// Bytes under one digest. Digests are taken piecewise so that threads can check a column side by side.
const PIECE: usize = 1 << 24;

/// What a column must be: its length in bytes and the SHA-256 of each 16 MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digests {
    bytes: u64,
    sha256: Vec<String>,
}

/// A mapped column.
#[derive(Debug)]
pub(crate) struct Column<T> {
    file: MappedFile,
    kind: PhantomData<T>,
}

impl<T: Pod> Column<T> {
    /// Maps a column and checks all of it.
    pub(crate) fn open(folder: &Path, name: &str, digests: &BTreeMap<String, Digests>) -> io::Result<Self> {
        let file = MappedFile::open(&folder.join(name)).map_err(|error| error.source)?;
        let found: Vec<String> = file.par_chunks(PIECE).map(hex).collect();
        let whole =
            digests.get(name).is_some_and(|told| told.bytes == file.len() as u64 && told.sha256 == found);
        let numbers = bytemuck::try_cast_slice::<u8, T>(&file).is_ok();
        if whole && numbers {
            Ok(Self { file, kind: PhantomData })
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

impl<T: Pod> Deref for Column<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // `open` has made sure that the cast works.
        bytemuck::try_cast_slice(&self.file).unwrap_or_default()
    }
}

/// A column being written.
pub(crate) struct ColumnWriter {
    file: BufWriter<File>,
    path: PathBuf,
    digests: Digests,
    hasher: Sha256,
    hashed: usize,
}

impl ColumnWriter {
    pub(crate) fn create(folder: &Path, name: &str) -> Result<Self, FileError> {
        let path = folder.join(name);
        let file = BufWriter::with_capacity(1 << 20, File::create(&path).context("create", &path)?);
        Ok(Self {
            file,
            path,
            digests: Digests { bytes: 0, sha256: Vec::new() },
            hasher: Sha256::new(),
            hashed: 0,
        })
    }

    pub(crate) fn write<T: Pod>(&mut self, numbers: &[T]) -> Result<(), FileError> {
        let mut bytes: &[u8] = bytemuck::cast_slice(numbers);
        self.file.write_all(bytes).context("write", &self.path)?;
        self.digests.bytes += bytes.len() as u64;
        while let Some((now, later)) = bytes.split_at_checked(PIECE - self.hashed) {
            self.hasher.update(now);
            self.end_piece();
            bytes = later;
        }
        self.hasher.update(bytes);
        self.hashed += bytes.len();
        Ok(())
    }

    fn end_piece(&mut self) {
        self.digests.sha256.push(sha256_hex(std::mem::replace(&mut self.hasher, Sha256::new())));
        self.hashed = 0;
    }

    pub(crate) fn finish(mut self) -> Result<Digests, FileError> {
        self.file.flush().context("write", &self.path)?;
        if self.hashed > 0 {
            self.end_piece();
        }
        Ok(self.digests)
    }
}

/// Writes a column at once.
pub(crate) fn write_column<T: Pod>(folder: &Path, name: &str, numbers: &[T]) -> Result<Digests, FileError> {
    let mut writer = ColumnWriter::create(folder, name)?;
    writer.write(numbers)?;
    writer.finish()
}
