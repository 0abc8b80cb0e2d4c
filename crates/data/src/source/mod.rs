//! Reading the data: lines of a `.jsonl` file, or `.txt` files, memory-mapped and handed on in pieces of bounded
//! size, so that a data set may be larger than memory. A byte order mark at the start of a file, CRLF line ends
//! and blank lines are accepted.

mod jsonl;
mod text;

use std::path::Path;

use rayon::prelude::*;
use sha2::Digest;
use tessera_files::{MappedFile, Sha256, sha256_hex};

pub(crate) use jsonl::{JsonLines, Line};
pub(crate) use text::{Document, TextFiles};

use crate::error::DataError;
use crate::settings::Task;

/// Bytes of the source that are worked on at once, for each thread.
const BYTES_PER_THREAD: usize = 1 << 20;

/// How much of the source one parallel step takes. It bounds memory; results do not depend on it.
pub(crate) fn bytes_at_once() -> usize {
    BYTES_PER_THREAD * rayon::current_num_threads().max(4)
}

/// The data set's files, opened.
pub(crate) enum Source {
    /// Rows of JSON.
    JsonLines(JsonLines),
    /// Text files, each a document.
    Text(TextFiles),
}

impl Source {
    /// Opens what `task` reads at `path`.
    pub(crate) fn open(path: &Path, task: Task) -> Result<Self, DataError> {
        let expected = expected(task);
        if !path.exists() {
            return Err(DataError::NotFound { path: path.to_owned(), task, expected });
        }
        let wrong = |found: String| DataError::WrongKind { path: path.to_owned(), found, task, expected };
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match task {
            Task::ContinuedPretrain if path.is_dir() => TextFiles::open_folder(path).map(Self::Text),
            Task::ContinuedPretrain if extension == "txt" => Ok(Self::Text(TextFiles::single(path)?)),
            _ if path.is_dir() => Err(wrong("a folder".to_owned())),
            Task::ContinuedPretrain => Err(wrong(format!("a file of type {extension:?}"))),
            _ if extension == "jsonl" => JsonLines::open(path, task).map(Self::JsonLines),
            _ => Err(wrong(format!("a file of type {extension:?}"))),
        }
    }

    /// A digest of the content: equal for equal content, whatever the path, file times or number of threads.
    pub(crate) fn content_digest(&self) -> Result<String, DataError> {
        match self {
            Self::JsonLines(lines) => Ok(digest(lines.bytes())),
            Self::Text(files) => files.content_digest(),
        }
    }

    /// Bytes of all files.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::JsonLines(lines) => lines.bytes().len() as u64,
            Self::Text(files) => files.size(),
        }
    }
}

/// What a task reads, for error messages.
pub(crate) fn expected(task: Task) -> &'static str {
    match task {
        Task::ChatCompletion => "a .jsonl file, each line {\"messages\": [{\"role\": …, \"content\": …}, …]}",
        Task::InstructionFinetune => "a .jsonl file, each line {\"prompt\": …, \"response\": …}",
        Task::ContinuedPretrain => "a .txt file or a folder with .txt files in it",
    }
}

/// SHA-256 of the digests of 16 MiB pieces, which threads take side by side.
fn digest(bytes: &[u8]) -> String {
    let pieces: Vec<String> = bytes.par_chunks(1 << 24).map(hex).collect();
    hex(format!("{} {}", bytes.len(), pieces.join(" ")).as_bytes())
}

/// The SHA-256 of `bytes` in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    sha256_hex(Sha256::new_with_prefix(bytes))
}

/// The mapped bytes without a byte order mark, and how many bytes that left out.
fn without_mark(file: &MappedFile) -> (&[u8], usize) {
    match file.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) => (rest, 3),
        None => (file, 0),
    }
}

/// Says which byte of `bytes` is no UTF-8. `offset` is where `bytes` begin in their file.
pub(crate) fn utf8(bytes: &[u8], offset: usize) -> Result<&str, (usize, String)> {
    std::str::from_utf8(bytes).map_err(|error| {
        let place = error.valid_up_to();
        let byte = bytes.get(place).copied().unwrap_or_default();
        let message = format!(
            "not UTF-8: byte {byte:#04x} at byte offset {} of the file; save the file as UTF-8",
            offset + place
        );
        (place, message)
    })
}
