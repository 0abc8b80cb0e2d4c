//! From a record to an example, or to the reason why it is none. The rules are those that the service's data
//! format states; every bad row is found before any is tokenised.

mod chat;
mod columns;
mod fingerprint;
mod instruction;

use std::borrow::Cow;

use rayon::prelude::*;

pub(crate) use chat::{Message, Role};
pub(crate) use fingerprint::of_texts;

use crate::error::{DataError, Problems, RowProblem};
use crate::progress::{Progress, Report, Stage};
use crate::settings::{SourceSettings, Task};
use crate::source::{Content, Document, Fields, JsonText, Record, Source, Value, utf8};

/// A row that obeys the rules of its task. Its texts are those of the record, where they could stay there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Example<'row> {
    /// A conversation that ends with the assistant.
    Chat(Vec<Message<'row>>),
    /// A prompt and what is to follow it.
    Instruction {
        /// The text without loss.
        prompt: Cow<'row, str>,
        /// The text with loss.
        response: Cow<'row, str>,
    },
}

impl<'row> Example<'row> {
    /// Reads the record of a row. `Err` says what is wrong with it.
    pub(crate) fn parse(content: &'row mut Content, source: &Source, task: Task) -> Result<Self, String> {
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
    let Record { place, mut content, .. } = record;
    if let Content::Document(document) = content {
        if let Err((line, message)) = document.text() {
            return Err(RowProblem { number: line, ..place.problem(message) });
        }
        return Ok(document);
    }
    let text = text(&mut content, source).map(|text| Document::of_text(text.into_owned()));
    text.map_err(|message| place.problem(message))
}

/// The text of a row.
fn text<'row>(content: &'row mut Content, source: &Source) -> Result<Cow<'row, str>, String> {
    let mut row = row(content, source, Task::ContinuedPretrain)?;
    if row.len() != 1 || !row.contains_key("text") {
        return Err(format!(
            "found {}, expected the key `text` alone; `columns` says which other holds it",
            keys(&row)
        ));
    }
    match row.remove("text") {
        Some(Value::Text(text)) => Ok(text),
        other => {
            let found = other.as_ref().map_or("nothing", kind);
            Err(format!("`text` is {found}, expected a string"))
        }
    }
}

/// The named values of a record, called as the task calls them. They are taken out of it, or lie in it.
fn row<'row>(content: &'row mut Content, source: &Source, task: Task) -> Result<Fields<'row>, String> {
    let of_table = |row| columns::unfolded(columns::named(row, &source.columns, task)?);
    match content {
        Content::Json(text) => {
            let bytes = utf8(text.bytes(), text.offset).map_err(|(_, message)| message)?;
            match serde_json::from_str(bytes).map_err(|error| broken(&error, text))? {
                Value::Object(row) => columns::named(row, &source.columns, task),
                other => Err(format!("found {}, expected a JSON object", kind(&other))),
            }
        }
        Content::Row { values, .. } => of_table(std::mem::take(values)),
        #[cfg(feature = "parquet")]
        Content::TableRow(row) => of_table(row.fields()?),
        Content::Broken(problem) => Err(std::mem::take(problem)),
        Content::Document(_) => Err(format!("{task} reads rows, not texts")),
    }
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
        let check = |records: Vec<_>| {
            let count = records.len();
            let problem = |record| problem(record, source, task);
            (count, records.into_par_iter().filter_map(problem).collect::<Vec<_>>())
        };
        source.read(check, |(count, found), bytes| {
            examples += count;
            found.into_iter().for_each(|problem| problems.push(problem));
            done += bytes;
            report(Progress { stage: Stage::Checking, done, total });
            Ok(())
        })?;
        problems.into_result(source.path(), task)?;
        if examples == 0 {
            return Err(source.empty());
        }
        all += examples;
    }
    Ok(all)
}

fn problem(record: Record, source: &Source, task: Task) -> Option<RowProblem> {
    if task == Task::ContinuedPretrain && matches!(record.content, Content::Document(_)) {
        return document(record, source).err();
    }
    let Record { place, mut content, .. } = record;
    let problem = match task {
        Task::ContinuedPretrain => text(&mut content, source).err(),
        _ => Example::parse(&mut content, source, task).err(),
    };
    problem.map(|message| place.problem(message))
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
    // Data is what `Value` refuses; all else is the parser's.
    if error.is_data() {
        return format!("{reason} ({place}); keep one of the two");
    }
    format!("broken JSON at {place}: {reason}; {rule}")
}

/// A JSON value's kind, with its article.
fn kind(value: &Value<'_>) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Boolean => "a boolean",
        Value::Number => "a number",
        Value::Text(_) => "a string",
        Value::List(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The keys of an object for a message: `` `prompt`, `response` ``.
fn keys(row: &Fields<'_>) -> String {
    let names = row.names();
    if names.is_empty() { "no keys".to_owned() } else { format!("the keys {}", names.join(", ")) }
}
