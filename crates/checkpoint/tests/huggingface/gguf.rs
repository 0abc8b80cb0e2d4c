//! `.gguf` files, written here by candle: configuration, weights in Hugging Face's order, tokenizers, damage.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::json;
use tessera_checkpoint::huggingface::{GgufFile, HubOptions, ModelLocation, ModelSource};
use tessera_checkpoint::{StoredDType, WeightSource};
use tokenizers::Tokenizer;

use crate::values;

const HIDDEN: usize = 32;
const WIDTH: usize = 8;
const HEADS: [(&str, usize); 2] = [("q", 4), ("k", 2)];

type Fields = BTreeMap<String, Value>;

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn texts(items: &[&str]) -> Value {
    Value::Array(items.iter().map(|item| text(item)).collect())
}

fn fields() -> Fields {
    let mut fields = Fields::new();
    for (key, value) in [
        ("llama.block_count", 1),
        ("llama.context_length", 64),
        ("llama.embedding_length", HIDDEN as u32),
        ("llama.feed_forward_length", 64),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.rope.dimension_count", WIDTH as u32),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 1),
    ] {
        fields.insert(key.to_owned(), Value::U32(value));
    }
    fields.insert("general.architecture".to_owned(), text("llama"));
    fields.insert("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(1e-5));
    fields.insert("llama.rope.freq_base".to_owned(), Value::F32(100_000.0));
    fields.insert("tokenizer.chat_template".to_owned(), text("{{ messages }}"));
    fields.extend(byte_level("smollm"));
    fields
}

/// A byte-level vocabulary: specials, all printable ASCII and the space, and a few merges.
fn byte_level(pre: &str) -> Fields {
    let merges = ["h e", "l l", "he ll", "hell o", "1 2", "Ġ hello", "2 3", "12 3"];
    let mut tokens: Vec<String> = vec!["<|start|>".into(), "<|end|>".into()];
    tokens.extend((33..127_u8).map(|byte| char::from(byte).to_string()));
    tokens.extend(["Ġ".to_owned(), "Ċ".to_owned()]);
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let kinds = (0..tokens.len()).map(|id| Value::I32(if id < 2 { 3 } else { 1 })).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    Fields::from([
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.pre".to_owned(), text(pre)),
        ("tokenizer.ggml.tokens".to_owned(), texts(&tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(kinds)),
        ("tokenizer.ggml.merges".to_owned(), texts(&merges)),
    ])
}

/// A SentencePiece vocabulary with byte fallback, the best score first.
fn sentence_piece() -> Fields {
    let mut pieces =
        vec![("<unk>".to_owned(), 0.0, 2), ("<s>".to_owned(), 0.0, 3), ("</s>".to_owned(), 0.0, 3)];
    pieces.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    for (rank, piece) in ["▁a", "ab", "bc", "▁ab", "▁", "a", "b", "c"].into_iter().enumerate() {
        pieces.push((piece.to_owned(), -(rank as f32), 1));
    }
    let tokens: Vec<&str> = pieces.iter().map(|(token, ..)| token.as_str()).collect();
    Fields::from([
        ("tokenizer.ggml.model".to_owned(), text("llama")),
        ("tokenizer.ggml.tokens".to_owned(), texts(&tokens)),
        (
            "tokenizer.ggml.scores".to_owned(),
            Value::Array(pieces.iter().map(|piece| Value::F32(piece.1)).collect()),
        ),
        (
            "tokenizer.ggml.token_type".to_owned(),
            Value::Array(pieces.iter().map(|piece| Value::I32(piece.2)).collect()),
        ),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id".to_owned(), Value::U32(0)),
    ])
}

/// The row of llama.cpp's order in which Hugging Face's row `row` lies.
fn llama_cpp_row(row: usize) -> usize {
    let (head, within) = (row / WIDTH, row % WIDTH);
    let (half, pair) = (within / (WIDTH / 2), within % (WIDTH / 2));
    head * WIDTH + 2 * pair + half
}

/// Row r of q and k is r everywhere, in Hugging Face's order.
fn tensors() -> Vec<(String, Tensor, GgmlDType)> {
    let ramp = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|index| index as f32 / 16.0).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), ramp(110, HIDDEN), GgmlDType::Q8_0),
        ("output_norm.weight".to_owned(), ramp(1, HIDDEN).flatten_all().unwrap(), GgmlDType::F32),
        ("blk.0.ffn_down.weight".to_owned(), ramp(HIDDEN, 64), GgmlDType::F16),
    ];
    for (name, heads) in HEADS {
        let mut values = vec![0.0_f32; heads * WIDTH * HIDDEN];
        for row in 0..heads * WIDTH {
            values[llama_cpp_row(row) * HIDDEN..][..HIDDEN].fill(row as f32);
        }
        let tensor = Tensor::from_vec(values, (heads * WIDTH, HIDDEN), &Device::Cpu).unwrap();
        tensors.push((format!("blk.0.attn_{name}.weight"), tensor, GgmlDType::Q8_0));
    }
    tensors
}

fn write(folder: &Path, fields: &Fields, tensors: &[(String, Tensor, GgmlDType)]) -> PathBuf {
    let path = folder.join("model.gguf");
    let quantised: Vec<(&str, QTensor)> = tensors
        .iter()
        .map(|(name, tensor, dtype)| (name.as_str(), QTensor::quantize(tensor, *dtype).unwrap()))
        .collect();
    let quantised: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let fields: Vec<(&str, &Value)> = fields.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut File::create(&path).unwrap(), &fields, &quantised).unwrap();
    path
}

/// The tokenizer of a file with these keys, loaded by the `tokenizers` library.
fn tokenizer(changes: Fields) -> Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut all = fields();
    all.extend(changes);
    let file = GgufFile::open(&write(folder.path(), &all, &[])).unwrap();
    let json = file.tokenizer().map_err(|error| error.to_string())?.tokenizer;
    Tokenizer::from_bytes(json.to_string()).map_err(|error| error.to_string())
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, true).unwrap().get_tokens().to_vec()
}

#[test]
fn the_configuration_is_that_of_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let file = GgufFile::open(&write(folder.path(), &fields(), &tensors())).unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 1, "head_dim": 8, "hidden_act": "silu", "hidden_size": 32,
        "initializer_range": 0.02, "intermediate_size": 64, "max_position_embeddings": 64, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 100_000.0, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 110,
    });
    assert_eq!(file.config().unwrap(), expected);
    assert_eq!(file.generation_config().unwrap()["eos_token_id"], 1);
}

#[test]
fn weights_have_hugging_face_names_and_order() {
    let folder = tempfile::tempdir().unwrap();
    let weights =
        GgufFile::open(&write(folder.path(), &fields(), &tensors())).unwrap().into_weights().unwrap();
    let names: Vec<&String> = weights.tensors().keys().collect();
    let [k, q] = ["model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.q_proj.weight"];
    assert_eq!(
        names,
        ["model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight", k, q, "model.norm.weight"]
    );
    assert_eq!(weights.tensors()[q].dtype, StoredDType::Quantised);
    for name in [q, k] {
        for (row, values) in values(&weights, name).chunks(HIDDEN).enumerate() {
            assert!(values.iter().all(|value| (value - row as f32).abs() < 0.1), "{name} {row}: {values:?}");
        }
    }
    let mut piece = [0.0; 3];
    weights.read("model.norm.weight", 4, &mut piece).unwrap();
    assert_eq!(piece, [0.25, 0.3125, 0.375]);
    assert!(weights.read("model.norm.weight", 30, &mut piece).unwrap_err().to_string().contains("30..33"));
    assert!(weights.read("lm_head.weight", 0, &mut piece).is_err());
}

#[test]
fn a_folder_without_a_tokenizer_uses_that_of_its_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &fields(), &tensors());
    let open = |text: &str| {
        ModelSource::open(&ModelLocation::parse(text).unwrap(), &HubOptions::from_env()).unwrap()
    };
    let alone = open(folder.path().join("model.gguf").to_str().unwrap());
    assert_eq!(alone.config["vocab_size"], 110);
    fs::write(folder.path().join("config.json"), "{\"mine\": 1}").unwrap();
    let model = open(folder.path().to_str().unwrap());
    assert_eq!(model.config, json!({"mine": 1}));
    assert_eq!(model.chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!(model.tokenizer_json, alone.tokenizer_json);
    assert_eq!(model.tokenizer_config.as_ref().unwrap()["bos_token"], "<|start|>");
    assert_eq!(model.open_weights().unwrap().tensors().len(), 5);
}

#[test]
fn byte_level_tokenizers_split_by_their_rule() {
    let smollm = tokenizer(byte_level("smollm")).unwrap();
    assert_eq!(pieces(&smollm, "<|start|>hello hello123"), ["<|start|>", "hello", "Ġhello", "1", "2", "3"]);
    let gpt2 = tokenizer(byte_level("gpt-2")).unwrap();
    assert_eq!(pieces(&gpt2, "hello123"), ["hello", "123"]);
    let llama3 = tokenizer(byte_level("llama-bpe")).unwrap();
    assert_eq!(pieces(&llama3, "hello 1234"), ["<|start|>", "hello", "Ġ", "123", "4"]);
    let sample = "hello!\n\n  hello 12345 ~";
    for tokenizer in [smollm, gpt2, llama3] {
        let ids = tokenizer.encode(sample, true).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), sample);
    }
    assert!(tokenizer(byte_level("qwen2")).unwrap_err().contains("its pre-tokenizer is \"qwen2\""));
}

#[test]
fn sentence_piece_tokenizers_merge_by_score_and_fall_back_to_bytes() {
    let spm = tokenizer(sentence_piece()).unwrap();
    assert_eq!(pieces(&spm, "abc"), ["<s>", "▁a", "bc"]);
    assert_eq!(pieces(&spm, "babc"), ["<s>", "▁", "b", "ab", "c"]);
    assert_eq!(pieces(&spm, "é</s>"), ["<s>", "▁", "<0xC3>", "<0xA9>", "</s>"]);
    let ids = spm.encode("abc é cab", true).unwrap();
    assert_eq!(spm.decode(ids.get_ids(), true).unwrap(), "abc é cab");
}

#[test]
fn what_is_not_a_dense_llama_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let error = |key: &str, value: Value, extra: Option<&str>| {
        let mut all = fields();
        all.insert(key.to_owned(), value);
        let mut tensors = tensors();
        if let Some(name) = extra {
            tensors.push((
                name.to_owned(),
                Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap(),
                GgmlDType::F32,
            ));
        }
        let open = || {
            let file = GgufFile::open(&write(folder.path(), &all, &tensors))?;
            file.config()?;
            file.tokenizer()?;
            file.into_weights().map(|_| ())
        };
        open().unwrap_err().to_string()
    };
    for (key, value, extra, part) in [
        ("general.architecture", text("gemma3"), None, "architecture is \"gemma3\""),
        ("llama.expert_count", Value::U32(8), None, "mixture of experts"),
        ("llama.rope.scaling.type", text("yarn"), None, "rotary scaling is \"yarn\""),
        ("llama.rope.dimension_count", Value::U32(4), None, "4 rotated"),
        ("llama.attention.head_count", Value::U32(0), None, "0 query heads"),
        ("llama.attention.head_count_kv", Value::U32(0), None, "0 key-value heads"),
        ("llama.embedding_length", text("x"), None, "llama.embedding_length is missing or is not a count"),
        ("tokenizer.ggml.model", text("t5"), None, "kind \"t5\""),
        ("tokenizer.ggml.eos_token_id", Value::U32(9999), None, "tokenizer.ggml.eos_token_id"),
        ("x", Value::U8(0), Some("rope_freqs.weight"), "rope_freqs.weight is not the scaling"),
        ("x", Value::U8(0), Some("blk.0.attn_sinks.weight"), "blk.0.attn_sinks.weight"),
    ] {
        let text = error(key, value, extra);
        assert!(text.contains(part) && text.contains("model.gguf"), "{part} is not in: {text}");
    }
}

#[test]
fn head_counts_beyond_reason_are_refused_before_they_are_computed_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = fields();
    // Twice this overflows to 0, by which the rows would be divided.
    all.insert("llama.attention.head_count".to_owned(), Value::U64(1 << 63));
    all.insert("llama.attention.key_length".to_owned(), Value::U32(WIDTH as u32));
    for key_value in [2, 1 << 63] {
        all.insert("llama.attention.head_count_kv".to_owned(), Value::U64(key_value));
        let file = GgufFile::open(&write(folder.path(), &all, &tensors())).unwrap();
        for error in [file.config().unwrap_err(), file.into_weights().unwrap_err()] {
            assert!(error.to_string().contains("has 9223372036854775808 query heads"), "{error}");
        }
    }
}

/// Every byte of the header matters to some reader: whatever a bit flip makes of it, the answer is a result.
#[test]
fn damage_gives_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = fields();
    all.insert("general.alignment".to_owned(), Value::U32(32));
    let path = write(folder.path(), &all, &tensors());
    let whole = fs::read(&path).unwrap();
    let read_all = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let Ok(file) = GgufFile::open(&path) else { return false };
        let parts = file.config().is_ok() && file.generation_config().is_ok() && file.tokenizer().is_ok();
        let Ok(weights) = file.into_weights() else { return false };
        let readable = |name: &String| {
            let mut values = vec![0.0; weights.tensors()[name].elements()];
            weights.read(name, 0, &mut values).is_ok()
        };
        weights.tensors().keys().all(readable) && parts
    };
    assert!(read_all(&whole));
    for length in (0..whole.len()).step_by(97) {
        assert!(!read_all(&whole[..length]), "cut to {length} bytes");
    }
    let data = whole.len() - 110 * 34;
    for position in (0..data).step_by(5) {
        let mut damaged = whole.clone();
        damaged[position] = [0, 0xff, whole[position] ^ 1, whole[position] ^ 0x80][position % 4];
        read_all(&damaged);
    }
    let alignment = whole.windows(17).position(|window| window == b"general.alignment").unwrap() + 21;
    let mut damaged = whole.clone();
    damaged[alignment] = 0;
    fs::write(&path, damaged).unwrap();
    assert!(GgufFile::open(&path).unwrap_err().to_string().contains("general.alignment is 0"));
}
