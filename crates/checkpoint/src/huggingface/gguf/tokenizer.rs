//! The tokenizer in a `.gguf` file as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Two kinds occur in Llamas: byte-level BPE (`gpt2`), whose splitting rule the file only names, and
//! SentencePiece's BPE (`llama`), whose merges are not stored but follow from the pieces' scores. Both are written
//! the way Hugging Face's own converters write them, so that the `tokenizers` library gives the same ids. A splitting
//! rule that is not known is refused: with a wrong one most text would still come out plausible.

use std::collections::{HashMap, HashSet};

use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Value as Json, json};

use super::Fields;
use crate::huggingface::HuggingFaceError;

/// What llama.cpp calls a token's type.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// The word boundary of SentencePiece.
const SPACE: &str = "▁";

/// How Llama 3 splits text before merging (`tokenizer.json` of Llama 3).
const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// A tokenizer as Hugging Face's files.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`, the chat template in it if there is one.
    pub config: Json,
}

/// The lists every kind of tokenizer has.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
}

/// How text is cut before byte-level BPE merges bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Gpt2,
    SmolLm,
    Llama3,
}

pub(super) fn tokenizer(fields: &Fields) -> Result<GgufTokenizer, HuggingFaceError> {
    let vocabulary = Vocabulary::read(fields)?;
    let tokenizer = match fields.required_text("tokenizer.ggml.model")? {
        "gpt2" => byte_level(fields, &vocabulary)?,
        "llama" => sentence_piece(fields, &vocabulary)?,
        other => {
            let problem = format!(
                "its tokenizer is of the kind {other:?}; \"gpt2\" and \"llama\" are read, put the model's \
                tokenizer.json beside it"
            );
            return Err(HuggingFaceError::unsupported(&fields.path, problem));
        }
    };
    Ok(GgufTokenizer { tokenizer, config: tokenizer_config(fields, &vocabulary)? })
}

impl<'a> Vocabulary<'a> {
    fn read(fields: &'a Fields) -> Result<Self, HuggingFaceError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = fields.texts(key)?.filter(|tokens| !tokens.is_empty());
        let tokens =
            tokens.ok_or_else(|| fields.wrong(key, "a list of strings, so there is no tokenizer in it"))?;
        let mut seen = HashSet::with_capacity(tokens.len());
        if let Some(token) = tokens.iter().find(|token| !seen.insert(**token)) {
            return Err(HuggingFaceError::damaged(
                &fields.path,
                format!("its tokenizer has the token {token:?} twice"),
            ));
        }
        let key = "tokenizer.ggml.token_type";
        let kinds = fields.list(key, "a list of numbers", integer)?.unwrap_or_else(|| vec![1; tokens.len()]);
        if kinds.len() != tokens.len() {
            return Err(fields.wrong(key, "as long as tokenizer.ggml.tokens"));
        }
        Ok(Self { tokens, kinds })
    }

    fn vocab(&self) -> Json {
        let entries = self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id)));
        Json::Object(entries.collect())
    }

    /// The tokens that are found in text before anything else is done to it.
    fn added_tokens(&self) -> Json {
        let found_first = |kind: &i64| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind);
        let tokens = self.tokens.iter().zip(&self.kinds).enumerate();
        let added = tokens.filter(|(_, (_, kind))| found_first(kind)).map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != USER_DEFINED,
            })
        });
        Json::Array(added.collect())
    }

    /// The id and text of the token that a key names.
    fn named(&self, fields: &Fields, key: &str) -> Result<Option<(usize, &'a str)>, HuggingFaceError> {
        let Some(id) = fields.count(key)? else { return Ok(None) };
        let token =
            self.tokens.get(id).ok_or_else(|| fields.wrong(key, &format!("below {}", self.tokens.len())))?;
        Ok(Some((id, *token)))
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::I32(number) => Some(i64::from(*number)),
        Value::U32(number) => Some(i64::from(*number)),
        other => other.to_i64().ok(),
    }
}

/// Byte-level BPE, as GPT-2, SmolLM and Llama 3 have it.
fn byte_level(fields: &Fields, vocabulary: &Vocabulary) -> Result<Json, HuggingFaceError> {
    let split = Split::read(fields)?;
    let key = "tokenizer.ggml.merges";
    let merges = fields.texts(key)?.ok_or_else(|| fields.wrong(key, "a list of strings"))?;
    let known: HashSet<&str> = vocabulary.tokens.iter().copied().collect();
    let pairs: Option<Vec<[&str; 2]>> = merges
        .iter()
        .map(|merge| {
            let (left, right) = merge.split_once(' ')?;
            let merged = format!("{left}{right}");
            [left, right, merged.as_str()].iter().all(|part| known.contains(part)).then_some([left, right])
        })
        .collect();
    let pairs =
        pairs.ok_or_else(|| fields.wrong(key, "pairs of tokens of the vocabulary that make a third"))?;
    let begin = vocabulary.begin(fields, split == Split::Llama3)?;
    let end = vocabulary.end(fields)?;
    let post_processor = match template(begin, end) {
        None => bytes_as_text(true),
        Some(template) => json!({"type": "Sequence", "processors": [bytes_as_text(true), template]}),
    };
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": split == Split::Llama3, "vocab": vocabulary.vocab(), "merges": pairs,
    });
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added_tokens(),
        "normalizer": null, "pre_tokenizer": split.pre_tokenizer(), "post_processor": post_processor,
        "decoder": bytes_as_text(true), "model": model,
    }))
}

/// The mapping of bytes to printable characters; `split` also cuts text as GPT-2 does.
fn bytes_as_text(split: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split})
}

impl Split {
    /// Files without a name, and those that say `default`, are taken to split as GPT-2, as `transformers` does.
    fn read(fields: &Fields) -> Result<Self, HuggingFaceError> {
        match fields.text("tokenizer.ggml.pre")?.unwrap_or("default") {
            "default" | "gpt-2" => Ok(Self::Gpt2),
            "smollm" => Ok(Self::SmolLm),
            "llama3" | "llama-v3" | "llama-bpe" => Ok(Self::Llama3),
            other => {
                let problem = format!(
                    "its pre-tokenizer is {other:?}; default, gpt-2, smollm and llama-bpe are known, put \
                    the model's tokenizer.json beside it"
                );
                Err(HuggingFaceError::unsupported(&fields.path, problem))
            }
        }
    }

    fn pre_tokenizer(self) -> Json {
        let first = match self {
            Self::Gpt2 => return bytes_as_text(true),
            Self::SmolLm => json!({"type": "Digits", "individual_digits": true}),
            Self::Llama3 => {
                json!({"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": false})
            }
        };
        json!({"type": "Sequence", "pretokenizers": [first, bytes_as_text(self != Self::Llama3)]})
    }
}

/// SentencePiece's BPE, as Llama 2 and Mistral have it (`LlamaConverter` of transformers).
fn sentence_piece(fields: &Fields, vocabulary: &Vocabulary) -> Result<Json, HuggingFaceError> {
    let key = "tokenizer.ggml.scores";
    let score = |value: &Value| value.to_f32().ok().filter(|score| score.is_finite());
    let scores = fields.list(key, "a list of floats", score)?;
    let scores = scores.filter(|scores| scores.len() == vocabulary.tokens.len());
    let scores =
        scores.ok_or_else(|| fields.wrong(key, "a list of floats as long as tokenizer.ggml.tokens"))?;
    let unknown = vocabulary.named(fields, "tokenizer.ggml.unknown_token_id")?.map(|(_, token)| token);
    let byte_fallback = vocabulary.kinds.contains(&BYTE);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if fields.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let begin = vocabulary.begin(fields, true)?;
    let end = vocabulary.end(fields)?;
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": byte_fallback, "ignore_merges": false,
        "vocab": vocabulary.vocab(), "merges": merges_from_scores(vocabulary, &scores),
    });
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added_tokens(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": null,
        "post_processor": template(begin, end), "decoder": {"type": "Sequence", "decoders": decoders}, "model": model,
    }))
}

/// SentencePiece merges two neighbours if their union is a piece, the highest score first. As a list of merges: all
/// ways to cut each piece in two pieces, by descending score (`generate_merges` of transformers).
fn merges_from_scores<'a>(vocabulary: &Vocabulary<'a>, scores: &[f32]) -> Vec<[&'a str; 2]> {
    let plain = |kind: i64| ![UNKNOWN, CONTROL, USER_DEFINED, BYTE].contains(&kind);
    let pieces = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(scores);
    let pieces: HashMap<&str, f32> =
        pieces.filter(|((_, kind), _)| plain(**kind)).map(|((token, _), score)| (*token, *score)).collect();
    let mut merges = Vec::new();
    for token in &vocabulary.tokens {
        let Some(score) = pieces.get(token) else { continue };
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if pieces.contains_key(left) && pieces.contains_key(right) {
                merges.push((*score, left, right));
            }
        }
    }
    let characters = |text: &str| text.chars().count();
    merges.sort_by(|(score, left, _), (other_score, other_left, _)| {
        other_score.total_cmp(score).then_with(|| characters(other_left).cmp(&characters(left)))
    });
    merges.into_iter().map(|(_, left, right)| [left, right]).collect()
}

impl<'a> Vocabulary<'a> {
    /// The token put before a text, if one is. `default` is what llama.cpp does where the file does not say.
    fn begin(&self, fields: &Fields, default: bool) -> Result<Option<(usize, &'a str)>, HuggingFaceError> {
        let wanted = fields.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(default);
        Ok(self.named(fields, "tokenizer.ggml.bos_token_id")?.filter(|_| wanted))
    }

    /// The token put after a text, if one is.
    fn end(&self, fields: &Fields) -> Result<Option<(usize, &'a str)>, HuggingFaceError> {
        let wanted = fields.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        Ok(self.named(fields, "tokenizer.ggml.eos_token_id")?.filter(|_| wanted))
    }
}

/// The post-processor that adds tokens before and after a text; `None` if it adds none.
fn template(begin: Option<(usize, &str)>, end: Option<(usize, &str)>) -> Option<Json> {
    if begin.is_none() && end.is_none() {
        return None;
    }
    let special = |token: &str, kind: usize| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let around = |text: &str, kind: usize| {
        let mut parts = Vec::new();
        parts.extend(begin.map(|(_, token)| special(token, kind)));
        parts.push(json!({"Sequence": {"id": text, "type_id": kind}}));
        parts.extend(end.map(|(_, token)| special(token, kind)));
        parts
    };
    let tokens: Map<String, Json> = [begin, end]
        .into_iter()
        .flatten()
        .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    Some(
        json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens}),
    )
}

fn tokenizer_config(fields: &Fields, vocabulary: &Vocabulary) -> Result<Json, HuggingFaceError> {
    let mut config = Map::new();
    for (name, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ] {
        if let Some((_, token)) = vocabulary.named(fields, key)? {
            config.insert(name.to_owned(), json!(token));
        }
    }
    if let Some(template) = fields.text("tokenizer.chat_template")? {
        config.insert("chat_template".to_owned(), json!(template));
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    if let Some(length) = fields.count("llama.context_length")? {
        config.insert("model_max_length".to_owned(), json!(length));
    }
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    Ok(Json::Object(config))
}
