//! One example as tokens, with the mask that says which of them are to be learnt.

use std::ops::ControlFlow;

use super::TextTokenizer;
use crate::settings::TargetResponses;
use crate::validate::Example;

/// The tokens of an example; `targets[i]` says whether token `i` is to be predicted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokenized {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<bool>,
    /// A prompt or response has no token: the example teaches nothing about answering.
    pub(crate) empty_text: bool,
}

impl Tokenized {
    /// Appends text whose tokens all have loss, or all have none.
    fn push(&mut self, tokenizer: &TextTokenizer, text: &str, target: bool) -> Result<(), String> {
        self.empty_text |= tokenizer.encode_on(text, &mut self.tokens)? == 0;
        self.targets.resize(self.tokens.len(), target);
        Ok(())
    }

    /// Begins the example with text that has no loss.
    fn push_first(&mut self, tokenizer: &TextTokenizer, text: &str) -> Result<(), String> {
        self.empty_text |= tokenizer.encode_first(text, &mut self.tokens)? == 0;
        self.targets.resize(self.tokens.len(), false);
        Ok(())
    }

    /// Ends the example with EOS, once.
    fn close(mut self, eos: Option<u32>) -> Self {
        if eos.is_some() && self.tokens.last().copied() != eos {
            self.tokens.extend(eos);
            self.targets.push(true);
        }
        self
    }
}

impl TextTokenizer {
    /// Tokenises an example of which `context_length` tokens will be used. Prompts and responses are encoded one by one,
    /// so that no token spans the border of the mask. `Err` says what the template or the tokenizer has against it.
    pub(crate) fn example(
        &self,
        example: &Example<'_>,
        target: TargetResponses,
        context_length: usize,
    ) -> Result<Tokenized, String> {
        let mut tokenized = Tokenized::default();
        match example {
            Example::Chat(messages) => {
                let rest = self.template.conversation(messages, &mut |turn| {
                    tokenized.push(self, turn.prompt, false)?;
                    tokenized.push(self, turn.response, target == TargetResponses::All || turn.last)?;
                    Ok(match tokenized.tokens.len() > context_length {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    })
                })?;
                // It is cut off, and counted.
                if !rest.is_empty() {
                    tokenized.push(self, &rest, false)?;
                }
            }
            Example::Instruction { prompt, response } => {
                tokenized.push_first(self, prompt)?;
                tokenized.push(self, response, true)?;
            }
        }
        Ok(tokenized.close(self.eos))
    }
}
