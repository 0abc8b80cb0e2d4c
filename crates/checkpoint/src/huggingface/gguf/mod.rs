//! A llama-architecture `.gguf` file, seen as a Hugging Face folder: its `config.json`, its tokenizer and its weights.
//!
//! The container is read by candle, whose limits keep a damaged file from claiming more memory than it has bytes. The
//! rest is the inverse of llama.cpp's `convert_hf_to_gguf.py`: names, the order of the rows of q and k, and a
//! tokenizer that is stored as lists there and as a `tokenizer.json` here.

mod config;
mod tokenizer;
mod weights;

use std::collections::HashMap;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::Value as Json;
use tessera_files::MappedFile;

pub use tokenizer::GgufTokenizer;
pub use weights::GgufWeights;

use super::HuggingFaceError;

/// An opened `.gguf` file whose header has been read and checked.
#[derive(Debug)]
pub struct GgufFile {
    map: MappedFile,
    content: Content,
    fields: Fields,
}

impl GgufFile {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// If the file is no GGUF file, is damaged or truncated, or is of another architecture than `llama`.
    pub fn open(path: &Path) -> Result<Self, HuggingFaceError> {
        let map = MappedFile::open(path)?;
        let mut content = Content::read(&mut CheckedReader(Cursor::new(&map[..]))).map_err(|error| {
            HuggingFaceError::damaged(path, format!("not a readable GGUF file ({error}); get it again"))
        })?;
        let fields = Fields { path: path.to_owned(), values: std::mem::take(&mut content.metadata) };
        let file = Self { map, content, fields };
        let architecture = file.fields.required_text("general.architecture")?;
        if architecture != "llama" {
            let problem = format!(
                "its architecture is {architecture:?}; only \"llama\" is read, use the model's safetensors \
                 folder"
            );
            return Err(HuggingFaceError::unsupported(path, problem));
        }
        Ok(file)
    }

    /// The `config.json` that the file's model has on the hub.
    ///
    /// # Errors
    /// If a key is missing, or the model has a part that a dense Llama has not.
    pub fn config(&self) -> Result<Json, HuggingFaceError> {
        config::config(self)
    }

    /// The `generation_config.json` that goes with it.
    ///
    /// # Errors
    /// If a token id is not a number.
    pub fn generation_config(&self) -> Result<Json, HuggingFaceError> {
        config::generation_config(&self.fields)
    }

    /// The tokenizer, as the files that Hugging Face's libraries read.
    ///
    /// # Errors
    /// If there is none, it is damaged, or its kind or pre-tokenizer is not known.
    pub fn tokenizer(&self) -> Result<GgufTokenizer, HuggingFaceError> {
        tokenizer::tokenizer(&self.fields)
    }

    /// The weights, under their Hugging Face names.
    ///
    /// # Errors
    /// If a tensor is of an unknown name, passes the end of the file, or cannot be dequantised.
    pub fn into_weights(self) -> Result<GgufWeights, HuggingFaceError> {
        GgufWeights::new(self)
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.fields.path
    }
}

/// The file as candle reads it, with one check that candle lacks: it divides by `general.alignment` without looking.
/// candle reads a key, its type and its value with one call each, so a zero is seen before it is used.
struct CheckedReader<'a>(Cursor<&'a [u8]>);

impl Read for CheckedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read(buffer)?;
        if buffer.starts_with(b"general.alignment") {
            let start =
                usize::try_from(self.0.position()).unwrap_or(usize::MAX).saturating_add(size_of::<u32>());
            // The value is little-endian: a first byte of zero leaves zero and multiples of 256, which no file uses.
            if self.0.get_ref().get(start) == Some(&0) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "general.alignment is 0 or a multiple of 256",
                ));
            }
        }
        Ok(length)
    }
}

impl Seek for CheckedReader<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.0.seek(position)
    }
}

/// The key-value pairs of a file, with errors that name the file and the key.
#[derive(Debug)]
struct Fields {
    path: PathBuf,
    values: HashMap<String, Value>,
}

impl Fields {
    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    fn wrong(&self, key: &str, expected: &str) -> HuggingFaceError {
        HuggingFaceError::damaged(&self.path, format!("its key {key} is missing or is not {expected}"))
    }

    fn count(&self, key: &str) -> Result<Option<usize>, HuggingFaceError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::I32(number) => u64::try_from(*number).ok(),
            Value::I64(number) => u64::try_from(*number).ok(),
            other => other.to_u64().ok(),
        };
        number
            .and_then(|number| usize::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a count"))
    }

    fn required_count(&self, key: &str) -> Result<usize, HuggingFaceError> {
        self.count(key)?.ok_or_else(|| self.wrong(key, "a count"))
    }

    /// A float, as the decimal number it was written from: 1e-5 and not 9.999999747378752e-06.
    fn number(&self, key: &str) -> Result<Option<f64>, HuggingFaceError> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::F32(number)) => number.to_string().parse().ok(),
            Some(Value::F64(number)) => Some(*number),
            Some(_) => None,
        };
        number
            .filter(|number| f64::is_finite(*number))
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a finite float"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, HuggingFaceError> {
        self.get(key).map(|value| value.to_bool().map_err(|_| self.wrong(key, "a boolean"))).transpose()
    }

    fn text(&self, key: &str) -> Result<Option<&str>, HuggingFaceError> {
        let text =
            |value| Value::to_string(value).map(String::as_str).map_err(|_| self.wrong(key, "a string"));
        self.get(key).map(text).transpose()
    }

    fn required_text(&self, key: &str) -> Result<&str, HuggingFaceError> {
        self.text(key)?.ok_or_else(|| self.wrong(key, "a string"))
    }

    /// An array whose elements `convert` accepts.
    fn list<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, HuggingFaceError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = value.to_vec().ok().and_then(|items| items.iter().map(convert).collect());
        items.map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, HuggingFaceError> {
        self.list(key, "a list of strings", |value| value.to_string().ok().map(String::as_str))
    }
}
