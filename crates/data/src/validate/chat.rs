//! The rules of CHAT_COMPLETION: one key `messages`; each message has `role` and `content`, both strings; an
//! optional system message comes first; then user and assistant alternate; the assistant has the last word.
//!
//! ShareGPT's way to write the same is read too: `conversations` (an `id` may stand beside it) whose messages have `from`
//! and `value`.

use std::borrow::Cow;

use super::{keys, kind};
use crate::source::{Fields, Value};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sets the scene; only as the first message.
    System,
    /// Asks.
    User,
    /// Answers; has the loss.
    Assistant,
}

impl Role {
    /// Its name in data and templates.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message, as chat templates see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message<'row> {
    /// Who speaks.
    pub(crate) role: Role,
    /// What is said.
    pub(crate) content: Cow<'row, str>,
}

/// The messages of a row that obeys the rules.
pub(super) fn messages(mut row: Fields<'_>) -> Result<Vec<Message<'_>>, String> {
    let is_sharegpt = row.contains_key("conversations") && !row.contains_key("messages");
    let (key, others) = if is_sharegpt { ("conversations", 1) } else { ("messages", 0) };
    if !row.contains_key(key) || row.len() > 1 + others || (row.len() == 2 && !row.contains_key("id")) {
        let hint = if row.contains_key("prompt") {
            "; for prompts set task_type: INSTRUCTION_FINETUNE"
        } else if row.contains_key(key) {
            ""
        } else {
            "; `columns` says which other holds them"
        };
        return Err(format!("found {}, expected the key `messages` alone{hint}", keys(&row)));
    }
    let list = match row.remove(key) {
        Some(Value::List(list)) => list,
        other => {
            let found = other.as_ref().map_or("nothing", kind);
            return Err(format!("`{key}` is {found}, expected a list of messages"));
        }
    };
    if list.len() < 2 {
        return Err(format!(
            "`{key}` has {} of the at least two messages of a conversation (user, assistant)",
            list.len()
        ));
    }
    let numbered = list.into_iter().enumerate();
    let messages: Vec<Message<'_>> =
        numbered.map(|(index, value)| message(value, index + 1)).collect::<Result<_, _>>()?;
    order(&messages)?;
    Ok(messages)
}

fn message(value: Value<'_>, number: usize) -> Result<Message<'_>, String> {
    let Value::Object(mut fields) = value else {
        return Err(format!(
            "message {number} is {}, expected an object with `role` and `content`",
            kind(&value)
        ));
    };
    let is_sharegpt = fields.contains_key("from") && fields.contains_key("value");
    let (role, content) = if is_sharegpt { ("from", "value") } else { ("role", "content") };
    if fields.len() != 2 || !fields.contains_key(role) || !fields.contains_key(content) {
        return Err(format!("message {number} has {}, expected `role` and `content` alone", keys(&fields)));
    }
    let mut text = |key: &str| match fields.remove(key) {
        Some(Value::Text(text)) => Ok(text),
        other => {
            let found = other.as_ref().map_or("nothing", kind);
            Err(format!("the {key} of message {number} is {found}, expected a string"))
        }
    };
    let role = match (text(role)?.as_ref(), is_sharegpt) {
        ("system", _) => Role::System,
        ("user", _) | ("human", true) => Role::User,
        ("assistant", _) | ("gpt", true) => Role::Assistant,
        (other, true) => {
            return Err(format!(
                "message {number} is from {other:?}, expected \"system\", \"human\" or \"gpt\""
            ));
        }
        (other, false) => {
            return Err(format!(
                "message {number} has the role {other:?}, expected \"system\", \"user\" or \"assistant\""
            ));
        }
    };
    Ok(Message { role, content: text(content)? })
}

/// Who may speak when.
fn order(messages: &[Message<'_>]) -> Result<(), String> {
    if !messages.iter().any(|message| message.role == Role::Assistant) {
        return Err("no message has the role \"assistant\": there is nothing to learn from".to_owned());
    }
    let mut previous = None;
    for (index, Message { role, .. }) in messages.iter().enumerate() {
        let number = index + 1;
        match (previous, role) {
            (Some(_), Role::System) => {
                return Err(format!(
                    "message {number} has the role \"system\", which only the first may have"
                ));
            }
            (Some(before), role) if before == *role => {
                return Err(format!(
                    "message {number} repeats the role {:?}; user and assistant must alternate",
                    role.name()
                ));
            }
            (None | Some(Role::System), Role::Assistant) => {
                return Err(format!("message {number} is the assistant's, but the user must speak first"));
            }
            _ => previous = Some(*role),
        }
    }
    match messages.last() {
        Some(Message { role: Role::Assistant, .. }) => Ok(()),
        last => {
            let found = last.map_or("nobody", |message| message.role.name());
            Err(format!("the last message has the role {found:?}, expected \"assistant\""))
        }
    }
}
