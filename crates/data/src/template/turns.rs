//! Where in a rendered conversation the assistant speaks.
//!
//! Templates do not say which part of their text is whose. It is found as LLM Foundry finds it, from string
//! prefixes: the conversation up to an assistant message, rendered with a generation prompt, ends where the
//! response begins; rendered with the message, it ends where the response ends. Whatever the template puts
//! after the assistant's words (its end-of-turn token) is thus part of the response and learnt with it.
//!
//! So every turn costs the work of all before it. Turns are therefore handed out one by one, and not looked for any more
//! once whoever takes them has enough; and there is a limit to the work on one conversation.

use std::cell::Cell;
use std::ops::ControlFlow;

use minijinja::Value;

use super::{ChatTemplate, Rendered, on_deep_stack};
use crate::validate::{Message, Role};

/// How many of the engine's steps the renderings of one conversation may take together: seconds, and enough for a
/// thousand messages.
const STEPS: u64 = 50_000_000;

/// One exchange: everything since the last response, then the response.
pub(crate) struct Turn<'text> {
    pub(crate) prompt: &'text str,
    pub(crate) response: &'text str,
    /// Whether the conversation ends with it.
    pub(crate) last: bool,
}

/// Who takes a conversation's turns, and says whether more are wanted.
type Taker<'run> = dyn FnMut(Turn<'_>) -> Result<ControlFlow<()>, String> + Send + 'run;

/// Why a conversation cannot be used, and what would help against what the template does.
struct Obstacle {
    problem: String,
    remedy: Option<&'static str>,
}

impl ChatTemplate {
    /// Renders a conversation and hands its turns to `take`, until that breaks off. Returns the text that then remains.
    pub(crate) fn conversation(
        &self,
        messages: &[Message<'_>],
        take: &mut Taker<'_>,
    ) -> Result<String, String> {
        let values: Vec<Value> = messages.iter().map(value).collect();
        on_deep_stack(|| {
            self.cut(messages, &values, take).map_err(|Obstacle { problem, remedy }| match remedy {
                Some(remedy) => {
                    format!("{problem}; {}", self.without_system(messages, &values).unwrap_or(remedy))
                }
                None => problem,
            })
        })?
    }

    /// What to do with a conversation that is refused only for its system message: many templates take all but that.
    fn without_system(&self, messages: &[Message<'_>], values: &[Value]) -> Option<&'static str> {
        let ((Message { role: Role::System, .. }, messages), (_, values)) =
            (messages.split_first()?, values.split_first()?)
        else {
            return None;
        };
        self.cut(messages, values, &mut |_| Ok(ControlFlow::Continue(()))).ok()?;
        Some(
            "it takes the conversation without the system message: remove that, or put its text at the beginning of the \
             first user message",
        )
    }

    /// [`Self::conversation`] of messages and of the same as values.
    fn cut(
        &self,
        messages: &[Message<'_>],
        values: &[Value],
        take: &mut Taker<'_>,
    ) -> Result<String, Obstacle> {
        let steps = Cell::new(0);
        let render = |count: usize, ask| {
            if steps.get() > STEPS {
                return Err(too_long(count));
            }
            let rendered = self.render(values.get(..count).unwrap_or_default(), ask);
            let Rendered { text, steps: taken } = rendered.map_err(|problem| Obstacle {
                problem,
                remedy: Some(
                    "change the conversation, or give the model's folder a chat_template.jinja that takes it",
                ),
            })?;
            steps.set(steps.get() + taken);
            Ok(text)
        };
        let mut text = String::new();
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
            let (prompt, full) = (render(index, true)?, render(index + 1, false)?);
            check_extension(&text, &prompt, &full, index + 1)?;
            let last = index + 1 == messages.len();
            let turn = Turn {
                prompt: prompt.get(text.len()..).unwrap_or_default(),
                response: full.get(prompt.len()..).unwrap_or_default(),
                last,
            };
            let more = take(turn).map_err(|problem| Obstacle { problem, remedy: None })?;
            text = full;
            if more.is_break() && !last {
                let whole = render(messages.len(), false)?;
                check_extension(&text, &whole, &whole, messages.len())?;
                return Ok(whole.get(text.len()..).unwrap_or_default().to_owned());
            }
        }
        Ok(String::new())
    }

    /// The text that asks the assistant to answer `prompt`.
    pub(crate) fn question(&self, prompt: &str) -> Result<String, String> {
        let message = Message { role: Role::User, content: prompt.into() };
        on_deep_stack(|| self.render(&[value(&message)], true).map(|Rendered { text, .. }| text))?
    }
}

fn too_long(count: usize) -> Obstacle {
    Obstacle {
        problem: format!(
            "the conversation is too long: rendering its first {count} messages turn by turn takes more than {STEPS} steps"
        ),
        remedy: Some("split it into several rows"),
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
            remedy: Some("split the conversation into rows with one assistant message each"),
        });
    }
    if !full.starts_with(prompt) {
        return Err(Obstacle {
            problem: format!(
                "the chat template renders message {count} differently from what its generation prompt announces, so no \
                 loss mask can be placed"
            ),
            remedy: Some(
                "use a template whose text with add_generation_prompt is the beginning of the text with the answer",
            ),
        });
    }
    Ok(())
}

/// A message as templates see it.
fn value(message: &Message<'_>) -> Value {
    Value::from_pairs([("role", message.role.name()), ("content", message.content.as_ref())])
}
