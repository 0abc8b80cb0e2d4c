//! A model to start from, wherever it lies: what it is (`config.json`), its tokenizer and template, and its weights,
//! which are fetched and mapped only when they are asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;
use sha2::Digest;
use tessera_files::{IoContext, Sha256, sha256_hex};

use super::HuggingFaceError;
use super::gguf::{GgufFile, GgufTokenizer};
use super::hub::{HubOptions, HubRepository, RepositoryKind};
use super::safetensors::{INDEX_FILE, SINGLE_FILE, SafetensorsSource, file_names, no_weights, read_index};
use crate::WeightSource;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";

/// What goes into an export unchanged: all that Hugging Face's tokenizers read, and the generation configuration.
const SIDE_FILES: [&str; 10] = [
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TEMPLATE,
    TEMPLATE_JSON,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// Where a model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelLocation {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A `.gguf` file.
    Gguf(PathBuf),
    /// A repository on the hub.
    Hub {
        /// `entity/name`.
        id: String,
        /// A branch, tag or commit; `None` is the main branch.
        revision: Option<String>,
    },
}

impl ModelLocation {
    /// Reads what a user wrote: an existing folder or `.gguf` file, else a hub id `entity/name[@revision]`.
    ///
    /// # Errors
    /// If it is none of these.
    pub fn parse(text: &str) -> Result<Self, HuggingFaceError> {
        let path = Path::new(text);
        let wrong = |problem: &str| {
            Err(HuggingFaceError::Location { text: text.to_owned(), problem: problem.to_owned() })
        };
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if path.exists() {
            return if gguf {
                Ok(Self::Gguf(path.to_owned()))
            } else {
                wrong("is a file, but not a .gguf file; give the model's folder")
            };
        }
        if gguf {
            return wrong("there is no such file");
        }
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision.to_owned())),
            None => (text, None),
        };
        if !is_hub_id(id) || revision.as_deref() == Some("") {
            return wrong(
                "there is no such path, and it is not a hub id, which has the form entity/name or \
                entity/name@revision",
            );
        }
        Ok(Self::Hub { id: id.to_owned(), revision })
    }
}

/// `entity/name`, of letters, digits and `-_.`, neither part beginning with a dot.
pub(super) fn is_hub_id(text: &str) -> bool {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed);
    text.split_once('/').is_some_and(|(entity, name)| part(entity) && part(name))
}

/// Where the weights are to be found when they are wanted.
#[derive(Debug)]
enum Weights {
    Folder(PathBuf),
    Gguf(PathBuf),
    Hub(Box<HubRepository>),
}

/// A model to start from.
#[derive(Debug)]
pub struct ModelSource {
    /// `config.json`, untouched.
    pub config: Json,
    /// `generation_config.json`, if there is one.
    pub generation_config: Option<Json>,
    /// `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// `tokenizer_config.json`, if there is one.
    pub tokenizer_config: Option<Json>,
    /// The chat template, if the model has one.
    pub chat_template: Option<String>,
    /// The files that an export takes over, by name.
    pub files: Vec<(String, Vec<u8>)>,
    /// SHA-256 of the configuration and `files`: models of one identity tokenise and are shaped alike. Weights do not
    /// count.
    pub identity: String,
    weights: Weights,
}

/// The files of a model that are not weights, from whatever place.
struct Parts {
    config: Json,
    files: Vec<(String, Vec<u8>)>,
}

impl ModelSource {
    /// Reads everything but the weights. From the hub only these files are fetched.
    ///
    /// # Errors
    /// If there is no configuration or tokenizer, a file is damaged, or the hub refuses.
    pub fn open(location: &ModelLocation, hub: &HubOptions) -> Result<Self, HuggingFaceError> {
        match location {
            ModelLocation::Folder(folder) => {
                Self::new(Parts::from_folder(folder)?, folder, Weights::Folder(folder.clone()))
            }
            ModelLocation::Gguf(path) => {
                Self::new(Parts::from_gguf(&GgufFile::open(path)?)?, path, Weights::Gguf(path.clone()))
            }
            ModelLocation::Hub { id, revision } => {
                let repository = HubRepository::open(RepositoryKind::Model, id, revision.as_deref(), hub)?;
                let there = repository.file_names()?;
                for name in
                    [CONFIG].iter().chain(&SIDE_FILES).filter(|name| there.iter().any(|file| file == *name))
                {
                    repository.fetch(name)?;
                }
                let folder = repository.snapshot();
                Self::new(Parts::from_folder(&folder)?, &folder, Weights::Hub(Box::new(repository)))
            }
        }
    }

    /// The commit that it is of, where it comes from the hub.
    pub fn commit(&self) -> Option<&str> {
        match &self.weights {
            Weights::Hub(repository) => Some(repository.commit()),
            Weights::Folder(_) | Weights::Gguf(_) => None,
        }
    }

    fn new(parts: Parts, place: &Path, weights: Weights) -> Result<Self, HuggingFaceError> {
        let Parts { config, files } = parts;
        let file =
            |name: &str| files.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes.as_slice());
        let json = |name: &str| file(name).map(|bytes| parse_json(&place.join(name), bytes)).transpose();
        let tokenizer_config = json(TOKENIZER_CONFIG)?;
        let chat_template =
            chat_template(place, file(TEMPLATE), json(TEMPLATE_JSON)?, tokenizer_config.as_ref())?;
        Ok(Self {
            generation_config: json(GENERATION_CONFIG)?,
            tokenizer_json: file(TOKENIZER).map(<[u8]>::to_vec).unwrap_or_default(),
            identity: identity(&config, &files),
            tokenizer_config,
            chat_template,
            config,
            files,
            weights,
        })
    }

    /// Opens the weights: maps them, and fetches them before that if they are on the hub.
    ///
    /// # Errors
    /// If there are none or only pickles, they are damaged, or the hub refuses.
    pub fn open_weights(&self) -> Result<Arc<dyn WeightSource>, HuggingFaceError> {
        match &self.weights {
            Weights::Gguf(path) => Ok(Arc::new(GgufFile::open(path)?.into_weights()?)),
            Weights::Folder(folder) => {
                let names = file_names(folder)?;
                let safetensors = names.iter().any(|name| name == SINGLE_FILE || name == INDEX_FILE);
                match only_gguf(&names).filter(|_| !safetensors) {
                    Some(name) => Ok(Arc::new(GgufFile::open(&folder.join(name))?.into_weights()?)),
                    None => Ok(Arc::new(SafetensorsSource::open(folder)?)),
                }
            }
            Weights::Hub(repository) => {
                fetch_weights(repository)?;
                Ok(Arc::new(SafetensorsSource::open(&repository.snapshot())?))
            }
        }
    }
}

/// Fetches the file that holds all weights, or the index and its shards.
fn fetch_weights(repository: &HubRepository) -> Result<(), HuggingFaceError> {
    let there = repository.file_names()?;
    let has = |name: &str| there.iter().any(|file| file == name);
    if has(SINGLE_FILE) {
        return repository.fetch(SINGLE_FILE);
    }
    if !has(INDEX_FILE) {
        return Err(HuggingFaceError::missing(&repository.snapshot(), no_weights(&there)));
    }
    repository.fetch(INDEX_FILE)?;
    let mut shards: Vec<String> =
        read_index(&repository.snapshot().join(INDEX_FILE))?.into_values().collect();
    shards.sort();
    shards.dedup();
    shards.iter().try_for_each(|shard| repository.fetch(shard))
}

impl Parts {
    /// Files of the folder go first; what is not there comes from its `.gguf` file, if it has exactly one.
    fn from_folder(folder: &Path) -> Result<Self, HuggingFaceError> {
        let names = file_names(folder)?;
        let has = |name: &str| names.iter().any(|file| file == name);
        let gguf = match only_gguf(&names).filter(|_| !has(CONFIG) || !has(TOKENIZER)) {
            Some(name) => Some(GgufFile::open(&folder.join(name))?),
            None => None,
        };
        let config = match &gguf {
            _ if has(CONFIG) => read_json(&folder.join(CONFIG))?,
            Some(gguf) => gguf.config()?,
            None => {
                let problem = format!(
                    "there is no {CONFIG}; a model's folder holds {CONFIG}, {TOKENIZER} and {SINGLE_FILE} \
                    (or shards and their index), or one .gguf file"
                );
                return Err(HuggingFaceError::missing(folder, problem));
            }
        };
        let mut files = Vec::new();
        for name in SIDE_FILES.into_iter().filter(|name| has(name)) {
            let path = folder.join(name);
            files.push((name.to_owned(), std::fs::read(&path).context("read", &path)?));
        }
        if has(TOKENIZER) {
            read_json(&folder.join(TOKENIZER))?;
        } else if let Some(gguf) = &gguf {
            for (name, bytes) in gguf_tokenizer_files(gguf)? {
                files.retain(|(file, _)| *file != name);
                files.push((name, bytes));
            }
        } else {
            return Err(HuggingFaceError::missing(folder, no_tokenizer(&names)));
        }
        Ok(Self { config, files })
    }

    fn from_gguf(gguf: &GgufFile) -> Result<Self, HuggingFaceError> {
        let mut files = vec![(GENERATION_CONFIG.to_owned(), pretty(&gguf.generation_config()?))];
        files.extend(gguf_tokenizer_files(gguf)?);
        Ok(Self { config: gguf.config()?, files })
    }
}

fn gguf_tokenizer_files(gguf: &GgufFile) -> Result<[(String, Vec<u8>); 2], HuggingFaceError> {
    let GgufTokenizer { tokenizer, config } = gguf.tokenizer()?;
    Ok([(TOKENIZER.to_owned(), pretty(&tokenizer)), (TOKENIZER_CONFIG.to_owned(), pretty(&config))])
}

/// The name of the one `.gguf` file among these, if it is one.
fn only_gguf(names: &[String]) -> Option<&String> {
    let mut found = names.iter().filter(|name| name.ends_with(".gguf"));
    found.next().filter(|_| found.next().is_none())
}

fn no_tokenizer(names: &[String]) -> String {
    let parts =
        ["tokenizer.model", "vocab.json"].into_iter().find(|part| names.iter().any(|name| name == part));
    match parts {
        Some(part) => format!(
            "there is {part} but no {TOKENIZER}, which is the one that is read; make it once with \
             transformers: AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)"
        ),
        None => format!("there is no {TOKENIZER}; copy it from the model that the weights belong to"),
    }
}

fn read_json(path: &Path) -> Result<Json, HuggingFaceError> {
    parse_json(path, &std::fs::read(path).context("read", path)?)
}

fn parse_json(path: &Path, bytes: &[u8]) -> Result<Json, HuggingFaceError> {
    serde_json::from_slice(bytes).map_err(|source| HuggingFaceError::Json { path: path.to_owned(), source })
}

fn pretty(value: &Json) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The template, in the order in which transformers looks: its own file, the older JSON file, the tokenizer's
/// configuration; there it may be one of several with names, of which `default` is meant.
fn chat_template(
    place: &Path,
    file: Option<&[u8]>,
    json: Option<Json>,
    tokenizer_config: Option<&Json>,
) -> Result<Option<String>, HuggingFaceError> {
    if let Some(bytes) = file {
        let text = String::from_utf8(bytes.to_vec());
        return text
            .map(Some)
            .map_err(|_| HuggingFaceError::damaged(&place.join(TEMPLATE), "is not UTF-8 text"));
    }
    let key = "chat_template";
    let found = json.as_ref().and_then(|json| json.get(key)).or_else(|| tokenizer_config?.get(key));
    match found {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(Json::Array(named)) => {
            let default =
                named.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"));
            let text = default.and_then(|entry| entry.get("template")?.as_str());
            text.map(|text| Some(text.to_owned())).ok_or_else(|| {
                HuggingFaceError::damaged(
                    place,
                    "its chat templates have names, but none is called \"default\"; rename the one to use",
                )
            })
        }
        Some(_) => Err(HuggingFaceError::damaged(
            place,
            "its chat_template is neither text nor a list of named texts",
        )),
    }
}

fn identity(config: &Json, files: &[(String, Vec<u8>)]) -> String {
    let mut hasher = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(config.to_string().as_bytes());
    for (name, bytes) in files {
        add(name.as_bytes());
        add(bytes);
    }
    sha256_hex(hasher)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn hub_ids_are_told_from_paths() {
        let parsed = ModelLocation::parse("HuggingFaceTB/SmolLM2-135M@v1.0").unwrap();
        let expected = ("HuggingFaceTB/SmolLM2-135M".to_owned(), Some("v1.0".to_owned()));
        assert_eq!(parsed, ModelLocation::Hub { id: expected.0, revision: expected.1 });
        for text in ["model", "./a/b", "../x/y", "/no/such", "a/b/c", "a/b@", "a b/c", "no/such.gguf"] {
            ModelLocation::parse(text).unwrap_err();
        }
    }

    #[test]
    fn templates_are_found_in_the_order_of_transformers() {
        let place = Path::new("model");
        let named =
            [json!({"name": "tool_use", "template": "t"}), json!({"name": "default", "template": "d"})];
        let config = json!({"chat_template": named});
        let none_is_default = json!({"chat_template": named[..1]});
        let json = json!({"chat_template": "j"});
        let find = |file, json, config| chat_template(place, file, json, config);
        assert_eq!(find(Some(b"f"), Some(json.clone()), Some(&config)).unwrap().unwrap(), "f");
        assert_eq!(find(None, Some(json), Some(&config)).unwrap().unwrap(), "j");
        assert_eq!(find(None, None, Some(&config)).unwrap().unwrap(), "d");
        assert_eq!(find(None, None, None).unwrap(), None);
        find(None, None, Some(&none_is_default)).unwrap_err();
    }
}
