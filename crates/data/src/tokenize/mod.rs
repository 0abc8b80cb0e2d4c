//! Text to tokens, with what a tokenizer's files say about the tokens that frame a text.
//!
//! BOS comes only from the text, a chat template or the tokenizer's post-processor, and once. One EOS ends an
//! example or document, unless it is there already.

mod example;
mod inside;
mod special;
mod split;

use serde_json::Value;
use tokenizers::{Encoding, Tokenizer};

pub(crate) use example::Tokenized;
use inside::{Context, Inside};
pub(crate) use split::Splitter;

use crate::error::DataError;
use crate::settings::Task;
use crate::source::hex;
use crate::template::ChatTemplate;

/// A tokenizer with its chat template.
pub struct TextTokenizer {
    inner: Tokenizer,
    template: ChatTemplate,
    splitter: Splitter,
    /// What the post-processor puts before a text: BOS, or nothing.
    prefix: Vec<u32>,
    inside: Inside,
    bos: Option<u32>,
    eos: Option<u32>,
    files_digest: String,
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and, for the names of BOS and EOS and the chat template,
    /// `tokenizer_config.json`. A `chat_template` given beside them (`chat_template.jinja`) comes first; where
    /// there is none at all, ChatML is used. Templates that print the day print today.
    pub fn new(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&Value>,
        chat_template: Option<&str>,
    ) -> Result<Self, DataError> {
        Self::with_date(tokenizer_json, tokenizer_config, chat_template, jiff::Zoned::now().date())
    }

    /// [`TextTokenizer::new`] with the day that templates print, so that a resumed run prints the day it began.
    pub fn with_date(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&Value>,
        chat_template: Option<&str>,
        date: jiff::civil::Date,
    ) -> Result<Self, DataError> {
        let unusable =
            |error: &dyn std::fmt::Display| DataError::Tokenizer(format!("tokenizer.json: {error}"));
        let mut json: Value = serde_json::from_slice(tokenizer_json).map_err(|error| unusable(&error))?;
        let mut inner = match special::without_dropout(&mut json) {
            true => Tokenizer::from_bytes(json.to_string()),
            false => Tokenizer::from_bytes(tokenizer_json),
        }
        .map_err(|error| unusable(&error))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| unusable(&error))?;

        let prefix = special::prefix(&inner)?;
        let mut names = special::names(tokenizer_config);
        let bos = special::id(&inner, &names, "bos_token")?.or(prefix.first().copied());
        let eos = special::id(&inner, &names, "eos_token")?;
        if let Some(token) = bos.and_then(|id| inner.id_to_token(id)) {
            names.entry("bos_token".to_owned()).or_insert(token);
        }
        let source = chat_template.or_else(|| special::template(tokenizer_config));
        Ok(Self {
            inside: Inside::new(&inner, &json)?,
            splitter: Splitter::new(&json),
            template: ChatTemplate::new(source, names, date)?,
            files_digest: hex(tokenizer_json),
            inner,
            prefix,
            bos,
            eos,
        })
    }

    /// Takes `eos` (a model's configuration has one) as the token that ends a text where the tokenizer's files name
    /// none.
    pub fn with_eos_id(mut self, eos: Option<u32>) -> Self {
        self.eos = self.eos.or(eos);
        self
    }

    /// Whether the files have no chat template, so that ChatML is used.
    pub fn uses_chatml_fallback(&self) -> bool {
        self.template.is_fallback()
    }

    /// The text of the chat template that is used.
    pub fn chat_template_source(&self) -> &str {
        self.template.source()
    }

    /// The token that begins a text, where the files name one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, where the files name one. Without it examples end as they are.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the post-processor begins a text with BOS.
    pub fn adds_bos(&self) -> bool {
        self.bos.is_some() && self.prefix.first().copied() == self.bos
    }

    /// The text of tokens.
    pub fn decode(&self, tokens: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        self.inner
            .decode(tokens, skip_special_tokens)
            .map_err(|error| DataError::Tokenizer(error.to_string()))
    }

    /// The tokens after which the model is to answer `prompt`: for conversations the prompt as one user message
    /// with the generation prompt, else the prompt as it is.
    pub fn encode_prompt(&self, prompt: &str, task: Task) -> Result<Vec<u32>, DataError> {
        let mut tokens = Vec::new();
        match task {
            Task::ChatCompletion => {
                let question = self.template.question(prompt).map_err(DataError::Template)?;
                self.encode_into(&question, &mut tokens).map_err(DataError::Tokenizer)?;
            }
            Task::InstructionFinetune | Task::ContinuedPretrain => {
                self.encode_first(prompt, &mut tokens).map_err(DataError::Tokenizer)?;
            }
        }
        Ok(tokens)
    }

    /// Tells tokenizers apart that make different tokens of a task's examples.
    pub(crate) fn identity(&self, task: Task) -> String {
        let template = if task == Task::ChatCompletion { self.template.identity() } else { String::new() };
        hex(format!("{} {:?} {:?} {:?} {template}", self.files_digest, self.prefix, self.bos, self.eos)
            .as_bytes())
    }

    /// How long texts may be cut for tokenising.
    pub(crate) fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    /// The tokenizer underneath, for walking over tokens.
    pub(crate) fn inner(&self) -> &Tokenizer {
        &self.inner
    }

    /// Appends the tokens of a part of a document as [`Splitter::parts`] cuts it, BOS before the first.
    pub(crate) fn encode_part(&self, part: &str, first: bool, tokens: &mut Vec<u32>) -> Result<(), String> {
        if first {
            return self.encode_first(part, tokens).map(drop);
        }
        self.encode_inside(part, tokens).map(drop)
    }

    /// Appends the tokens of a text that goes on from `tokens`, the tokens of what stands before it, and returns how
    /// many they are. No token spans the border, as none does where the model is asked to go on from a prompt. Otherwise
    /// they are what the text has as a part of the whole: tokenizers of SentencePiece's kind put a blank before a text,
    /// and some also after a special token, which does not belong between a prompt and its response.
    pub(crate) fn encode_on(&self, text: &str, tokens: &mut Vec<u32>) -> Result<usize, String> {
        let Some(&last) = tokens.last() else { return self.encode_into(text, tokens) };
        let Some(special) = self.added_token(last) else { return self.encode_inside(text, tokens) };
        match self.encode_after(special, &[last], text)? {
            Some(own) => Ok(append(tokens, &own)),
            None => self.encode_inside(text, tokens),
        }
    }

    /// Appends the tokens of a text that does not begin a text nor follow a special token.
    fn encode_inside(&self, text: &str, tokens: &mut Vec<u32>) -> Result<usize, String> {
        let contexts = self.inside.contexts()?;
        for Context { text: context, tokens: before } in contexts {
            if let Some(own) = self.encode_after(context, before, text)? {
                return Ok(append(tokens, &own));
            }
        }
        let own = self.encode(text)?;
        // No blank is put before an added token.
        let begins_with_added = own.get_ids().first().is_some_and(|&id| self.added_token(id).is_some());
        if contexts.is_empty() || begins_with_added {
            return Ok(append(tokens, own.get_ids()));
        }
        Err("the added tokens of tokenizer.json leave open which tokens this text has after the one before it, without \
             the blank that is put before every text; take out added tokens that hold control characters"
            .to_owned())
    }

    /// The tokens that `text` has after `context`, whose own tokens are `before`; none if those join the text's.
    fn encode_after(&self, context: &str, before: &[u32], text: &str) -> Result<Option<Vec<u32>>, String> {
        let encoding = self.encode(&format!("{context}{text}"))?;
        Ok(encoding.get_ids().strip_prefix(before).map(<[u32]>::to_vec))
    }

    /// The text of an added token.
    fn added_token(&self, id: u32) -> Option<&str> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id)?;
        Some(&added.content)
    }

    /// Appends the tokens of a text that begins an example, document or prompt, after what the post-processor puts
    /// before it. A text that begins with that itself (prompts rendered elsewhere often do) gets it no second
    /// time. Returns how many tokens the text itself has.
    pub(crate) fn encode_first(&self, text: &str, tokens: &mut Vec<u32>) -> Result<usize, String> {
        let start = tokens.len();
        let own = self.encode_into(text, tokens)?;
        if !tokens.get(start..).unwrap_or_default().starts_with(&self.prefix) {
            tokens.splice(start..start, self.prefix.iter().copied());
        }
        Ok(own)
    }

    /// Appends the tokens of `text`, without special tokens around it, and returns how many they are.
    pub(crate) fn encode_into(&self, text: &str, tokens: &mut Vec<u32>) -> Result<usize, String> {
        Ok(append(tokens, self.encode(text)?.get_ids()))
    }

    fn encode(&self, text: &str) -> Result<Encoding, String> {
        let encoding = self.inner.encode_fast(text, false);
        encoding.map_err(|error| format!("the tokenizer fails on this text: {error}"))
    }
}

/// Appends `own` and returns how many they are.
fn append(tokens: &mut Vec<u32>, own: &[u32]) -> usize {
    tokens.extend_from_slice(own);
    own.len()
}
