//! Rows whose columns are called otherwise than a task calls them.

use serde_json::{Map, Value};

use super::json::Unambiguous;
use super::keys;
use crate::settings::{Columns, Task};

/// A row with the task's names in place of the source's. If any column is named, those that are neither named nor the
/// task's are left out.
pub(super) fn named(
    mut row: Map<String, Value>,
    columns: &Columns,
    task: Task,
) -> Result<Map<String, Value>, String> {
    if !columns.are_named() {
        return Ok(row);
    }
    if let Some((own, theirs)) = columns.given().find(|(_, theirs)| !row.contains_key(*theirs)) {
        return Err(format!("found {}, but `columns` takes `{own}` from `{theirs}`", keys(&row)));
    }
    let values = task.columns().iter().filter_map(|&own| {
        let value = row.remove(columns.source_name(own))?;
        Some((own.to_owned(), value))
    });
    Ok(values.collect())
}

/// A row of a table whose `messages` are a text is one where the table could hold no list: the text is JSON.
pub(super) fn unfolded(mut row: Map<String, Value>) -> Result<Map<String, Value>, String> {
    for key in ["messages", "conversations"] {
        if let Some(Value::String(text)) = row.get(key) {
            let Unambiguous(value) = serde_json::from_str(text).map_err(|error| {
                format!("`{key}` is a text, but not that of a list of messages in JSON: {error}")
            })?;
            row.insert(key.to_owned(), value);
        }
    }
    Ok(row)
}
