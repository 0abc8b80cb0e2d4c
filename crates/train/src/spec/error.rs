//! What can be wrong with a run file or an argument.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A run file or its command-line arguments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The run file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The text is no YAML.
    #[error("{place}: not valid YAML: {message}")]
    Syntax {
        /// File and line, or the argument.
        place: String,
        /// What the parser found.
        message: String,
    },
    /// An argument has no `=`, or no key before it.
    #[error(
        "argument `{argument}`: expected key=value, such as learning_rate=1.0e-5 or optimizer.weight_decay=0.1"
    )]
    Argument {
        /// The argument as it was given.
        argument: String,
    },
    /// The file is YAML but holds something other than keys and values.
    #[error("{path}: found {found}, expected keys and values, such as `model: HuggingFaceTB/SmolLM2-135M-Instruct`",
        path = path.display())]
    NoMap {
        /// The run file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// Keys or values are wrong: every mistake, in the order of the run file's documentation.
    #[error("{}", listed(path, problems))]
    Problems {
        /// The run file.
        path: PathBuf,
        /// At least one.
        problems: Vec<Problem>,
    },
    /// The run cannot be written as YAML.
    #[error("cannot write the run as YAML: {0}")]
    Write(#[from] serde_saphyr::ser::Error),
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On this line of the run file.
    Line(u64),
    /// In this command-line argument.
    Argument(String),
}

/// One mistake in a run file or argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands; for a missing key, where the map that lacks it begins.
    pub origin: Origin,
    /// The key, with dots between levels.
    pub key: String,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// What can be wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// No such key exists here.
    #[error("{}", unknown_key(owner.as_deref(), suggestion.as_deref(), known))]
    UnknownKey {
        /// The optimizer or scheduler by whose name the keys are chosen.
        owner: Option<String>,
        /// The nearest key that exists.
        suggestion: Option<String>,
        /// Every key that exists here.
        known: Vec<String>,
    },
    /// The key is given more than once.
    #[error("the key is given again, earlier {}: keep one of them", repeated(earlier))]
    Repeated {
        /// Where it was given before.
        earlier: Origin,
    },
    /// The key must be given and is not.
    #[error("the key is missing, expected {expected}")]
    Missing {
        /// The form of its value.
        expected: String,
    },
    /// The value has the wrong type or lies outside its range.
    #[error("found {found}, expected {expected}")]
    Unfit {
        /// The value as it was written.
        found: String,
        /// The form and range of its value.
        expected: String,
    },
}

impl Origin {
    /// The place as a message begins with it.
    pub(super) fn place(&self, path: &Path) -> String {
        match self {
            Self::Line(line) => format!("{}:{line}", path.display()),
            Self::Argument(argument) => format!("argument `{argument}`"),
        }
    }
}

fn repeated(earlier: &Origin) -> String {
    match earlier {
        Origin::Line(line) => format!("at line {line}"),
        Origin::Argument(_) => "in the same argument".to_owned(),
    }
}

fn unknown_key(owner: Option<&str>, suggestion: Option<&str>, known: &[String]) -> String {
    let subject = owner.map_or("unknown key".to_owned(), |owner| format!("{owner} has no such key"));
    match suggestion {
        Some(suggestion) => format!("{subject}, did you mean `{suggestion}`?"),
        None => format!("{subject}, expected one of {}", known.join(", ")),
    }
}

/// One line for each of the first problems, and how many more there are.
fn listed(path: &Path, problems: &[Problem]) -> String {
    const MOST_SHOWN: usize = 20;
    let shown = problems.iter().take(MOST_SHOWN);
    let mut lines: Vec<String> =
        shown.map(|problem| format!("{}: {problem}", problem.origin.place(path))).collect();
    if problems.len() > MOST_SHOWN {
        lines.push(format!("… and {} more", problems.len() - MOST_SHOWN));
    }
    lines.join("\n")
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "`{}`: {}", self.key, self.kind)
    }
}
