//! The tokens that a text has inside another, where the tokenizer puts a blank before whatever it takes for a text.
//!
//! Tokenizers of SentencePiece's kind do. A response is then encoded behind a character whose token no merge joins to
//! anything, and that token is left out. Whether there is such a character lies in the normaliser, the pre-tokenizer and
//! the model alone. Added tokens can only take one with them from a text that begins with such a token; then another
//! character serves.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::special::encode;
use super::split::{puts_blanks, stands_alone};
use crate::error::DataError;

/// The characters that are tried: blank for an added token that takes blanks with it, and not.
const CHARACTERS: [&str; 3] = ["\n", "\u{1}", "\u{2}"];

/// A text whose tokens join none of what follows it.
pub(super) struct Context {
    pub(super) text: &'static str,
    pub(super) tokens: Vec<u32>,
}

/// How the tokens of a text inside another are found.
pub(super) enum Inside {
    /// As those of the text alone: nothing is put before a text.
    Alone,
    /// As those of the text after one of these.
    After(Vec<Context>),
    /// Not at all.
    Unknown,
}

impl Inside {
    /// Reads it from `tokenizer.json`; `tokenizer` is the same.
    pub(super) fn new(tokenizer: &Tokenizer, json: &Value) -> Result<Self, DataError> {
        if !puts_blanks(json) {
            return Ok(Self::Alone);
        }
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut contexts = Vec::new();
        for text in CHARACTERS.into_iter().filter(|character| stands_alone(json, character)) {
            let tokens = encode(tokenizer, text, false)?;
            // After an added token a text is taken to begin anew.
            if !tokens.iter().any(|id| added.contains_key(id)) {
                contexts.push(Context { text, tokens });
            }
        }
        Ok(if contexts.is_empty() { Self::Unknown } else { Self::After(contexts) })
    }

    /// The contexts; `Err` where the tokens cannot be found.
    pub(super) fn contexts(&self) -> Result<&[Context], String> {
        match self {
            Self::Alone => Ok(&[]),
            Self::After(contexts) => Ok(contexts),
            Self::Unknown => Err("tokenizer.json puts a blank before every text, and its normalizer, pre_tokenizer and model \
                                  are of no kind that shows which tokens a response has after its prompt, without that \
                                  blank; use a tokenizer of the kind of Llama's, Mistral's or DBRX's"
                .to_owned()),
        }
    }
}
