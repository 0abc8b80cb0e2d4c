//! Conversations with tokenizers of SentencePiece's kind, which put a blank before a text: prompt and response are
//! encoded one by one and must still have the tokens of the whole.

use super::*;

/// Where a tokenizer puts its blank.
#[derive(Debug, Clone, Copy)]
pub enum Blanks {
    /// Before every text between special tokens: Llama 2, and Mistral in 2023.
    BeforeEveryText,
    /// Before the first, unless it begins with a special token: Mistral later.
    BeforeTheFirst,
}

/// A small `tokenizer.json`; its decoder shows every blank.
pub fn sentencepiece(blanks: Blanks) -> String {
    let characters = "▁ahelonduriwgs,-=x'<|_>12".chars().map(String::from);
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let merged = ["▁t", "▁a", "he", "▁the", "in", "▁▁", "nd", "▁and"].map(String::from);
    let tokens = bytes.chain(characters).chain(["t".to_owned()]).chain(merged);
    let vocabulary: serde_json::Map<_, _> =
        tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let (normalizer, pre_tokenizer) = match blanks {
        Blanks::BeforeEveryText => (
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, mark]}),
            Value::Null,
        ),
        Blanks::BeforeTheFirst => (
            Value::Null,
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
        ),
    };
    let back = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let json = json!({
        "version": "1.0",
        "added_tokens": [special(900, "<|begin|>"), special(901, "<|end|>"), special(902, "<|im_end|>")],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "byte_fallback": true, "fuse_unk": true, "vocab": vocabulary,
            "merges": [["▁", "t"], ["▁", "a"], ["h", "e"], ["▁t", "he"], ["i", "n"], ["▁", "▁"], ["n", "d"], ["▁a", "nd"]]
        }
    });
    json.to_string()
}

/// Llama 2's form, and Mistral's, in the words of the small vocabulary.
const LLAMA: &str = "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token + '[in] ' + message.content + \
                     ' [/in]' }}{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}";
const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ ' [in] ' + message.content \
                       + ' [/in]' }}{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}";
const TURNS: [(&str, &str); 4] =
    [("user", "the hello"), ("assistant", "and then"), ("user", " a "), ("assistant", "the end")];

fn bench(task: Task, content: String, blanks: Blanks, template: &str) -> Bench {
    let mut bench = Bench::new(task, "a.jsonl", content);
    bench.tokenizer = tokenizer(&sentencepiece(blanks), "<|end|>", Some(template));
    bench.settings.vocab_size = 1000;
    bench
}

fn tokens(bench: &Bench) -> Vec<u32> {
    bench.prepare().unwrap().0.micro_batch(&[Some(0)]).tokens
}

#[test]
fn conversations_have_the_tokens_of_their_text() {
    let llama = "<|begin|>[in] the hello [/in] and then <|end|><|begin|>[in]  a  [/in] the end <|end|>";
    let mistral = "<|begin|> [in] the hello [/in] and then<|end|> [in]  a  [/in] the end<|end|>";
    for (template, text) in [(LLAMA, llama), (MISTRAL, mistral)] {
        for blanks in [Blanks::BeforeEveryText, Blanks::BeforeTheFirst] {
            let bench = bench(Task::ChatCompletion, chat(&TURNS), blanks, template);
            let inner = tokenizers::Tokenizer::from_bytes(sentencepiece(blanks)).unwrap();
            let whole = inner.encode_fast(text, false).unwrap().get_ids().to_vec();
            assert_eq!(tokens(&bench), whole, "{blanks:?}: {:?}", bench.marked());
        }
    }
}

#[test]
fn the_mask_begins_with_the_response_and_no_blank_is_put_between() {
    let llama = bench(Task::ChatCompletion, chat(&TURNS), Blanks::BeforeEveryText, LLAMA);
    assert_eq!(
        llama.marked(),
        ["<|begin|> [in] the hello [/in][[ and then <|end|>]]<|begin|> [in]  a  [/in][[ the end <|end|>]]"]
    );
    let mistral = bench(Task::ChatCompletion, chat(&TURNS), Blanks::BeforeTheFirst, MISTRAL);
    assert_eq!(
        mistral.marked(),
        ["<|begin|> [in] the hello [/in][[ and then<|end|>]] [in]  a  [/in][[ the end<|end|>]]"]
    );
}

#[test]
fn no_token_lies_over_the_border_of_the_mask() {
    // The two blanks would be one token, which the model could not begin its answer with.
    let two_blanks = pair("the ", " end");
    for blanks in [Blanks::BeforeEveryText, Blanks::BeforeTheFirst] {
        let bench = bench(Task::InstructionFinetune, two_blanks.clone(), blanks, LLAMA);
        assert_eq!(bench.marked(), [" the [[ end<|end|>]]"]);
        let prompt = bench.tokenizer.encode_prompt("the ", Task::InstructionFinetune).unwrap();
        assert!(tokens(&bench).starts_with(&prompt));
    }
}

#[test]
fn a_response_inside_a_word_stays_there() {
    for blanks in [Blanks::BeforeEveryText, Blanks::BeforeTheFirst] {
        let bench = bench(Task::InstructionFinetune, pair("hel", "lo"), blanks, LLAMA);
        assert_eq!(bench.marked(), [" hel[[lo<|end|>]]"]);
    }
}

/// The tokenizer with one more added token, of no use to the texts here.
fn with_added(blanks: Blanks, content: &str, flags: Value) -> String {
    let mut json: Value = serde_json::from_str(&sentencepiece(blanks)).unwrap();
    let mut token = json["added_tokens"][0].clone();
    token["id"] = json!(903);
    token["content"] = json!(content);
    token.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
    json["added_tokens"].as_array_mut().unwrap().push(token);
    json.to_string()
}

#[test]
fn an_added_token_changes_nothing_where_it_does_not_stand() {
    let added =
        [("<pad>", json!({"lstrip": true})), ("USER", json!({})), ("<w>", json!({"single_word": true}))];
    let added = added.into_iter().chain([("\n", json!({})), ("\n\n", json!({})), ("\u{1}", json!({}))]);
    for (content, flags) in added {
        for blanks in [Blanks::BeforeEveryText, Blanks::BeforeTheFirst] {
            for (prompt, response) in [("the ", "hello"), ("hel", "lo"), ("the ", " end")] {
                let mut bench = bench(Task::InstructionFinetune, pair(prompt, response), blanks, LLAMA);
                let without = tokens(&bench);
                bench.tokenizer =
                    tokenizer(&with_added(blanks, content, flags.clone()), "<|end|>", Some(LLAMA));
                assert_eq!(tokens(&bench), without, "{content:?} {blanks:?}: {:?}", bench.marked());
            }
        }
    }
}

#[test]
fn an_added_token_at_the_border_is_found() {
    let stripping = with_added(Blanks::BeforeEveryText, "<pad>", json!({"lstrip": true}));
    let breaks = with_added(Blanks::BeforeEveryText, "\n\n", json!({}));
    for (json, response, expected) in [
        (&stripping, " <pad>end", " the[[<pad> end<|end|>]]"),
        (&breaks, "\n\nend", " the[[\n\n end<|end|>]]"),
        (&breaks, "\nend", " the[[\nend<|end|>]]"),
    ] {
        let mut bench =
            bench(Task::InstructionFinetune, pair("the", response), Blanks::BeforeEveryText, LLAMA);
        bench.tokenizer = tokenizer(json, "<|end|>", Some(LLAMA));
        assert_eq!(bench.marked(), [expected]);
    }
}

#[test]
fn where_no_character_stands_alone_pairs_are_refused_and_documents_are_not() {
    let mut json: Value = serde_json::from_str(&sentencepiece(Blanks::BeforeEveryText)).unwrap();
    json["normalizer"]["normalizers"].as_array_mut().unwrap().push(json!({"type": "NFKC"}));
    let json = json.to_string();
    let mut pairs = bench(Task::InstructionFinetune, pair("the ", "end"), Blanks::BeforeEveryText, LLAMA);
    pairs.tokenizer = tokenizer(&json, "<|end|>", Some(LLAMA));
    assert!(
        pairs.error().contains("tokenizer.json puts a blank before every text, and"),
        "{}",
        pairs.error()
    );
    let mut document = Bench::new(Task::ContinuedPretrain, "a.txt", "the end");
    document.settings.vocab_size = 1000;
    document.tokenizer = tokenizer(&json, "<|end|>", None);
    assert_eq!(document.marked(), [" the[[ end<|end|>]]"]);
}

#[test]
fn merges_are_not_dropped_at_random() {
    let mut json: Value = serde_json::from_str(&sentencepiece(Blanks::BeforeEveryText)).unwrap();
    let text = pair(&"the and in ".repeat(50), "the end");
    let mut bench = bench(Task::InstructionFinetune, text, Blanks::BeforeEveryText, LLAMA);
    bench.settings.context_length = 4096;
    let without = tokens(&bench);
    json["model"]["dropout"] = json!(0.5);
    bench.tokenizer = tokenizer(&json.to_string(), "<|end|>", Some(LLAMA));
    assert_eq!(tokens(&bench), without);
}
