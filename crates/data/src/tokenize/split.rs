//! Where a long text may be cut so that its parts, tokenised one by one, give the tokens of the whole.
//!
//! A tokenizer keeps over a hundred bytes of notes on each byte of a text, and works on one text with one
//! thread. A document of 100 MB must therefore be cut. Cutting is right only where nothing in the tokenizer
//! can see across. Two families of tokenizers have such places; with any other a document stays whole.

use serde_json::Value;

/// Tiktoken's pattern as the tokenizers of Llama 3 and DBRX have it. A line end closes a match in it, whatever
/// letter follows; no alternative begins with a line end and goes on with a letter.
const TIKTOKEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// SentencePiece's mark of a blank.
const BLANK: &str = "▁";

/// The least length of a part, in bytes.
const PART: usize = 1 << 16;

/// The places where a tokenizer's texts may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Splitter {
    /// Nowhere.
    Whole,
    /// Between a line end that follows a visible character, and a letter: byte-level tokenizers whose patterns
    /// end a word there.
    AfterLineEnd,
    /// Between a letter and a line end: SentencePiece's kind, for which a line end is a byte that no merge
    /// joins to anything. A part so cut off gets a blank put before it, as every text does; see
    /// [`super::TextTokenizer::encode_part`].
    BeforeLineEnd,
}

impl Splitter {
    /// Reads from `tokenizer.json` where texts may be cut.
    pub(crate) fn new(tokenizer: &Value) -> Self {
        let normalizer = steps(tokenizer.get("normalizer"), "normalizers");
        let pre_tokenizer = steps(tokenizer.get("pre_tokenizer"), "pretokenizers");
        let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
        if !tokens.is_none_or(|tokens| tokens.iter().all(stays_on_its_line)) {
            return Self::Whole;
        }
        let words_end = normalizer.iter().all(|step| is_type(step, "NFC"))
            && pre_tokenizer.iter().all(|step| keeps_cuts(step))
            && pre_tokenizer.iter().any(|step| makes_cuts(step));
        match (words_end, stands_alone(tokenizer, "\n")) {
            (true, _) => Self::AfterLineEnd,
            (_, true) => Self::BeforeLineEnd,
            _ => Self::Whole,
        }
    }

    /// The parts of `text`, in order; none is empty.
    pub(crate) fn parts<'text>(&self, text: &'text str) -> Vec<&'text str> {
        let (mut parts, mut rest) = (Vec::with_capacity(text.len() / PART + 1), text);
        while let Some(end) = self.cut(rest) {
            let (part, after) = rest.split_at(end);
            parts.push(part);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(rest);
        }
        parts
    }

    /// The first place to cut at after a part's least length.
    fn cut(&self, text: &str) -> Option<usize> {
        // ASCII bytes are whole characters in UTF-8, so each of the bytes is looked at as one.
        let after = |bytes: &[u8]| match *bytes {
            [before, b'\n', after] => before.is_ascii_graphic() && after.is_ascii_alphabetic(),
            _ => false,
        };
        let before = |bytes: &[u8]| matches!(*bytes, [before, b'\n'] if before.is_ascii_alphabetic());
        let tail = text.as_bytes().get(PART..)?;
        match self {
            Self::Whole => None,
            Self::AfterLineEnd => Some(PART + 2 + tail.windows(3).position(after)?),
            Self::BeforeLineEnd => Some(PART + 1 + tail.windows(2).position(before)?),
        }
    }
}

/// The steps of a component: none, itself, or the members of a sequence.
fn steps<'json>(component: Option<&'json Value>, members: &str) -> Vec<&'json Value> {
    match component {
        None | Some(Value::Null) => Vec::new(),
        Some(value) => match value.get(members).and_then(Value::as_array) {
            Some(list) => list.iter().collect(),
            None => vec![value],
        },
    }
}

fn is_type(step: &Value, name: &str) -> bool {
    step.get("type").is_some_and(|kind| kind == name)
}

fn flag(step: &Value, name: &str, otherwise: bool) -> bool {
    step.get(name).and_then(Value::as_bool).unwrap_or(otherwise)
}

/// Whether a step separates a line end from the letter after it. GPT-2's pattern, built into `ByteLevel`,
/// does, since only a blank can stand before a word in it.
fn makes_cuts(step: &Value) -> bool {
    // The pattern leaves no character out, so that to keep what it matches and to remove the rest is the same.
    let isolates = || match step.get("behavior").and_then(Value::as_str) {
        Some("Isolated") => true,
        Some("Removed") => flag(step, "invert", false),
        _ => false,
    };
    let tiktoken = || step.pointer("/pattern/Regex").is_some_and(|pattern| pattern == TIKTOKEN);
    is_type(step, "ByteLevel") && flag(step, "use_regex", true)
        || is_type(step, "Split") && tiktoken() && isolates()
}

/// Whether a step leaves such a place alone and works alike on both sides of it.
fn keeps_cuts(step: &Value) -> bool {
    is_type(step, "Digits")
        || is_type(step, "Split") && makes_cuts(step)
        || is_type(step, "ByteLevel") && !flag(step, "add_prefix_space", true)
}

/// Whether a normaliser only puts SentencePiece's mark before the text or in place of blanks.
fn marks_blanks(step: &Value) -> bool {
    let replaces = step.pointer("/pattern/String").is_some_and(|pattern| pattern == " ")
        && step.get("content").is_some_and(|content| content == BLANK);
    is_type(step, "Prepend") && step.get("prepend").is_some_and(|prepend| prepend == BLANK)
        || is_type(step, "Replace") && replaces
}

/// Whether the normaliser or the pre-tokenizer puts a blank before a text that begins with none.
pub(super) fn puts_blanks(tokenizer: &Value) -> bool {
    let pre_tokenizer = steps(tokenizer.get("pre_tokenizer"), "pretokenizers");
    let prefixes = |step: &Value| {
        is_type(step, "ByteLevel") && flag(step, "add_prefix_space", true)
            || is_type(step, "Metaspace")
                // Older files have a flag in place of the scheme.
                && flag(step, "add_prefix_space", true)
                && step.get("prepend_scheme").is_none_or(|scheme| scheme != "never")
    };
    steps(tokenizer.get("normalizer"), "normalizers").iter().any(|step| is_type(step, "Prepend"))
        || pre_tokenizer.iter().any(|step| prefixes(step))
}

/// Whether, added tokens apart, the tokens on either side of `character`, one of ASCII, cannot depend on the other side,
/// with a tokenizer of SentencePiece's kind.
pub(super) fn stands_alone(tokenizer: &Value, character: &str) -> bool {
    steps(tokenizer.get("normalizer"), "normalizers").iter().all(|step| marks_blanks(step))
        && steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
            .iter()
            .all(|step| is_type(step, "Metaspace"))
        && tokenizer.get("model").is_some_and(|model| isolates(model, character))
}

/// Whether a character is a token by itself, a byte's, and no merge joins it to another.
fn isolates(model: &Value, character: &str) -> bool {
    let byte: String = character.bytes().map(|byte| format!("<0x{byte:02X}>")).collect();
    let vocabulary = model.get("vocab").and_then(Value::as_object);
    let as_byte = vocabulary.is_some_and(|vocabulary| {
        vocabulary.contains_key(&byte) && !vocabulary.keys().any(|token| token.contains(character))
    });
    // A merge is a pair of tokens, in older files the two in one string.
    let joins = |merge: &Value| match merge {
        Value::String(pair) => pair.contains(&byte),
        pair => pair.as_array().is_none_or(|pair| pair.iter().any(|token| *token == byte)),
    };
    let merges = model.get("merges").and_then(Value::as_array);
    is_type(model, "BPE")
        && flag(model, "byte_fallback", false)
        && as_byte
        && merges.is_some_and(|merges| !merges.iter().any(joins))
}

/// Whether an added token never takes blanks or a line end with it, nor ends like a word.
fn stays_on_its_line(token: &Value) -> bool {
    let content = token.get("content").and_then(Value::as_str).unwrap_or_default();
    !flag(token, "lstrip", false)
        && !flag(token, "single_word", false)
        && !content.contains('\n')
        && !content.ends_with(|last: char| last.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn known_byte_level_tokenizers_are_cut_and_others_are_not() {
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        let cuts = |pre_tokenizer: Value, normalizer: Value| {
            Splitter::new(&json!({"pre_tokenizer": pre_tokenizer, "normalizer": normalizer}))
                == Splitter::AfterLineEnd
        };
        let sequence = |steps: Value| json!({"type": "Sequence", "pretokenizers": steps});
        let split =
            |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
        let bytes_only = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        assert!(cuts(byte_level.clone(), Value::Null));
        assert!(cuts(sequence(json!([{"type": "Digits"}, byte_level])), json!({"type": "NFC"})));
        assert!(cuts(sequence(json!([split(TIKTOKEN), bytes_only])), Value::Null));
        let removing = |invert: bool| {
            let mut step = split(TIKTOKEN);
            step["behavior"] = json!("Removed");
            step["invert"] = json!(invert);
            sequence(json!([step, bytes_only]))
        };
        assert!(cuts(removing(true), Value::Null));
        assert!(!cuts(removing(false), Value::Null));
        assert!(!cuts(sequence(json!([split(r"\S+"), bytes_only])), Value::Null));
        assert!(!cuts(bytes_only, Value::Null));
        assert!(!cuts(byte_level.clone(), json!({"type": "Lowercase"})));
        let token = json!({"content": "<x>", "lstrip": true});
        let with_token = json!({"pre_tokenizer": byte_level, "added_tokens": [token]});
        assert_eq!(Splitter::new(&with_token), Splitter::Whole);
    }

    #[test]
    fn sentencepiece_is_cut_if_no_merge_touches_line_ends() {
        let rule = |token: &str, merge: Value, byte_fallback: bool| {
            let mut vocabulary = json!({"<0x0A>": 0, "a": 1, "▁": 2});
            vocabulary[token] = json!(3);
            let model = json!({"type": "BPE", "byte_fallback": byte_fallback, "vocab": vocabulary, "merges": [merge]});
            Splitter::new(&json!({"normalizer": {"type": "Prepend", "prepend": "▁"}, "model": model}))
        };
        assert_eq!(rule("▁a", json!(["▁", "a"]), true), Splitter::BeforeLineEnd);
        assert_eq!(rule("▁a", json!("▁ a"), true), Splitter::BeforeLineEnd);
        assert_eq!(rule("▁a", json!(["a", "<0x0A>"]), true), Splitter::Whole);
        assert_eq!(rule("▁a", json!("a <0x0A>"), true), Splitter::Whole);
        assert_eq!(rule("a\n", json!(["▁", "a"]), true), Splitter::Whole);
        assert_eq!(rule("▁a", json!(["▁", "a"]), false), Splitter::Whole);
    }

    #[test]
    fn parts_join_to_the_text() {
        let text = "words, wörds\n\n and more\nLines\n".repeat(9000);
        for splitter in [Splitter::AfterLineEnd, Splitter::BeforeLineEnd] {
            let parts = splitter.parts(&text);
            assert!(parts.len() > 2);
            assert_eq!(parts.concat(), text);
        }
        assert_eq!(Splitter::Whole.parts(&text), [text.as_str()]);
    }
}
