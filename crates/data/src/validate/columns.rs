//! Rows whose columns are called otherwise than a task calls them.

use std::borrow::Cow;

use super::keys;
use crate::settings::{Columns, Task};
use crate::source::{Fields, Value};

/// A row with the task's names in place of the source's. If any column is named, those that are neither named nor the
/// task's are left out.
pub(super) fn named<'row>(
    mut row: Fields<'row>,
    columns: &Columns,
    task: Task,
) -> Result<Fields<'row>, String> {
    if !columns.are_named() {
        return Ok(row);
    }
    if let Some((own, theirs)) = columns.given().find(|(_, theirs)| !row.contains_key(theirs)) {
        return Err(format!("found {}, but `columns` takes `{own}` from `{theirs}`", keys(&row)));
    }
    let mut values = Fields::default();
    for &own in task.columns() {
        if let Some(value) = row.remove(columns.source_name(own)) {
            values.push(Cow::Borrowed(own), value);
        }
    }
    Ok(values)
}

/// A row of a table whose `messages` are a text is one where the table could hold no list: the text is JSON.
pub(super) fn unfolded(mut row: Fields<'_>) -> Result<Fields<'_>, String> {
    for key in ["messages", "conversations"] {
        let Some(folded) = row.get_mut(key) else { continue };
        let list = match folded {
            Value::Text(Cow::Borrowed(text)) => serde_json::from_str(text),
            Value::Text(Cow::Owned(text)) => serde_json::from_str(text).map(Value::into_owned),
            _ => continue,
        };
        *folded = list.map_err(|error| {
            format!("`{key}` is a text, but not that of a list of messages in JSON: {error}")
        })?;
    }
    Ok(row)
}
