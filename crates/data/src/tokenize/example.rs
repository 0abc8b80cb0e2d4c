//! One example as tokens, with the mask that says which of them are to be learnt.

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
        let before = self.tokens.len();
        tokenizer.encode_into(text, &mut self.tokens)?;
        self.empty_text |= self.tokens.len() == before;
        self.targets.resize(self.tokens.len(), target);
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
    /// Tokenises an example. Prompts and responses are encoded one by one, so that no token spans the border of
    /// the mask. `Err` says what the template or the tokenizer has against it.
    pub(crate) fn example(&self, example: &Example, target: TargetResponses) -> Result<Tokenized, String> {
        let mut tokenized = Tokenized::default();
        match example {
            Example::Chat(messages) => {
                let conversation = self.template.conversation(messages)?;
                let turns = conversation.turns();
                for (index, turn) in turns.iter().enumerate() {
                    let learnt = target == TargetResponses::All || index + 1 == turns.len();
                    tokenized.push(self, turn.prompt, false)?;
                    tokenized.push(self, turn.response, learnt)?;
                }
            }
            Example::Instruction { prompt, response } => {
                tokenized.tokens.extend_from_slice(&self.prefix);
                tokenized.push(self, prompt, false)?;
                tokenized.push(self, response, true)?;
            }
        }
        Ok(tokenized.close(self.eos))
    }
}
