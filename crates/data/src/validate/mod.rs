//! From a record to an example, or to the reason why it is none. The rules are those that the service's data
//! format states; every bad row is found before any is tokenised.

mod chat;
mod columns;
mod fingerprint;
mod instruction;
mod json;

use rayon::prelude::*;
use serde_json::{Map, Value};

pub use chat::{Message, Role};
pub(crate) use fingerprint::of_texts;
pub(crate) use json::Unambiguous;

use crate::error::{DataError, Problems, RowProblem};
use crate::progress::{Progress, Report, Stage};
use crate::settings::{SourceSettings, Task};
use crate::source::{Content, Document, JsonText, Record, Source, bytes_at_once, utf8};

/// A row that obeys the rules of its task.
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
    /// Reads the record of a row. `Err` says what is wrong with it.
    pub(crate) fn parse(content: Content, source: &Source, task: Task) -> Result<Self, String> {
        let row = row(content, source, task)?;
        match task {
            Task::ChatCompletion => chat::messages(row).map(Self::Chat),
            Task::InstructionFinetune => instruction::pair(row),
            Task::ContinuedPretrain => Err(format!("{task} reads texts")),
        }
    }
}

/// Reads the record of a document: a text file, or a row whose `text` is one. `Err` says what is wrong with it.
pub(crate) fn document(record: Record, source: &Source) -> Result<Document, RowProblem> {
    let Record { place, content, .. } = record;
    if let Content::Document(document) = content {
        if let Err((line, message)) = document.text() {
            return Err(RowProblem { number: line, ..place.problem(message) });
        }
        return Ok(document);
    }
    let text = row(content, source, Task::ContinuedPretrain).and_then(|mut row| {
        let found = keys(&row);
        match (row.len(), row.remove("text")) {
            (1, Some(Value::String(text))) => Ok(text),
            (1, Some(other)) => Err(format!("`text` is {}, expected a string", kind(&other))),
            _ => Err(format!(
                "found {found}, expected the key `text` alone; `columns` says which other holds it"
            )),
        }
    });
    text.map(Document::of_text).map_err(|message| place.problem(message))
}

/// The named values of a record, called as the task calls them.
fn row(content: Content, source: &Source, task: Task) -> Result<Map<String, Value>, String> {
    let row = match content {
        Content::Json(text) => {
            let bytes = utf8(text.bytes(), text.offset).map_err(|(_, message)| message)?;
            let Unambiguous(value) = serde_json::from_str(bytes).map_err(|error| broken(&error, &text))?;
            let Value::Object(row) = value else {
                return Err(format!("found {}, expected a JSON object", kind(&value)));
            };
            columns::named(row, &source.columns, task)?
        }
        Content::Row { values, .. } => columns::unfolded(columns::named(values, &source.columns, task)?)?,
        Content::Broken(problem) => return Err(problem),
        Content::Document(_) => return Err(format!("{task} reads rows, not texts")),
    };
    Ok(row)
}

/// Checks every row of the sources and returns how many there are. Bad rows are all found: the error has the
/// first 20 of a source and their number.
pub fn validate(sources: &[SourceSettings], task: Task, report: Report<'_>) -> Result<usize, DataError> {
    let sources = sources.iter().map(|source| Source::open(source, task)).collect::<Result<Vec<_>, _>>()?;
    check(&sources, task, report)
}

/// [`validate`] on opened sources.
pub(crate) fn check(sources: &[Source], task: Task, report: Report<'_>) -> Result<usize, DataError> {
    let total = sources.iter().map(Source::size).sum();
    let (mut done, mut all) = (0, 0);
    for source in sources {
        let (mut problems, mut examples) = (Problems::default(), 0);
        for batch in source.batches(bytes_at_once()) {
            let batch = batch?;
            examples += batch.records.len();
            let found: Vec<_> =
                batch.records.into_par_iter().filter_map(|record| problem(record, source, task)).collect();
            found.into_iter().for_each(|problem| problems.push(problem));
            done += batch.bytes;
            report(Progress { stage: Stage::Checking, done, total });
        }
        problems.into_result(source.path(), task)?;
        if examples == 0 {
            return Err(source.empty());
        }
        all += examples;
    }
    Ok(all)
}

fn problem(record: Record, source: &Source, task: Task) -> Option<RowProblem> {
    if task == Task::ContinuedPretrain {
        return document(record, source).err();
    }
    let Record { place, content, .. } = record;
    Example::parse(content, source, task).err().map(|message| place.problem(message))
}

/// A parser's complaint. Of a line the column alone says where.
fn broken(error: &serde_json::Error, text: &JsonText) -> String {
    let message = error.to_string();
    let reason = message.split(" at line ").next().unwrap_or(&message);
    let (place, rule) = match text.start {
        None => (format!("column {}", error.column()), "each line must be one whole JSON object"),
        Some((line, column)) => {
            let column = if error.line() == 1 { column + error.column() - 1 } else { error.column() };
            let place = format!("line {}, column {column}", line + error.line() - 1);
            (place, "the file must be a list of JSON objects, or objects one after the other")
        }
    };
    // Data is what `Unambiguous` refuses; all else is the parser's.
    if error.is_data() {
        return format!("{reason} ({place}); keep one of the two");
    }
    format!("broken JSON at {place}: {reason}; {rule}")
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
