//! What a data set is prepared for: every choice that changes its rows.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The three tasks, spelt in run files as the service spelt them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Task {
    /// Conversations: rows with `messages`.
    ChatCompletion,
    /// Prompts with responses: rows with `prompt` and `response` (or `completion`).
    InstructionFinetune,
    /// Plain text: `.txt` files, each a document, or rows with `text`.
    ContinuedPretrain,
}

impl fmt::Display for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ChatCompletion => "CHAT_COMPLETION",
            Self::InstructionFinetune => "INSTRUCTION_FINETUNE",
            Self::ContinuedPretrain => "CONTINUED_PRETRAIN",
        })
    }
}

/// Which assistant messages of a conversation the loss is taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetResponses {
    /// Every one.
    #[default]
    All,
    /// The last one only.
    Last,
}

/// How examples are put into rows of `context_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Several examples a row, by best-fit-decreasing. Pre-training documents follow one another and are cut
    /// where a row ends.
    #[default]
    BestFit,
    /// One example a row. A pre-training document begins a row and is cut where the row ends.
    None,
}

/// What a source calls the columns that a task reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Columns {
    /// The source's name by the task's.
    names: BTreeMap<String, String>,
}

impl Columns {
    /// The source's names by the task's; without any, rows must have the task's columns and no others.
    pub fn new(names: BTreeMap<String, String>) -> Self {
        Self { names }
    }

    /// The first name that no column of `task` has.
    pub fn unknown(&self, task: Task) -> Option<&str> {
        self.names.keys().map(String::as_str).find(|name| !task.columns().contains(name))
    }

    /// What the source calls the task's column `name`.
    pub(crate) fn source_name<'own>(&'own self, name: &'own str) -> &'own str {
        self.names.get(name).map_or(name, String::as_str)
    }

    /// Whether any column is named: rows may then have others, which are not read.
    pub(crate) fn are_named(&self) -> bool {
        !self.names.is_empty()
    }

    /// The names given, the task's with the source's.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names.iter().map(|(own, theirs)| (own.as_str(), theirs.as_str()))
    }

    /// The columns of the source that are read; `None`: all, since no others may be there.
    pub(crate) fn wanted(&self, task: Task) -> Option<Vec<&str>> {
        self.are_named().then(|| task.columns().iter().map(|name| self.source_name(name)).collect())
    }
}

impl Task {
    /// The columns that its rows may have.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Self::ChatCompletion => &["messages"],
            Self::InstructionFinetune => &["prompt", "response", "completion"],
            Self::ContinuedPretrain => &["text"],
        }
    }
}

/// Files of a source that is elsewhere, as they were brought to this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The folder that their names are told from.
    pub folder: PathBuf,
    /// What is read there.
    pub contents: Contents,
    /// The version of the source that they are of; `None`: it has none, being read where it is.
    pub version: Option<String>,
}

/// What is read of a source that was brought to this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contents {
    /// Files by their paths, in the order in which they are read; a folder means the files of a kind that is read below it.
    Files(Vec<PathBuf>),
    /// This version of the Delta table that the folder is.
    Table(u64),
}

/// One place that rows come from.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceSettings {
    /// A file, a folder, or a pattern with `*`, `?` or `[…]`; or the name of a source that is elsewhere.
    pub path: String,
    /// The files that are meant, where `path` is a name.
    pub fetched: Option<Fetched>,
    /// What its columns are called.
    pub columns: Columns,
    /// Its share of the examples, relative to that of other sources; above 0.
    pub weight: f64,
}

impl From<&str> for SourceSettings {
    fn from(path: &str) -> Self {
        Self { path: path.to_owned(), fetched: None, columns: Columns::default(), weight: 1.0 }
    }
}

/// A part of the examples that is set aside: which ones follows from their text alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HoldOut {
    /// The share that is set aside, between 0 and 1.
    pub fraction: f64,
    /// Whether this data set is made of those set aside, or of the others.
    pub held_out: bool,
}

impl HoldOut {
    /// Whether the data set has the example with this fingerprint.
    pub(crate) fn takes(&self, fingerprint: u64) -> bool {
        let is_aside = (fingerprint as f64) < self.fraction * (u64::MAX as f64);
        is_aside == self.held_out
    }
}

/// Where the data is and what rows to make of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSettings {
    /// Where rows come from: at least one place. Examples of several are mixed.
    pub sources: Vec<SourceSettings>,
    /// Which of their examples are taken; `None`: all.
    pub hold_out: Option<HoldOut>,
    /// What the rows of the data are.
    pub task: Task,
    /// Tokens in a full row; at least 1.
    pub context_length: usize,
    /// Where conversations have loss. The other tasks have one response, or loss everywhere.
    pub target_responses: TargetResponses,
    /// How examples share rows.
    pub packing: Packing,
    /// Decides which examples meet in a packing window.
    pub seed: u64,
    /// Rows of the model's embedding: every token id must be below.
    pub vocab_size: usize,
}
