//! What a tokenizer's files say about special tokens and templates.

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::DataError;

/// The names under which transformers shows special tokens to templates.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The special tokens of `tokenizer_config.json`; each is a string or an object with `content`.
pub(super) fn names(config: Option<&Value>) -> BTreeMap<String, String> {
    let entry = |name: &str| {
        let value = config?.get(name)?;
        let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some((name.to_owned(), token.to_owned()))
    };
    NAMES.into_iter().filter_map(entry).collect()
}

/// The id of the special token called `name`, if there is one.
pub(super) fn id(
    tokenizer: &Tokenizer,
    names: &BTreeMap<String, String>,
    name: &str,
) -> Result<Option<u32>, DataError> {
    let Some(token) = names.get(name) else { return Ok(None) };
    tokenizer.token_to_id(token).map(Some).ok_or_else(|| {
        DataError::Tokenizer(format!(
            "tokenizer_config.json names {token:?} as {name}, but tokenizer.json has no such token; take both files \
             from the same model"
        ))
    })
}

/// The chat template of `tokenizer_config.json`: a string, or a list of named ones of which `default` is meant.
pub(super) fn template(config: Option<&Value>) -> Option<&str> {
    let value = config?.get("chat_template")?;
    let named =
        || value.as_array()?.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
    value.as_str().or_else(|| named()?.get("template")?.as_str())
}

/// Switches off that a BPE model skips merges at random, as files made for other training may ask for, and says whether it
/// was on.
pub(super) fn without_dropout(json: &mut Value) -> bool {
    let dropout = json.pointer_mut("/model/dropout").map(Value::take);
    dropout.is_some_and(|dropout| !dropout.is_null())
}

/// What the post-processor puts before a text, seen on a text of one letter.
pub(super) fn prefix(tokenizer: &Tokenizer) -> Result<Vec<u32>, DataError> {
    let (plain, framed) = (encode(tokenizer, "a", false)?, encode(tokenizer, "a", true)?);
    let start = framed.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
    Ok(framed.get(..start).unwrap_or_default().to_vec())
}

/// The ids of a text's tokens.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, DataError> {
    let encoding = tokenizer.encode_fast(text, special);
    encoding
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|error| DataError::Tokenizer(error.to_string()))
}
