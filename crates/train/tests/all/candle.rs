//! The logits of candle-transformers' models on the goldens' weights: a second oracle, which shares no line with `transformers`.

use std::fs;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, mixtral};
use serde_json::{Value, json};
use tessera_model::config::{Family, ModelConfig};

use crate::golden::{Golden, relative};

/// The goldens whose config candle's models can express. They have no DBRX; no biases in Llama; in Mistral and Mixtral no
/// tied head and no RoPE scaling; Llama 3's RoPE scaling only; an explicit `head_dim` in Mistral only; no Mixtral whose
/// experts lie in one tensor. Dynamic scaling has no effect within the context, so that case would only repeat another.
const CASES: [&str; 5] = ["untied_mha", "tied_gqa", "llama3_rope", "sliding_window", "mixtral"];

/// The golden's `config.json` with what candle reads otherwise than `transformers` writes it.
fn candle_config(golden: &Golden, config: &ModelConfig) -> Value {
    let mut json: Value = serde_json::from_slice(&fs::read(golden.path("config.json")).unwrap()).unwrap();
    json["use_flash_attn"] = json!(false);
    json["rope_theta"] = json!(config.rope.theta);
    // Candle lets a token see `sliding_window` tokens before itself, `transformers` counts the token too. Its Mixtral has no
    // word for none.
    json["sliding_window"] = match (config.family, config.sliding_window) {
        (_, Some(window)) => json!(window - 1),
        (Family::Mixtral, None) => json!(config.max_position_embeddings),
        (_, None) => Value::Null,
    };
    json
}

/// Candle's logits of the token that follows `prompt`.
fn candle_logits(golden: &Golden, config: &ModelConfig, prompt: &[u32]) -> Vec<f32> {
    let weights = candle_core::safetensors::load(golden.path("model.safetensors"), &Device::Cpu).unwrap();
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let json = candle_config(golden, config);
    let tokens = Tensor::new(prompt, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = match config.family {
        Family::Llama => {
            let json: llama::LlamaConfig = serde_json::from_value(json).unwrap();
            let config = json.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            llama::Llama::load(weights, &config).unwrap().forward(&tokens, 0, &mut cache)
        }
        Family::Mistral => {
            let config = serde_json::from_value(json).unwrap();
            mistral::Model::new(&config, weights).unwrap().forward(&tokens, 0)
        }
        Family::Mixtral => {
            let config = serde_json::from_value(json).unwrap();
            mixtral::Model::new(&config, weights).unwrap().forward(&tokens, 0)
        }
        Family::Dbrx => panic!("candle has no DBRX"),
    };
    logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn logits_are_those_of_candles_models() {
    for case in CASES {
        let golden = Golden::open(case);
        let mut engine = golden.engine(true);
        let config = engine.model().config().clone();
        let tokens = &golden.batches[0].tokens;
        for length in [1, 2, 7, 19, tokens.len().min(engine.settings().positions)] {
            let prompt = &tokens[..length];
            let logits = engine.next_token_logits(prompt).unwrap();
            let error = relative(&logits, &candle_logits(&golden, &config, prompt));
            assert!(error < 1e-4, "{case}: the logits after {length} tokens are off by {error:e}");
        }
    }
}
