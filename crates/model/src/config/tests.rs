#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::{Value, json};

use super::*;

mod experts;
mod frequencies;
mod mutations;

/// Llama 3.2 1B as the hub has it, keys that do not matter left out.
fn llama_3_2_1b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3"
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256
    })
}

/// The object with `changes` laid over it; `"absent"` removes a key.
fn with(mut config: Value, changes: Value) -> Value {
    let object = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value == "absent" {
            object.remove(key);
        } else {
            object.insert(key.clone(), value.clone());
        }
    }
    config
}

fn parse(config: &Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::parse(&config.to_string(), Path::new("m/config.json"))
}

fn message(changes: Value) -> String {
    parse(&with(llama_3_2_1b(), changes)).unwrap_err().to_string()
}

/// A model by its shape: width, inner width, layers, heads, key/value heads, vocabulary.
fn shaped(sizes: [usize; 6], changes: Value) -> ModelConfig {
    let [hidden, inner, layers, heads, key_value_heads, vocabulary] = sizes;
    let shape = json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary
    });
    parse(&with(shape, changes)).unwrap()
}

#[test]
fn the_hubs_spelling_is_read() {
    let config = parse(&llama_3_2_1b()).unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let expected = ModelConfig {
        family: Family::Llama,
        hidden_size: 2048,
        intermediate_size: 8192,
        num_hidden_layers: 16,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 64,
        vocab_size: 128_256,
        max_position_embeddings: 131_072,
        norm: NormKind::RmsNorm,
        norm_epsilon: 1.0e-5,
        clip_qkv: None,
        experts: None,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
        sliding_window: None,
        rope: RopeConfig { theta: 500_000.0, scaling },
        initializer_range: 0.02,
        bos_token_id: Some(128_000),
        eos_token_ids: vec![128_001, 128_008, 128_009],
        stored_dtype: Some(TorchDType::BFloat16),
    };
    assert_eq!(config, expected);
}

#[test]
fn the_spelling_of_transformers_5_says_the_same() {
    let newer = json!({
        "rope_theta": "absent",
        "rope_scaling": "absent",
        "torch_dtype": "absent",
        "dtype": "bfloat16",
        "rope_parameters": {
            "rope_theta": 500000.0,
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3"
        }
    });
    let config = with(llama_3_2_1b(), newer);
    assert_eq!(parse(&config).unwrap(), parse(&llama_3_2_1b()).unwrap());
    // The scaling in one spelling, the base in the other.
    let mixed =
        with(llama_3_2_1b(), json!({"rope_parameters": {"rope_theta": 500000.0}, "rope_theta": "absent"}));
    assert_eq!(parse(&mixed).unwrap(), parse(&llama_3_2_1b()).unwrap());
    // The base beside the scaling.
    let mut inner = llama_3_2_1b();
    inner["rope_scaling"]["rope_theta"] = json!(500_000.0);
    assert_eq!(parse(&inner).unwrap(), parse(&llama_3_2_1b()).unwrap());
    assert_eq!(
        parse(&with(inner, json!({"rope_theta": "absent"}))).unwrap(),
        parse(&llama_3_2_1b()).unwrap()
    );
    // Both at once, as an export for either version has them.
    let both = with(config, json!({"rope_theta": 500000, "rope_scaling": llama_3_2_1b()["rope_scaling"]}));
    assert_eq!(parse(&both).unwrap(), parse(&llama_3_2_1b()).unwrap());
}

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let llama = shaped([64, 128, 2, 4, 4, 100], json!({"num_key_value_heads": "absent"}));
    assert_eq!((llama.num_key_value_heads, llama.head_dim, llama.max_position_embeddings), (4, 16, 2048));
    assert_eq!((llama.norm_epsilon, llama.initializer_range), (1.0e-6, 0.02));
    assert!(!llama.tie_word_embeddings && !llama.attention_bias && !llama.mlp_bias);
    assert_eq!(llama.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::None });
    assert_eq!((llama.bos_token_id, llama.eos_token_ids, llama.stored_dtype), (Some(1), vec![2], None));

    let mistral = json!({"architectures": ["MistralForCausalLM"], "num_key_value_heads": "absent"});
    let mistral = shaped([64, 128, 2, 16, 16, 100], mistral);
    assert_eq!((mistral.num_key_value_heads, mistral.max_position_embeddings), (8, 131_072));
    assert_eq!(mistral.sliding_window, Some(4096));
    assert_eq!((mistral.bos_token_id, mistral.eos_token_ids), (Some(1), vec![2]));
}

#[test]
fn null_means_absent_but_for_mistrals_window() {
    let null = json!({
        "architectures": ["MistralForCausalLM"],
        "num_key_value_heads": null,
        "sliding_window": null,
        "head_dim": null,
        "rope_scaling": null,
        "quantization_config": null,
        "bos_token_id": null,
        "eos_token_id": null
    });
    let mistral = shaped([64, 128, 2, 16, 16, 100], null);
    assert_eq!((mistral.num_key_value_heads, mistral.sliding_window, mistral.head_dim), (16, None, 4));
    assert_eq!((mistral.bos_token_id, mistral.eos_token_ids), (None, vec![]));
    let windowed = json!({"model_type": "mistral", "architectures": "absent", "sliding_window": 32});
    assert_eq!(shaped([64, 128, 2, 16, 16, 100], windowed).sliding_window, Some(32));
    // transformers ignores both of these.
    assert_eq!(shaped([64, 128, 2, 16, 16, 100], json!({"sliding_window": 32})).sliding_window, None);
    assert!(parse(&with(llama_3_2_1b(), json!({"pretraining_tp": 2}))).is_ok());
}

#[test]
fn heads_may_be_wider_than_the_stream() {
    let config = shaped([64, 128, 2, 4, 2, 100], json!({"head_dim": 32}));
    // Queries 64·128, keys and values 64·64 each, output 128·64.
    let block = 2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 128 + 2 * 64;
    assert_eq!(config.parameter_count(), 2 * 100 * 64 + 2 * block + 64);
}

#[test]
fn biases_count() {
    let sizes = [64, 128, 1, 4, 2, 100];
    let plain = shaped(sizes, json!({})).parameter_count();
    let biased = shaped(sizes, json!({"attention_bias": true, "mlp_bias": true})).parameter_count();
    assert_eq!(biased - plain, (64 + 32 + 32 + 64) + (128 + 128 + 64));
}

/// SmolLM2 135M: the count that its safetensors header adds up to.
#[test]
fn a_tied_head_counts_once() {
    let smollm2 = shaped([576, 1536, 30, 9, 3, 49_152], json!({"tie_word_embeddings": true}));
    assert_eq!((smollm2.parameter_count(), smollm2.active_parameter_count()), (134_515_008, 134_515_008));
}

/// An H100 at its peak of 989 TFLOP/s would train so many tokens a second.
#[test]
fn operations_for_a_token() {
    let tokens_per_second = |config: &ModelConfig, sequence| {
        let TrainingFlops { full, causal } = config.training_flops_per_token(sequence);
        [989.0e12 / full, 989.0e12 / causal].map(|rate: f64| rate.round() as u64)
    };
    let llama_8b = shaped([4096, 14_336, 32, 32, 8, 128_256], json!({}));
    assert_eq!(tokens_per_second(&llama_8b, 4096), [19_214, 20_497]);
    assert_eq!(tokens_per_second(&llama_8b, 8192), [17_077, 19_214]);
    let mistral = shaped([4096, 14_336, 32, 32, 8, 32_000], json!({"architectures": ["MistralForCausalLM"]}));
    assert_eq!(tokens_per_second(&mistral, 8192), [17_804, 20_140]);
    // A tied head is still a product.
    let tied = shaped([64, 128, 1, 4, 4, 100], json!({"tie_word_embeddings": true}));
    let untied = shaped([64, 128, 1, 4, 4, 100], json!({}));
    assert_eq!(tied.training_flops_per_token(8), untied.training_flops_per_token(8));
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let cases = [
        (
            json!({"architectures": ["Qwen2ForCausalLM"]}),
            "`architectures` is \"Qwen2ForCausalLM\", which is not supported: the supported architectures are \
             LlamaForCausalLM (llama), MistralForCausalLM (mistral), MixtralForCausalLM (mixtral), DbrxForCausalLM (dbrx)",
        ),
        (
            json!({"architectures": ["llama"]}),
            "`architectures` is \"llama\", which is not supported: the supported architectures are",
        ),
        (
            json!({"model_type": "LlamaForCausalLM"}),
            "`model_type` is \"LlamaForCausalLM\", which is not supported",
        ),
        (
            json!({"architectures": "absent", "model_type": "gpt2"}),
            "`model_type` is \"gpt2\", which is not supported",
        ),
        (
            json!({"attention_dropout": 0.1}),
            "`attention_dropout` is 0.1, which is not supported: training runs without dropout",
        ),
        (json!({"resid_pdrop": 0.1}), "`resid_pdrop` is 0.1, which is not supported"),
        (json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\", which is not supported: only \"silu\" is"),
        (
            json!({"quantization_config": {"bits": 4}}),
            "`quantization_config` is {\"bits\":4}, which is not supported",
        ),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5, which is not supported"),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}),
            "`rope_scaling.partial_rotary_factor` is 0.5, which is not supported",
        ),
        (
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            "`rope_parameters.partial_rotary_factor` is 0.5, which is not supported",
        ),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            "`rope_scaling.rope_type` is \"yarn\", which is not supported: the supported ones are \"default\", \"llama3\"",
        ),
        (
            json!({"rope_scaling": {"type": "longrope"}}),
            "`rope_scaling.type` is \"longrope\", which is not supported",
        ),
        (
            json!({"torch_dtype": "float8_e4m3fn"}),
            "`torch_dtype` is \"float8_e4m3fn\"; expected \"float32\", \"bfloat16\" or \"float16\"",
        ),
    ];
    for (changes, expected) in cases {
        let message = message(changes);
        assert!(message.starts_with("m/config.json: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn wrong_values_name_key_found_and_expected() {
    let cases = [
        (json!({"hidden_size": "absent"}), "`hidden_size` is missing; expected a whole number above 0"),
        (
            json!({"architectures": "absent", "model_type": "absent"}),
            "`architectures` is missing; expected the supported architectures",
        ),
        (json!({"hidden_size": "2048"}), "`hidden_size` is \"2048\"; expected a whole number above 0"),
        (json!({"vocab_size": 0}), "`vocab_size` is 0; expected a whole number above 0"),
        (json!({"num_hidden_layers": -1}), "`num_hidden_layers` is -1; expected a whole number"),
        (json!({"num_hidden_layers": 1.5}), "`num_hidden_layers` is 1.5; expected a whole number"),
        (
            json!({"vocab_size": 1_u64 << 40}),
            "`vocab_size` is 1099511627776; expected a whole number from 1 to",
        ),
        (
            json!({"num_key_value_heads": 5}),
            "`num_key_value_heads` is 5; expected a divisor of `num_attention_heads`, which is 32",
        ),
        (json!({"num_key_value_heads": 64}), "`num_key_value_heads` is 64; expected a divisor"),
        (json!({"head_dim": 63}), "`head_dim` is 63; expected an even number"),
        (
            json!({"head_dim": "absent", "num_attention_heads": 24}),
            "`hidden_size`: 2048 contradicts `num_attention_heads`: 24; the heads must divide",
        ),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps` is 0; expected a number from 1e-12 to 1"),
        (json!({"rms_norm_eps": 1e-46}), "`rms_norm_eps` is 1e-46; expected a number from 1e-12 to 1"),
        (json!({"rms_norm_eps": 1e30}), "`rms_norm_eps` is 1e+30; expected a number from 1e-12 to 1"),
        (
            json!({"initializer_range": 1e300}),
            "`initializer_range` is 1e+300; expected 0, or a number from 1e-12 to 1e12",
        ),
        (json!({"tie_word_embeddings": "yes"}), "`tie_word_embeddings` is \"yes\"; expected true or false"),
        (json!({"eos_token_id": [1, -2]}), "`eos_token_id` is [1,-2]; expected a token id or a list of them"),
        (json!({"bos_token_id": "<s>"}), "`bos_token_id` is \"<s>\"; expected a token id"),
        (json!({"rope_theta": 0.5}), "`rope_theta` is 0.5; expected a number above 1"),
        (json!({"rope_scaling": "llama3"}), "`rope_scaling` is \"llama3\"; expected an object or null"),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "`rope_scaling.factor` is missing; expected a number from 1e-6 to 1e6",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": "2"}}),
            "`rope_scaling.factor` is \"2\"; expected a number from 1e-6 to 1e6",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1, "original_max_position_embeddings": 8192}}),
            "`rope_scaling.high_freq_factor` is 1.0; expected a number above low_freq_factor, which is 4",
        ),
        (
            json!({"rope_parameters": {"rope_theta": 10000.0}}),
            "`rope_theta`: 500000.0 contradicts `rope_parameters.rope_theta`: 10000.0; keep the one",
        ),
        (
            json!({"rope_scaling": {"rope_type": "default", "rope_theta": 500.0}}),
            "`rope_theta`: 500000.0 contradicts `rope_scaling.rope_theta`: 500.0; keep the one",
        ),
        (
            json!({
                "rope_theta": "absent",
                "rope_scaling": {"rope_theta": 500.0},
                "rope_parameters": {"rope_theta": 5000.0}
            }),
            "`rope_scaling.rope_theta`: 500.0 contradicts `rope_parameters.rope_theta`: 5000.0; keep the one",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 1e-300}}),
            "`rope_scaling.factor` is 1e-300; expected a number from 1e-6 to 1e6",
        ),
        (json!({"rope_parameters": {"rope_type": "default"}}), "`rope_scaling`: Llama3"),
        (json!({"model_type": "mistral"}), "`architectures`: Llama contradicts `model_type`: Mistral"),
        (json!({"architectures": []}), "`architectures` is []; expected a list of one name"),
        (
            json!({"num_hidden_layers": 1_u64 << 31}),
            "`num_hidden_layers` is 2147483648; expected a whole number from 1 to 4096",
        ),
        (
            json!({"hidden_size": 1_u64 << 31, "intermediate_size": 1_u64 << 31}),
            "expected sizes whose product is below 2^63",
        ),
    ];
    for (changes, expected) in cases {
        let message = message(changes);
        assert!(message.starts_with("m/config.json: ") && message.contains(expected), "{message}");
    }
}

/// A config that did not come from JSON has passed no field's own check.
#[test]
fn check_holds_for_any_source() {
    let config = parse(&llama_3_2_1b()).unwrap();
    let path = Path::new("m.gguf");
    assert!(config.check(path).is_ok());
    let error = ModelConfig { num_key_value_heads: 0, ..config.clone() }.check(path).unwrap_err().to_string();
    assert!(
        error.starts_with("m.gguf: `num_key_value_heads` is 0; expected a whole number from 1 to"),
        "{error}"
    );
    assert!(ModelConfig { hidden_size: usize::MAX, ..config }.check(path).is_err());
}

#[test]
fn files_that_are_no_config() {
    let path = Path::new("m/config.json");
    let error = ModelConfig::parse("{\"hidden_size\": 64,\n", path).unwrap_err().to_string();
    assert!(error.starts_with("m/config.json: not valid JSON: ") && error.contains("line 2"), "{error}");
    let error = ModelConfig::parse("[]", path).unwrap_err().to_string();
    assert!(error.contains("`the whole file` is []; expected an object"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("config.json");
    assert!(ModelConfig::load(&absent).unwrap_err().to_string().starts_with("cannot read "));
    std::fs::write(&absent, llama_3_2_1b().to_string()).unwrap();
    assert_eq!(ModelConfig::load(&absent).unwrap(), parse(&llama_3_2_1b()).unwrap());
}
