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

impl ChatTemplate {
    /// Renders a conversation and cuts it after each prompt and response.
    pub(crate) fn conversation(&self, messages: &[Message]) -> Result<Conversation, String> {
        let values: Vec<Value> = messages.iter().map(value).collect();
        let (mut text, mut ends) = (String::new(), Vec::new());
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
            let (before, with) =
                (values.get(..index).unwrap_or_default(), values.get(..=index).unwrap_or_default());
            let prompt = self.render(before, true)?;
            let full = self.render(with, false)?;
            if !prompt.starts_with(&text) || !full.starts_with(&text) {
                return Err(format!(
                    "the chat template rewrites earlier messages: the text of the first {} messages does not begin \
                     with the text of those before the last user message, so no loss mask can be placed; split the \
                     conversation into rows with one assistant message each",
                    index + 1
                ));
            }
            if !full.starts_with(&prompt) {
                return Err(format!(
                    "the chat template renders message {} differently from what its generation prompt announces, so \
                     no loss mask can be placed; use a template whose text with add_generation_prompt is the \
                     beginning of the text with the answer",
                    index + 1
                ));
            }
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

/// A message as templates see it.
fn value(message: &Message) -> Value {
    Value::from_pairs([("role", message.role.name()), ("content", &message.content)])
}
