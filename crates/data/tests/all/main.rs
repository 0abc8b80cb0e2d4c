//! Data sets prepared from small files: what rows come out, what is refused and how, what the cache survives.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod cache;
mod damaged;
#[cfg(feature = "delta")]
mod delta;
mod documents;
mod masks;
mod mds;
mod packing;
mod sentencepiece;
mod sources;
#[cfg(feature = "parquet")]
mod tables;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};
use tessera_data::inspect::{InspectedDocument, inspect_row};
use tessera_data::{
    DataError, DataSettings, Dataset, Packing, Stage, Summary, TargetResponses, Task, TextTokenizer, prepare,
};

use sentencepiece::{Blanks, sentencepiece};

const TOKENIZER: &str = include_str!("../fixtures/tokenizer.json");
const ROLES: &str = include_str!("../fixtures/roles.jinja");
const NO_SYSTEM: &str = include_str!("../fixtures/no_system.jinja");

/// A data set in the making, in a folder of its own.
struct Bench {
    folder: tempfile::TempDir,
    tokenizer: TextTokenizer,
    /// What is read, unless the settings name sources.
    path: PathBuf,
    settings: DataSettings,
}

impl Bench {
    fn new(task: Task, name: &str, content: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let settings = DataSettings {
            sources: Vec::new(),
            hold_out: None,
            task,
            context_length: 256,
            target_responses: TargetResponses::All,
            packing: Packing::BestFit,
            seed: 17,
            vocab_size: 300,
        };
        Self { folder, tokenizer: chatml(), path, settings }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn settings(&self) -> DataSettings {
        let mut settings = self.settings.clone();
        if settings.sources.is_empty() {
            settings.sources = vec![self.path.to_str().unwrap().into()];
        }
        settings
    }

    fn prepare(&self) -> Result<(Dataset, Summary), DataError> {
        prepare(&self.settings(), &self.tokenizer, &self.cache(), &|_| {})
    }

    /// Prepares the data and says whether that took tokenising.
    fn prepare_seen(&self) -> (Dataset, Summary, bool) {
        let tokenized = Mutex::new(false);
        let report = |progress: tessera_data::Progress| {
            assert!(progress.done <= progress.total);
            *tokenized.lock().unwrap() |= progress.stage == Stage::Tokenizing;
        };
        let (dataset, summary) = prepare(&self.settings(), &self.tokenizer, &self.cache(), &report).unwrap();
        (dataset, summary, tokenized.into_inner().unwrap())
    }

    fn error(&self) -> String {
        self.prepare().err().unwrap().to_string()
    }

    /// Every document of every row, with `[[` and `]]` around what has loss.
    fn marked(&self) -> Vec<String> {
        let (dataset, _) = self.prepare().unwrap();
        let rows = (0..dataset.rows()).map(|row| inspect_row(&dataset, &self.tokenizer, row).unwrap());
        rows.flatten().map(|document| marked(&document)).collect()
    }
}

fn marked(document: &InspectedDocument) -> String {
    let (mut text, mut inside) = (String::new(), false);
    for token in &document.tokens {
        if token.loss != inside {
            text.push_str(if token.loss { "[[" } else { "]]" });
            inside = token.loss;
        }
        text.push_str(&token.text);
    }
    if inside { text + "]]" } else { text }
}

fn tokenizer(json: &str, eos: &str, template: Option<&str>) -> TextTokenizer {
    let config = json!({"bos_token": {"content": "<|begin|>"}, "eos_token": eos});
    TextTokenizer::new(json.as_bytes(), Some(&config), template).unwrap()
}

fn chatml() -> TextTokenizer {
    tokenizer(TOKENIZER, "<|end|>", None)
}

/// The tokenizer with a post-processor that puts BOS before a text.
fn with_bos() -> String {
    let mut json: Value = serde_json::from_str(TOKENIZER).unwrap();
    let id = token_id("<|begin|>");
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [id], "tokens": ["<|begin|>"]}}
    });
    json.to_string()
}

fn token_id(token: &str) -> u32 {
    tokenizers::Tokenizer::from_bytes(TOKENIZER).unwrap().token_to_id(token).unwrap()
}

fn chat(turns: &[(&str, &str)]) -> String {
    let messages: Vec<_> =
        turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    json!({ "messages": messages }).to_string()
}

fn pair(prompt: &str, response: &str) -> String {
    json!({"prompt": prompt, "response": response}).to_string()
}

fn entry_folder(cache: &Path) -> PathBuf {
    let entries = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders.remove(0)
}
