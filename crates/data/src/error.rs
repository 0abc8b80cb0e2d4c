//! Everything that can be wrong with data, a tokenizer or a template, told so that the user can repair it.

use std::path::PathBuf;

use tessera_files::FileError;

use crate::delta::TableProblem;
use crate::settings::Task;
use crate::source::Unit;

/// How many bad rows an error shows; the rest are counted.
const SHOWN: usize = 20;

/// One row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowProblem {
    /// The file it is in.
    pub file: PathBuf,
    /// What the records of the file are called.
    pub unit: Unit,
    /// The row or line, from 1; of a text file, the line of the problem.
    pub number: usize,
    /// What was found and what was expected.
    pub message: String,
}

impl RowProblem {
    /// The problem in the data at `path`, which has been named: the file is told where there may be several.
    fn shown(&self, path: &std::path::Path) -> String {
        let unit = if self.unit == Unit::Row { "row" } else { "line" };
        let place = format!("{unit} {}: {}", self.number, self.message);
        if self.unit != Unit::File && self.file == path {
            return place;
        }
        format!("{}, {place}", self.file.display())
    }
}

/// Collects bad rows in the order of the data, keeping the first few.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    total: usize,
    shown: Vec<RowProblem>,
}

impl Problems {
    pub(crate) fn push(&mut self, problem: RowProblem) {
        self.total += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(problem);
        }
    }

    pub(crate) fn none(&self) -> bool {
        self.total == 0
    }

    /// `Ok` if no row was bad.
    pub(crate) fn into_result(self, path: &std::path::Path, task: Task) -> Result<(), DataError> {
        if self.none() {
            return Ok(());
        }
        Err(DataError::InvalidData { path: path.to_owned(), task, total: self.total, shown: self.shown })
    }
}

/// Data could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),

    /// Rows that break the rules of their task.
    #[error("{}", invalid_data(path, *task, *total, shown))]
    InvalidData {
        /// The data file or folder.
        path: PathBuf,
        /// What the rows were to be.
        task: Task,
        /// How many rows are bad.
        total: usize,
        /// The first 20 of them.
        shown: Vec<RowProblem>,
    },

    /// A source's share asks for its examples over and over.
    #[error(
        "{path} would have to come round {rounds:.0} times for its weight, with {examples} examples against so many of the \
         other sources; 1,000 times are the most: give it less weight, or the others more"
    )]
    Unbalanced {
        /// The source as the settings name it.
        path: String,
        /// How often its examples would be used.
        rounds: f64,
        /// How many it has.
        examples: usize,
    },

    /// The path names something that is not on this machine.
    #[error(
        "{path} is {place}, from which nothing is read yet; copy the data to this machine and name the file or folder, \
         which {task} wants to be {expected}",
        path = path.display()
    )]
    Elsewhere {
        /// What was named.
        path: PathBuf,
        /// Where that would be.
        place: &'static str,
        /// What it was to be used for.
        task: Task,
        /// What the task reads.
        expected: &'static str,
    },

    /// A Delta table cannot be read.
    #[error("{name}: {problem}")]
    Table {
        /// The table as the settings name it.
        name: String,
        /// What is wrong with it.
        problem: TableProblem,
    },

    /// Nothing is at the path.
    #[error("{path}: no such file or folder; {task} expects {expected}", path = path.display())]
    NotFound {
        /// Where the data was said to be.
        path: PathBuf,
        /// What it was to be used for.
        task: Task,
        /// What the task reads.
        expected: &'static str,
    },

    /// Something is at the path, but not what the task reads.
    #[error("{path} is {found}; {task} expects {expected}", path = path.display())]
    WrongKind {
        /// Where the data was said to be.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What it was to be used for.
        task: Task,
        /// What the task reads.
        expected: &'static str,
    },

    /// The file or folder has no example in it.
    #[error("{path} is empty: {task} expects {expected}", path = path.display())]
    Empty {
        /// The data file or folder.
        path: PathBuf,
        /// What it was to be used for.
        task: Task,
        /// What the task reads.
        expected: &'static str,
    },

    /// A pattern for file names that is none.
    #[error("{pattern:?} is not a pattern for file names: {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },

    /// A file stops in the middle, or holds what its format does not allow.
    #[error(
        "{path}: cannot be read beyond {place}: {problem}; the file is damaged or incomplete, fetch or write it again",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How far it was read.
        place: String,
        /// What its reader says.
        problem: String,
    },

    /// A reader that this build does not have.
    #[error("{path}: this build reads no such files; build it with --features {feature}", path = path.display())]
    NotBuilt {
        /// The file.
        path: PathBuf,
        /// The feature that brings the reader.
        feature: &'static str,
    },

    /// No example was set aside, or all were.
    #[error(
        "eval_split sets aside {fraction} of the examples, which leaves none to {purpose}; change it, or give eval_data_path"
    )]
    NothingHeldOut {
        /// The share.
        fraction: f64,
        /// What they were for.
        purpose: &'static str,
    },

    /// Every example was dropped.
    #[error(
        "{path}: none of the {examples} examples can be trained on: {empty} have an empty text, {no_loss_token} have no \
         loss token within the first {context_length} tokens; a larger context_length or shorter prompts would help",
        path = path.display()
    )]
    AllDropped {
        /// The data file or folder.
        path: PathBuf,
        /// Examples in it.
        examples: usize,
        /// Examples whose prompt, response or text is empty.
        empty: usize,
        /// Examples that truncation leaves without a loss token.
        no_loss_token: usize,
        /// Where examples are truncated.
        context_length: usize,
    },

    /// The tokenizer makes ids that the model has no embedding for.
    #[error(
        "{place}: the tokenizer turns {token:?} into id {id}, but the model's vocab_size is {vocab_size}, so ids must be \
         below it; use the tokenizer that belongs to the model"
    )]
    TokenOutsideVocabulary {
        /// File and line.
        place: String,
        /// The token's text in the vocabulary.
        token: String,
        /// Its id.
        id: u32,
        /// The model's limit.
        vocab_size: usize,
    },

    /// The tokenizer's files cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),

    /// The chat template cannot be parsed, or fails on a prompt.
    #[error("chat template: {0}")]
    Template(String),

    /// What was just written cannot be read back.
    #[error("{folder}: the rows just written there cannot be read back; check the disk", folder = folder.display())]
    CacheUnreadable {
        /// The cache folder.
        folder: PathBuf,
    },

    /// Rows were to have no token.
    #[error("context_length is 0; a row needs at least one token")]
    NoContext,
}

fn invalid_data(path: &std::path::Path, task: Task, total: usize, shown: &[RowProblem]) -> String {
    let rows = if total == 1 { "1 row" } else { &format!("{total} rows") };
    let mut text = format!("{}: {rows} cannot be used for {task}", path.display());
    for problem in shown {
        text.push_str(&format!("\n  {}", problem.shown(path)));
    }
    if total > shown.len() {
        text.push_str(&format!("\n  … and {} more", total - shown.len()));
    }
    text
}
