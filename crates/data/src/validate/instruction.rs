//! The rules of INSTRUCTION_FINETUNE: two keys, `prompt` and `response` or `completion`, both strings.

use super::{Example, keys, kind};
use crate::source::{Fields, Value};

/// The pair of a row that obeys the rules.
pub(super) fn pair(mut row: Fields<'_>) -> Result<Example<'_>, String> {
    let response = if row.contains_key("response") { "response" } else { "completion" };
    if row.len() != 2 || !row.contains_key("prompt") || !row.contains_key(response) {
        let hint = if row.contains_key("messages") {
            "; for conversations set task_type: CHAT_COMPLETION"
        } else {
            ""
        };
        return Err(format!(
            "found {}, expected `prompt` and one of `response` and `completion`{hint}",
            keys(&row)
        ));
    }
    let mut text = |key: &str| match row.remove(key) {
        Some(Value::Text(text)) => Ok(text),
        other => {
            let found = other.as_ref().map_or("nothing", kind);
            Err(format!("`{key}` is {found}, expected a string"))
        }
    };
    Ok(Example::Instruction { prompt: text("prompt")?, response: text(response)? })
}
