//! The keys of a `.gguf` file's header as the `config.json` of a `LlamaForCausalLM`, in the spelling of the hub.
//!
//! llama.cpp stores Llama 3's rotary scaling not as its parameters but as one divisor per frequency, in the tensor
//! `rope_freqs.weight`. The parameters are found again by trying the only ones that were ever published.

use serde_json::{Map, Value as Json, json};

use super::{Fields, GgufFile};
use crate::huggingface::HuggingFaceError;

/// `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings` of every published Llama 3 model.
const LLAMA3_LOW: f64 = 1.0;
const LLAMA3_HIGH: f64 = 4.0;
const LLAMA3_ORIGINAL: usize = 8192;

/// More heads than any Llama has; a count from the file is held against it before anything is computed from it.
const MOST_HEADS: usize = 1 << 16;

/// The number of query and key-value heads, each `1..=MOST_HEADS`, and the width of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heads {
    pub query: usize,
    pub key_value: usize,
    pub width: usize,
}

impl Heads {
    /// Reads the head counts. Only a rotation of the whole head is a Llama.
    pub fn read(fields: &Fields) -> Result<Self, HuggingFaceError> {
        let query = fields.required_count("llama.attention.head_count")?;
        let key_value = fields.count("llama.attention.head_count_kv")?.unwrap_or(query);
        let hidden = fields.required_count("llama.embedding_length")?;
        let explicit = fields.count("llama.attention.key_length")?;
        let width = explicit.or_else(|| hidden.checked_div(query)).unwrap_or(0);
        let counts = 1..=MOST_HEADS;
        if !counts.contains(&query)
            || !counts.contains(&key_value)
            || width == 0
            || width % 2 == 1
            || query % key_value != 0
        {
            let found = format!(
                "has {query} query heads, {key_value} key-value heads and heads of width {width}, which \
                cannot be"
            );
            return Err(HuggingFaceError::damaged(&fields.path, found));
        }
        let rotated = fields.count("llama.rope.dimension_count")?.unwrap_or(width);
        let values = fields.count("llama.attention.value_length")?.unwrap_or(width);
        if rotated != width || values != width {
            let found = format!(
                "has heads of width {width} with {rotated} rotated and values of width {values}; a Llama \
                has one width for all"
            );
            return Err(HuggingFaceError::unsupported(&fields.path, found));
        }
        Ok(Self { query, key_value, width })
    }
}

/// The model's `config.json`.
pub(super) fn config(file: &GgufFile) -> Result<Json, HuggingFaceError> {
    let fields = &file.fields;
    if fields.count("llama.expert_count")?.unwrap_or(0) > 0 {
        let problem = "holds a mixture of experts; only dense models are read from .gguf files, use the model's \
                       safetensors folder";
        return Err(HuggingFaceError::unsupported(&fields.path, problem));
    }
    let heads = Heads::read(fields)?;
    let theta = fields.number("llama.rope.freq_base")?.unwrap_or(10_000.0);
    let norm_epsilon = fields.number("llama.attention.layer_norm_rms_epsilon")?;
    let has = |tensor: &str| file.content.tensor_infos.contains_key(tensor);
    let mut config = Map::new();
    let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
    set("architectures", json!(["LlamaForCausalLM"]));
    set("attention_bias", json!(has("blk.0.attn_q.bias")));
    set("attention_dropout", json!(0.0));
    set("bos_token_id", json!(fields.count("tokenizer.ggml.bos_token_id")?));
    set("eos_token_id", json!(fields.count("tokenizer.ggml.eos_token_id")?));
    set("head_dim", json!(heads.width));
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(fields.required_count("llama.embedding_length")?));
    set("initializer_range", json!(0.02));
    set("intermediate_size", json!(fields.required_count("llama.feed_forward_length")?));
    set("max_position_embeddings", json!(fields.required_count("llama.context_length")?));
    set("mlp_bias", json!(has("blk.0.ffn_gate.bias")));
    set("model_type", json!("llama"));
    set("num_attention_heads", json!(heads.query));
    set("num_hidden_layers", json!(fields.required_count("llama.block_count")?));
    set("num_key_value_heads", json!(heads.key_value));
    set(
        "rms_norm_eps",
        json!(norm_epsilon.ok_or_else(|| fields.wrong("llama.attention.layer_norm_rms_epsilon", "a float"))?),
    );
    set("rope_scaling", rope_scaling(file, theta, heads.width)?);
    set("rope_theta", json!(theta));
    set("tie_word_embeddings", json!(!has("output.weight")));
    set("torch_dtype", json!(dtype(file)));
    set("use_cache", json!(true));
    set("vocab_size", json!(embedding_rows(file)?));
    Ok(Json::Object(config))
}

/// The model's `generation_config.json`. A chat model may end a turn and a text with different tokens.
pub(super) fn generation_config(fields: &Fields) -> Result<Json, HuggingFaceError> {
    let end = fields.count("tokenizer.ggml.eos_token_id")?;
    let turn_end = fields.count("tokenizer.ggml.eot_token_id")?.filter(|id| Some(*id) != end);
    let ends = match (end, turn_end) {
        (Some(end), Some(turn_end)) => json!([end, turn_end]),
        (end, turn_end) => json!(end.or(turn_end)),
    };
    let mut config = Map::new();
    config.insert("_from_model_config".to_owned(), json!(true));
    for (key, value) in [
        ("bos_token_id", json!(fields.count("tokenizer.ggml.bos_token_id")?)),
        ("eos_token_id", ends),
        ("pad_token_id", json!(fields.count("tokenizer.ggml.padding_token_id")?)),
    ] {
        if !value.is_null() {
            config.insert(key.to_owned(), value);
        }
    }
    Ok(Json::Object(config))
}

/// The embedding has a row for each token id, spare ones included: that is what `vocab_size` means.
fn embedding_rows(file: &GgufFile) -> Result<usize, HuggingFaceError> {
    let embedding = file.content.tensor_infos.get("token_embd.weight");
    embedding
        .and_then(|info| info.shape.dims().first().copied())
        .ok_or_else(|| HuggingFaceError::damaged(file.path(), "there is no tensor token_embd.weight"))
}

/// The element type the weights had: that of the matrices, and bfloat16 where they are quantised, since all Llamas
/// that are published quantised were trained in it.
fn dtype(file: &GgufFile) -> &'static str {
    use candle_core::quantized::GgmlDType;
    match file.content.tensor_infos.get("blk.0.attn_q.weight").map(|info| info.ggml_dtype) {
        Some(GgmlDType::F32) => "float32",
        Some(GgmlDType::F16) => "float16",
        _ => "bfloat16",
    }
}

fn rope_scaling(file: &GgufFile, theta: f64, width: usize) -> Result<Json, HuggingFaceError> {
    let fields = &file.fields;
    if file.content.tensor_infos.contains_key("rope_freqs.weight") {
        let stored = file.tensor_values("rope_freqs.weight")?;
        return llama3_scaling(&stored, theta, width).ok_or_else(|| {
            let problem = "its rope_freqs.weight is not the scaling of a published Llama 3 model; use the model's \
                           safetensors folder";
            HuggingFaceError::unsupported(&fields.path, problem)
        });
    }
    match fields.text("llama.rope.scaling.type")? {
        None | Some("none") => Ok(Json::Null),
        Some("linear") => {
            let factor = fields.number("llama.rope.scaling.factor")?;
            let factor = factor.ok_or_else(|| fields.wrong("llama.rope.scaling.factor", "a float"))?;
            Ok(json!({"rope_type": "linear", "type": "linear", "factor": factor}))
        }
        Some(other) => {
            let problem = format!(
                "its rotary scaling is {other:?}; none, linear and Llama 3's are read from a .gguf file"
            );
            Err(HuggingFaceError::unsupported(&fields.path, problem))
        }
    }
}

/// The `rope_scaling` whose divisors these are: `null` if they are all one, `None` if they are not Llama 3's.
fn llama3_scaling(stored: &[f32], theta: f64, width: usize) -> Option<Json> {
    if stored.len() != width / 2 {
        return None;
    }
    let factor = f64::from(stored.iter().copied().fold(1.0, f32::max));
    if stored.iter().all(|divisor| *divisor == 1.0) {
        return Some(Json::Null);
    }
    let fits = stored.iter().enumerate().all(|(index, divisor)| {
        let expected = llama3_divisor(index, theta, width, factor);
        (f64::from(*divisor) - expected).abs() <= 1e-4 * expected
    });
    fits.then(|| {
        json!({
            "factor": factor,
            "high_freq_factor": LLAMA3_HIGH,
            "low_freq_factor": LLAMA3_LOW,
            "original_max_position_embeddings": LLAMA3_ORIGINAL,
            "rope_type": "llama3",
        })
    })
}

/// By what the frequency of pair `index` is divided: 1 where it is high, `factor` where it is low, between them
/// interpolated in the frequency (transformers, `_compute_llama3_parameters`).
fn llama3_divisor(index: usize, theta: f64, width: usize, factor: f64) -> f64 {
    let frequency = theta.powf(-2.0 * index as f64 / width as f64);
    let turns = LLAMA3_ORIGINAL as f64 * frequency / (2.0 * std::f64::consts::PI);
    let smooth = ((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)).clamp(0.0, 1.0);
    1.0 / ((1.0 - smooth) / factor + smooth)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn llama3_scaling_is_found_again_from_its_divisors() {
        let divisors: Vec<f32> =
            (0..64).map(|index| llama3_divisor(index, 500_000.0, 128, 32.0) as f32).collect();
        assert_eq!((divisors[0], divisors[63]), (1.0, 32.0));
        let scaling = llama3_scaling(&divisors, 500_000.0, 128).unwrap();
        assert_eq!(scaling["factor"], 32.0);
        assert_eq!(scaling["rope_type"], "llama3");
        let mut other = divisors.clone();
        other[34] *= 1.01;
        assert_eq!(llama3_scaling(&other, 500_000.0, 128), None);
        assert_eq!(llama3_scaling(&[1.0; 64], 500_000.0, 128), Some(Json::Null));
        assert_eq!(llama3_scaling(&[1.0; 63], 500_000.0, 128), None);
    }
}
