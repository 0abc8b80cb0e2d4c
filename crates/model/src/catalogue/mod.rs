//! The models that the fine-tuning service offered, with their configs embedded: what each is, costs and needs can be said
//! without fetching anything. Nothing else in the engine asks for a model's name; a folder or a repository is read by its
//! own `config.json`.

mod entries;

use std::path::Path;

use crate::config::{ConfigError, ModelConfig};

pub use entries::all;

/// The day on which the service and all its models were withdrawn, by its documentation.
pub const SERVICE_WITHDRAWN: &str = "2026-08-14";

/// Likeness (0 to 1) from which on a known name is offered for an unknown one.
const ALIKE: f64 = 0.6;

/// A model of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its repository on the hub.
    pub name: &'static str,
    /// Whether it was tuned to answer: its tokenizer then has a chat template.
    pub chat: bool,
    /// What it shares with its siblings.
    pub series: &'static Series,
    /// What became of it in the service.
    pub service: ServiceStatus,
    config: EmbeddedConfig,
}

/// A `config.json` as the hub has it, without what does not bear on the architecture. Models of one shape share it.
#[derive(Debug, Clone, Copy)]
struct EmbeddedConfig {
    /// The file's name without `.json`.
    name: &'static str,
    text: &'static str,
}

/// Models of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Series {
    /// Their common name.
    pub name: &'static str,
    /// Their licence, and what the hub asks for before it hands out files.
    pub licence: &'static str,
    /// Their tokenizer.
    pub tokenizer: &'static str,
    /// The chat template of those that have one.
    pub template: &'static str,
}

/// What became of a model in the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceStatus {
    /// Offered once, and withdrawn with all others on [`SERVICE_WITHDRAWN`] at the latest: the service had taken models back
    /// before, on dates that its documentation no longer shows.
    Withdrawn,
    /// Not in the service's published lists; a sibling of models that are.
    NotListed,
}

/// A name that is not in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownModel {
    /// One in the catalogue is like it.
    #[error("`{name}` is not in the catalogue, did you mean `{suggestion}`?")]
    Like {
        /// The name asked for.
        name: String,
        /// The one that is like it.
        suggestion: &'static str,
    },
    /// None is.
    #[error("`{name}` is not in the catalogue; `tessera models` lists what is")]
    LikeNone {
        /// The name asked for.
        name: String,
    },
}

impl Entry {
    /// The model's shape.
    ///
    /// # Errors
    /// When the embedded config cannot be read, which a test rules out for all of them.
    pub fn config(&self) -> Result<ModelConfig, ConfigError> {
        ModelConfig::parse(self.config.text, Path::new(self.config.name))
    }

    /// The `config.json` that [`config`](Self::config) reads: the hub's, without what does not bear on the architecture.
    pub fn config_text(&self) -> &'static str {
        self.config.text
    }
}

/// The model called `name`, in upper or lower case.
///
/// # Errors
/// Where there is none; with the name that is most like it, if one is.
pub fn find(name: &str) -> Result<&'static Entry, UnknownModel> {
    if let Some(entry) = all().iter().find(|entry| entry.name.eq_ignore_ascii_case(name)) {
        return Ok(entry);
    }
    let sought = name.to_lowercase();
    let scored = all().iter().map(|entry| (likeness(&sought, entry.name), entry));
    let best = scored.max_by(|(first, _), (second, _)| first.total_cmp(second));
    Err(match best.filter(|(likeness, _)| *likeness >= ALIKE) {
        Some((_, entry)) => UnknownModel::Like { name: name.to_owned(), suggestion: entry.name },
        None => UnknownModel::LikeNone { name: name.to_owned() },
    })
}

/// How like a name in lower case is to a known one, whose owner may be left out, as may the `Meta-` before Llama: the hub
/// itself has renamed repositories so.
fn likeness(sought: &str, known: &str) -> f64 {
    let known = known.to_lowercase();
    let bare = known.rsplit('/').next().unwrap_or(&known);
    [known.as_str(), bare, &known.replace("/meta-", "/"), bare.trim_start_matches("meta-")]
        .map(|known| strsim::normalized_damerau_levenshtein(sought, known))
        .into_iter()
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests;
