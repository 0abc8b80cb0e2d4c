//! From a line to an example, or to the reason why it is none. The rules are those that the service's data
//! format states; every bad row is found before any is tokenised.

mod chat;
mod instruction;
mod json;

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value};

pub use chat::{Message, Role};
use json::Unambiguous;

use crate::error::{DataError, Problems};
use crate::progress::{Progress, Report, Stage};
use crate::settings::Task;
use crate::source::{Line, Source, TextFiles, bytes_at_once};

/// A row of a `.jsonl` file that obeys the rules of its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// A conversation that ends with the assistant.
    Chat(Vec<Message>),
    /// A prompt and what is to follow it.
    Instruction {
        /// The text without loss.
        prompt: String,
        /// The text with loss.
        response: String,
    },
}

impl Example {
    /// Reads one line. `Err` says what is wrong with it.
    pub(crate) fn parse(line: &Line<'_>, task: Task) -> Result<Self, String> {
        let Unambiguous(value) = serde_json::from_str(line.text()?).map_err(broken)?;
        let Value::Object(row) = value else {
            return Err(format!("found {}, expected a JSON object", kind(&value)));
        };
        match task {
            Task::ChatCompletion => chat::messages(row).map(Self::Chat),
            Task::InstructionFinetune => instruction::pair(row),
            Task::ContinuedPretrain => Err(format!("{task} reads .txt files, not rows of JSON")),
        }
    }
}

/// Checks every row of the data and returns how many there are. Bad rows are all found: the error has the
/// first 20 and their number.
pub fn validate(path: &Path, task: Task, report: Report<'_>) -> Result<usize, DataError> {
    check(&Source::open(path, task)?, task, report)
}

/// [`validate`] on an opened source.
pub(crate) fn check(source: &Source, task: Task, report: Report<'_>) -> Result<usize, DataError> {
    let mut done = 0;
    let mut advance = |bytes: usize| {
        done += bytes as u64;
        report(Progress { stage: Stage::Checking, done, total: source.size() });
    };
    match source {
        Source::Text(files) => check_text(files, &mut advance),
        Source::JsonLines(lines) => {
            let (mut problems, mut examples) = (Problems::default(), 0);
            for batch in lines.batches(bytes_at_once()) {
                let found: Vec<_> = batch
                    .par_iter()
                    .filter_map(|line| Some(line.problem(Example::parse(line, task).err()?)))
                    .collect();
                found.into_iter().for_each(|problem| problems.push(problem));
                examples += batch.len();
                advance(batch.iter().map(|line| line.bytes.len()).sum());
            }
            problems.into_result(lines.path(), task).map(|()| examples)
        }
    }
}

fn check_text(files: &TextFiles, advance: &mut dyn FnMut(usize)) -> Result<usize, DataError> {
    let (mut problems, mut documents) = (Problems::default(), 0);
    for group in files.groups(bytes_at_once()) {
        let group = group?;
        let found: Vec<_> = group.par_iter().filter_map(|document| document.text().err()).collect();
        found.into_iter().for_each(|problem| problems.push(problem));
        documents += group.len();
        advance(group.iter().map(|document| document.size()).sum());
    }
    problems.into_result(files.root(), Task::ContinuedPretrain).map(|()| documents)
}

/// A parser's complaint; a row is one line, so the column alone says where.
fn broken(error: serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    // Data is what `Unambiguous` refuses; all else is the parser's.
    if error.is_data() {
        return format!("{reason} (column {}); keep one of the two", error.column());
    }
    format!("broken JSON at column {}: {reason}; each line must be one whole JSON object", error.column())
}

/// A JSON value's kind, with its article.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The keys of an object for a message: `` `prompt`, `response` ``.
fn keys(row: &Map<String, Value>) -> String {
    if row.is_empty() {
        return "no keys".to_owned();
    }
    let names: Vec<_> = row.keys().map(|key| format!("`{key}`")).collect();
    format!("the keys {}", names.join(", "))
}
