//! Mixtral and DBRX.

use super::*;

/// A small Mixtral in the spelling of the hub.
pub(super) fn mixtral() -> Value {
    json!({
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "num_local_experts": 6,
        "output_router_logits": false,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "vocab_size": 100
    })
}

/// A small DBRX in the spelling of the hub.
pub(super) fn dbrx() -> Value {
    json!({
        "architectures": ["DbrxForCausalLM"],
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "model_type": "", "rope_theta": 500000},
        "d_model": 64,
        "emb_pdrop": 0.0,
        "ffn_config": {
            "ffn_hidden_size": 96,
            "model_type": "",
            "moe_jitter_eps": 0,
            "moe_loss_weight": 0.05,
            "moe_num_experts": 8,
            "moe_top_k": 4
        },
        "initializer_range": 0.02,
        "max_seq_len": 32768,
        "model_type": "dbrx",
        "n_heads": 8,
        "n_layers": 2,
        "output_router_logits": false,
        "resid_pdrop": 0.0,
        "router_aux_loss_coef": 0.05,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "vocab_size": 100
    })
}

/// The config with `changes` laid over the object `key` within it.
fn with_inner(mut config: Value, key: &str, changes: Value) -> Value {
    config[key] = with(config[key].take(), changes);
    config
}

#[test]
fn mixtral_is_read() {
    let expected = ModelConfig {
        family: Family::Mixtral,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: 8,
        vocab_size: 100,
        max_position_embeddings: 32_768,
        norm: NormKind::RmsNorm,
        norm_epsilon: 1.0e-5,
        tie_word_embeddings: false,
        attention_bias: false,
        mlp_bias: false,
        clip_qkv: None,
        experts: Some(ExpertsConfig {
            count: 6,
            active: 2,
            weight_norm: Some(1.0),
            balance_loss_coefficient: 0.02,
        }),
        sliding_window: None,
        rope: RopeConfig { theta: 1_000_000.0, scaling: RopeScaling::None },
        initializer_range: 0.02,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        stored_dtype: Some(TorchDType::BFloat16),
    };
    assert_eq!(parse(&mixtral()).unwrap(), expected);
    // Whether a forward returns the router's logits is no matter of the loss here.
    let returned = with(mixtral(), json!({"output_router_logits": true}));
    assert_eq!(parse(&returned).unwrap(), expected);
}

#[test]
fn absent_keys_of_mixtral_take_the_defaults_of_transformers() {
    let absent = [
        "num_key_value_heads",
        "num_local_experts",
        "num_experts_per_tok",
        "router_aux_loss_coef",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "sliding_window",
        "bos_token_id",
        "eos_token_id",
    ];
    let changes = absent.into_iter().map(|key| (key.to_owned(), json!("absent"))).collect();
    let config = parse(&with(mixtral(), Value::Object(changes))).unwrap();
    let experts =
        ExpertsConfig { count: 8, active: 2, weight_norm: Some(1.0), balance_loss_coefficient: 0.001 };
    assert_eq!(config.experts, Some(experts));
    assert_eq!((config.num_key_value_heads, config.max_position_embeddings), (8, 131_072));
    assert_eq!((config.norm_epsilon, config.rope.theta), (1.0e-5, 1_000_000.0));
    assert_eq!(config.sliding_window, None);
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(1), vec![2]));
    let windowed = with(mixtral(), json!({"sliding_window": 16, "num_key_value_heads": null}));
    let windowed = parse(&windowed).unwrap();
    assert_eq!((windowed.sliding_window, windowed.num_key_value_heads), (Some(16), 8));
}

#[test]
fn dbrx_is_read() {
    let expected = ModelConfig {
        family: Family::Dbrx,
        num_key_value_heads: 2,
        norm: NormKind::LayerNorm,
        clip_qkv: Some(8.0),
        experts: Some(ExpertsConfig {
            count: 8,
            active: 4,
            weight_norm: Some(1.0),
            balance_loss_coefficient: 0.05,
        }),
        rope: RopeConfig { theta: 500_000.0, scaling: RopeScaling::None },
        bos_token_id: None,
        eos_token_ids: vec![],
        ..parse(&mixtral()).unwrap()
    };
    assert_eq!(parse(&dbrx()).unwrap(), expected);
}

#[test]
fn absent_keys_of_dbrx_take_the_defaults_of_transformers() {
    let config = with(
        dbrx(),
        json!({
            "attn_config": {},
            "ffn_config": {"ffn_hidden_size": 96},
            "max_seq_len": "absent",
            "tie_word_embeddings": "absent"
        }),
    );
    let config = parse(&config).unwrap();
    let experts =
        ExpertsConfig { count: 4, active: 1, weight_norm: Some(1.0), balance_loss_coefficient: 0.01 };
    assert_eq!(config.experts, Some(experts));
    assert_eq!((config.num_key_value_heads, config.max_position_embeddings), (1, 2048));
    assert_eq!((config.clip_qkv, config.rope.theta), (None, 10_000.0));
}

#[test]
fn the_norm_of_a_tokens_weights_may_be_none() {
    let norm = |value: Value| {
        let changes = json!({"moe_normalize_expert_weights": value});
        parse(&with_inner(dbrx(), "ffn_config", changes)).unwrap().experts.unwrap().weight_norm
    };
    assert_eq!([norm(json!(null)), norm(json!(2))], [None, Some(2.0)]);
}

/// `transformers` 5 writes the base to `rope_parameters`; the original config has it in `attn_config` only.
#[test]
fn the_rotary_base_of_dbrx_may_stand_in_several_places_but_not_differ() {
    let newer = json!({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}});
    assert_eq!(parse(&with(dbrx(), newer.clone())).unwrap(), parse(&dbrx()).unwrap());
    let only_newer = with_inner(with(dbrx(), newer), "attn_config", json!({"rope_theta": "absent"}));
    assert_eq!(parse(&only_newer).unwrap(), parse(&dbrx()).unwrap());
    // What transformers 5 makes of the original config when it saves it again.
    let fallen_back = json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}});
    let message = parse(&with(dbrx(), fallen_back)).unwrap_err().to_string();
    let expected =
        "`rope_parameters.rope_theta`: 10000.0 contradicts `attn_config.rope_theta`: 500000.0; keep the one";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn an_exported_dbrx_has_its_rotary_base_in_both_places() {
    let newer = json!({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}});
    let both = with(dbrx(), newer.clone());
    let only_newer = with_inner(both.clone(), "attn_config", json!({"rope_theta": "absent"}));
    for source in [dbrx(), only_newer, both] {
        let config = parse(&source).unwrap();
        let exported = config.exported(&source);
        assert_eq!(exported["rope_parameters"], newer["rope_parameters"]);
        assert_eq!(exported["attn_config"]["rope_theta"].as_f64(), Some(500_000.0));
        assert_eq!(parse(&exported).unwrap(), config);
    }
    let scaling = json!({"rope_type": "linear", "factor": 2.0});
    let scaled = with(dbrx(), json!({"rope_scaling": scaling}));
    let config = parse(&scaled).unwrap();
    let exported = config.exported(&scaled);
    let whole = with(scaling, json!({"rope_theta": 500000.0}));
    assert_eq!([&exported["rope_parameters"], &exported["rope_scaling"]], [&whole, &whole]);
    assert_eq!(parse(&exported).unwrap(), config);
    for nothing in [
        json!({"rope_parameters": {"rope_theta": null}}),
        json!({"rope_parameters": null, "rope_scaling": {}}),
    ] {
        let source = with(dbrx(), nothing);
        let exported = parse(&source).unwrap().exported(&source);
        assert_eq!(exported["rope_parameters"]["rope_theta"], json!(500_000.0));
        assert_eq!(exported.get("rope_scaling"), source.get("rope_scaling"));
        assert_eq!(parse(&exported).unwrap(), parse(&dbrx()).unwrap());
    }
    assert_eq!(parse(&mixtral()).unwrap().exported(&mixtral()), mixtral());
}

#[test]
fn only_active_experts_count_as_active() {
    let config = parse(&mixtral()).unwrap();
    let (expert, router) = (3 * 64 * 96, 6 * 64);
    let block = 2 * 64 * 64 + 2 * 64 * 32 + router + 2 * 64;
    let outside = 2 * 100 * 64 + 64;
    assert_eq!(config.parameter_count(), outside + 2 * (block + 6 * expert));
    assert_eq!(config.active_parameter_count(), outside + 2 * (block + 2 * expert));
    let all = config.parameter_count();
    assert_eq!((config.stored_bytes(), config.training_state_bytes()), (2 * all, 16 * all));
    let work = TrainingWork { tokens: 10, loss_tokens: 4, squared_lengths: 50 };
    let products = 10 * (64 + 2 * (block + 2 * expert)) + 4 * 100 * 64;
    let attention = 2 * 64 * 50;
    assert_eq!(config.training_flops(work), (6 * (products + attention)) as f64);
    let per_token = config.training_flops_per_token(20);
    let products = 6 * (100 * 64 + 64 + 2 * (block + 2 * expert));
    assert_eq!(per_token.full, (products + 12 * 2 * 64 * 20) as f64);
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let cases = [
        (
            with(mixtral(), json!({"router_jitter_noise": 0.1})),
            "`router_jitter_noise` is 0.1, which is not supported: tokens are routed without noise, set it to 0.0",
        ),
        (
            with(mixtral(), json!({"num_experts_per_tok": 7})),
            "`num_experts_per_tok` is 7; expected a whole number up to `num_local_experts`, which is 6",
        ),
        (
            with(mixtral(), json!({"num_local_experts": 0})),
            "`num_local_experts` is 0; expected a whole number",
        ),
        (
            with(mixtral(), json!({"num_local_experts": 1_u64 << 31})),
            "`num_local_experts` is 2147483648; expected a whole number from 1 to 4096",
        ),
        (
            with(mixtral(), json!({"num_local_experts": 4096, "num_hidden_layers": 25})),
            "`num_local_experts` is 4096; expected at most 100000 experts in all blocks, \
             of which `num_hidden_layers` says there are 25",
        ),
        (
            with(dbrx(), json!({"n_layers": 4097})),
            "`n_layers` is 4097; expected a whole number from 1 to 4096",
        ),
        (
            with(mixtral(), json!({"router_aux_loss_coef": -1})),
            "`router_aux_loss_coef` is -1; expected 0, or a number from 1e-12 to 1e12",
        ),
        (
            with(mixtral(), json!({"router_aux_loss_coef": 1e39})),
            "`router_aux_loss_coef` is 1e+39; expected 0, or a number from 1e-12 to 1e12",
        ),
        (
            with(mixtral(), json!({"rms_norm_eps": 1e-46})),
            "`rms_norm_eps` is 1e-46; expected a number from 1e-12 to 1",
        ),
        (
            with(mixtral(), json!({"model_type": "dbrx"})),
            "`architectures`: Mixtral contradicts `model_type`: DBRX",
        ),
        (
            with(dbrx(), json!({"tie_word_embeddings": true})),
            "`tie_word_embeddings` is true, which is not supported",
        ),
        (with(dbrx(), json!({"resid_pdrop": 0.1})), "`resid_pdrop` is 0.1, which is not supported"),
        (with(dbrx(), json!({"attn_config": "absent"})), "`attn_config` is missing; expected an object"),
        (with(dbrx(), json!({"ffn_config": 3})), "`ffn_config` is 3; expected an object or null"),
        (
            with(dbrx(), json!({"n_heads": 10})),
            "`d_model`: 64 contradicts `n_heads`: 10; the heads must divide the width",
        ),
        (with(dbrx(), json!({"n_heads": 64})), "`d_model / n_heads` is 1; expected an even number"),
    ];
    for (config, expected) in cases {
        let message = parse(&config).unwrap_err().to_string();
        assert!(message.starts_with("m/config.json: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn keys_within_objects_are_named_whole() {
    let cases = [
        (
            "attn_config",
            json!({"attn_pdrop": 0.1}),
            "`attn_config.attn_pdrop` is 0.1, which is not supported",
        ),
        (
            "attn_config",
            json!({"clip_qkv": 0}),
            "`attn_config.clip_qkv` is 0; expected a number from 1e-12 to 1e12, or null",
        ),
        (
            "attn_config",
            json!({"clip_qkv": 1e39}),
            "`attn_config.clip_qkv` is 1e+39; expected a number from 1e-12 to 1e12, or null",
        ),
        (
            "ffn_config",
            json!({"moe_loss_weight": 1e39}),
            "`ffn_config.moe_loss_weight` is 1e+39; expected 0, or a number from 1e-12 to 1e12",
        ),
        (
            "ffn_config",
            json!({"moe_num_experts": 4097}),
            "`ffn_config.moe_num_experts` is 4097; expected a whole number from 1 to 4096",
        ),
        (
            "ffn_config",
            json!({"ffn_act_fn": {"activation": "silu"}}),
            "`ffn_config.ffn_act_fn.name` is missing; expected \"silu\"",
        ),
        (
            "attn_config",
            json!({"kv_n_heads": 3}),
            "`attn_config.kv_n_heads` is 3; expected a divisor of `n_heads`, which is 8",
        ),
        (
            "ffn_config",
            json!({"moe_jitter_eps": 0.01}),
            "`ffn_config.moe_jitter_eps` is 0.01, which is not supported",
        ),
        (
            "ffn_config",
            json!({"uniform_expert_assignment": true}),
            "`ffn_config.uniform_expert_assignment` is true, which is not supported: the router chooses",
        ),
        (
            "ffn_config",
            json!({"ffn_act_fn": {"name": "gelu"}}),
            "`ffn_config.ffn_act_fn.name` is \"gelu\", which is not supported: only \"silu\" is",
        ),
        (
            "ffn_config",
            json!({"moe_normalize_expert_weights": 0}),
            "`ffn_config.moe_normalize_expert_weights` is 0; expected the order of a norm, a number from 1 to 16, or null",
        ),
        (
            "ffn_config",
            json!({"moe_normalize_expert_weights": 1000}),
            "`ffn_config.moe_normalize_expert_weights` is 1000; expected the order of a norm",
        ),
        (
            "ffn_config",
            json!({"moe_top_k": 9}),
            "`ffn_config.moe_top_k` is 9; expected a whole number up to `ffn_config.moe_num_experts`, which is 8",
        ),
        ("ffn_config", json!({"ffn_hidden_size": "absent"}), "`ffn_config.ffn_hidden_size` is missing"),
    ];
    for (key, changes, expected) in cases {
        let message = parse(&with_inner(dbrx(), key, changes)).unwrap_err().to_string();
        assert!(message.starts_with("m/config.json: ") && message.contains(expected), "{message}");
    }
}
