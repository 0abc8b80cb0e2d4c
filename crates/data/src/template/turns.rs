//! Where in a rendered conversation the assistant speaks.
//!
//! Templates do not say which part of their text is whose. It is found as LLM Foundry finds it, from string
//! prefixes: the conversation up to an assistant message, rendered with a generation prompt, ends where the
//! response begins; rendered with the message, it ends where the response ends. Whatever the template puts
//! after the assistant's words (its end-of-turn token) is thus part of the response and learnt with it.

use minijinja::Value;

use super::ChatTemplate;
use crate::validate::{Message, Role};

/// A rendered conversation and its turns, which cover it from begin to end.
pub(crate) struct Conversation {
    text: String,
    ends: Vec<(usize, usize)>,
}

/// One exchange: everything since the last response, then the response.
pub(crate) struct Turn<'text> {
    pub(crate) prompt: &'text str,
    pub(crate) response: &'text str,
}

impl Conversation {
    /// The turns in order.
    pub(crate) fn turns(&self) -> Vec<Turn<'_>> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|&(_, response)| response));
        let turn = |(start, &(prompt, response)): (usize, &(usize, usize))| Turn {
            prompt: self.text.get(start..prompt).unwrap_or_default(),
            response: self.text.get(prompt..response).unwrap_or_default(),
        };
        starts.zip(&self.ends).map(turn).collect()
    }
}

/// Why a conversation cannot be used, and what would help.
struct Obstacle {
    problem: String,
    remedy: &'static str,
}

impl ChatTemplate {
    /// Renders a conversation and cuts it after each prompt and response.
    pub(crate) fn conversation(&self, messages: &[Message]) -> Result<Conversation, String> {
        let values: Vec<Value> = messages.iter().map(value).collect();
        self.cut(messages, &values).map_err(|Obstacle { problem, remedy }| {
            // Many templates take all but a system message.
            let without_system = match (messages.split_first(), values.split_first()) {
                (Some((Message { role: Role::System, .. }, messages)), Some((_, values))) => {
                    self.cut(messages, values).is_ok()
                }
                _ => false,
            };
            let remedy = if without_system {
                "it takes the conversation without the system message: remove that, or put its text at the beginning of the \
                 first user message"
            } else {
                remedy
            };
            format!("{problem}; {remedy}")
        })
    }

    /// [`Self::conversation`] of messages and of the same as values.
    fn cut(&self, messages: &[Message], values: &[Value]) -> Result<Conversation, Obstacle> {
        let render = |count: usize, ask| {
            self.render(values.get(..count).unwrap_or_default(), ask).map_err(|problem| Obstacle {
                problem,
                remedy: "change the conversation, or give the model's folder a chat_template.jinja that takes it",
            })
        };
        let (mut text, mut ends) = (String::new(), Vec::new());
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
            let (prompt, full) = (render(index, true)?, render(index + 1, false)?);
            check_extension(&text, &prompt, &full, index + 1)?;
            ends.push((prompt.len(), full.len()));
            text = full;
        }
        Ok(Conversation { text, ends })
    }

    /// The text that asks the assistant to answer `prompt`.
    pub(crate) fn question(&self, prompt: &str) -> Result<String, String> {
        let message = Message { role: Role::User, content: prompt.to_owned() };
        self.render(&[value(&message)], true)
    }
}

/// Whether the texts with one more question (`prompt`) and its answer (`full`, of `count` messages) go on from each other.
fn check_extension(before: &str, prompt: &str, full: &str, count: usize) -> Result<(), Obstacle> {
    if !prompt.starts_with(before) || !full.starts_with(before) {
        return Err(Obstacle {
            problem: format!(
                "the chat template rewrites earlier messages: the text of the first {count} messages does not begin with \
                 the text of those before the last user message, so no loss mask can be placed"
            ),
            remedy: "split the conversation into rows with one assistant message each",
        });
    }
    if !full.starts_with(prompt) {
        return Err(Obstacle {
            problem: format!(
                "the chat template renders message {count} differently from what its generation prompt announces, so no \
                 loss mask can be placed"
            ),
            remedy: "use a template whose text with add_generation_prompt is the beginning of the text with the answer",
        });
    }
    Ok(())
}

/// A message as templates see it.
fn value(message: &Message) -> Value {
    Value::from_pairs([("role", message.role.name()), ("content", &message.content)])
}
