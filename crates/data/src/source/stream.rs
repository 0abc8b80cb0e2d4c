//! A file as a stream of bytes: unpacked if it is packed, without a byte order mark, counted as it is read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use tessera_files::{FileError, IoContext};

use super::files::Compression;
use crate::error::DataError;

const BUFFER: usize = 1 << 18;
/// What some editors put at the start of a text.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// A file being read.
pub(super) struct Stream {
    inner: Box<dyn BufRead + Send>,
    path: PathBuf,
    read: Arc<AtomicU64>,
    /// Bytes of a byte order mark that were left out.
    pub(super) skipped: usize,
}

/// Counts what is read through it.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

impl Stream {
    /// Opens a file for the text that is in it.
    pub(super) fn open(path: &Path, compression: Compression) -> Result<Self, DataError> {
        let mut stream = Self::unpacked(path, compression)?;
        stream.skip_mark()?;
        Ok(stream)
    }

    /// Opens a file for the bytes that are in it.
    pub(super) fn unpacked(path: &Path, compression: Compression) -> Result<Self, FileError> {
        let Self { inner: file, read, .. } = Self::raw(path)?;
        let inner: Box<dyn BufRead + Send> = match compression {
            Compression::None => file,
            Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file))),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(file).context("unpack", path)?;
                Box::new(BufReader::with_capacity(BUFFER, decoder))
            }
        };
        Ok(Self { inner, path: path.to_owned(), read, skipped: 0 })
    }

    /// Opens a file for its bytes as they lie on disk.
    pub(super) fn raw(path: &Path) -> Result<Self, FileError> {
        let read = Arc::new(AtomicU64::new(0));
        let file = Counted { file: File::open(path).context("open", path)?, read: read.clone() };
        let inner = Box::new(BufReader::with_capacity(BUFFER, file));
        Ok(Self { inner, path: path.to_owned(), read, skipped: 0 })
    }

    fn skip_mark(&mut self) -> Result<(), DataError> {
        let starts = self.inner.fill_buf().map(|start| start.starts_with(MARK));
        if starts.map_err(|error| self.error("its beginning", error))? {
            self.inner.consume(MARK.len());
            self.skipped = MARK.len();
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file, as it lies on disk, that were read.
    pub(super) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Appends up to `most` bytes; fewer come at the end only. `place` says after what reading failed if it does.
    pub(super) fn read_onto(
        &mut self,
        buffer: &mut Vec<u8>,
        most: usize,
        place: impl FnOnce(&[u8]) -> String,
    ) -> Result<usize, DataError> {
        let read = (&mut self.inner).take(most as u64).read_to_end(buffer);
        read.map_err(|error| self.error(&place(buffer), error))
    }

    /// The next `count` pieces of `size` bytes, or what is left of the file.
    pub(super) fn pieces(&mut self, size: usize, count: usize) -> Result<Vec<Vec<u8>>, FileError> {
        let mut pieces = Vec::new();
        while pieces.len() < count {
            let mut piece = Vec::with_capacity(size);
            (&mut self.inner).take(size as u64).read_to_end(&mut piece).context("read", &self.path)?;
            if piece.is_empty() {
                break;
            }
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// An error of the operating system is one of the machine; all others say that the content is damaged.
    pub(super) fn error(&self, place: &str, error: io::Error) -> DataError {
        if error.raw_os_error().is_some() {
            return FileError { action: "read", path: self.path.clone(), source: error }.into();
        }
        DataError::Damaged { path: self.path.clone(), place: place.to_owned(), problem: error.to_string() }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}
