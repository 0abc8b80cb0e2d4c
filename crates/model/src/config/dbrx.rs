//! The `config.json` of DBRX: keys of its own, attention and experts in objects of their own.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{ConfigError, ExpertsConfig, Family, ModelConfig, NormKind, RopeConfig, shared};

/// The base where a config gives none, as in the model's original code.
const ROPE_THETA: f64 = 10_000.0;
/// ε of torch's LayerNorm, which DBRX leaves as it is.
const NORM_EPSILON: f64 = 1.0e-5;

/// The fields as `transformers` reads them (`DbrxConfig`, `DbrxAttentionConfig`, `DbrxFFNConfig`), but for the rotary base:
/// the models were trained with `attn_config.rope_theta`, which version 5 no longer reads.
pub(super) fn read(fields: &Fields<'_>) -> Result<ModelConfig, ConfigError> {
    let attention = required_object(fields, "attn_config", "attn_config.")?;
    let feed_forward = required_object(fields, "ffn_config", "ffn_config.")?;
    refuse_what_is_not_trained(fields, &attention, &feed_forward)?;
    let (hidden_size, heads) = (fields.required_size("d_model")?, fields.required_size("n_heads")?);
    Ok(ModelConfig {
        family: Family::Dbrx,
        hidden_size,
        intermediate_size: feed_forward.required_size("ffn_hidden_size")?,
        num_hidden_layers: fields.required_size("n_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: attention.size("kv_n_heads")?.unwrap_or(1),
        head_dim: shared::divided_head_dim(
            fields,
            ("d_model", hidden_size),
            ("n_heads", heads),
            "the heads must divide the width",
        )?,
        vocab_size: fields.required_size("vocab_size")?,
        max_position_embeddings: fields.size("max_seq_len")?.unwrap_or(2048),
        norm: NormKind::LayerNorm,
        norm_epsilon: NORM_EPSILON,
        tie_word_embeddings: false,
        attention_bias: false,
        mlp_bias: false,
        clip_qkv: attention.number("clip_qkv", "a number above 0 or null", |bound| bound > 0.0)?,
        experts: Some(experts(&feed_forward)?),
        sliding_window: None,
        rope: RopeConfig::read(fields, Some(&attention), ROPE_THETA)?,
        initializer_range: shared::initializer_range(fields)?,
        bos_token_id: shared::bos_token_id(fields)?,
        eos_token_ids: shared::eos_token_ids(fields)?,
        stored_dtype: shared::stored_dtype(fields)?,
    })
}

/// The config with the rotary base in both of its places: version 5 of `transformers` computes with `rope_parameters` and
/// cannot do without `attn_config.rope_theta`, which is the one that versions before it and the original code read.
pub(super) fn with_both_bases(source: &Value, theta: f64) -> Value {
    let mut exported = source.clone();
    let object_at = |key: &str| source.get(key).and_then(Value::as_object).cloned();
    let mut parameters = object_at("rope_parameters")
        .or_else(|| object_at("rope_scaling"))
        .unwrap_or_else(|| Map::from_iter([("rope_type".to_owned(), json!("default"))]));
    let mut attention = object_at("attn_config").unwrap_or_default();
    for object in [&mut parameters, &mut attention] {
        object.entry("rope_theta").or_insert(json!(theta));
    }
    if let Some(exported) = exported.as_object_mut() {
        exported.insert("rope_parameters".to_owned(), parameters.into());
        exported.insert("attn_config".to_owned(), attention.into());
    }
    exported
}

fn required_object<'json>(
    fields: &Fields<'json>,
    key: &str,
    prefix: &'static str,
) -> Result<Fields<'json>, ConfigError> {
    fields.object(key, prefix)?.ok_or_else(|| fields.missing(key, "an object"))
}

fn experts(fields: &Fields<'_>) -> Result<ExpertsConfig, ConfigError> {
    let order = fields.number(
        "moe_normalize_expert_weights",
        "the order of a norm, a number above 0, or null",
        |order| order > 0.0,
    )?;
    let absent = if fields.has("moe_normalize_expert_weights") { None } else { Some(1.0) };
    Ok(ExpertsConfig {
        count: fields.size("moe_num_experts")?.unwrap_or(4),
        active: fields.size("moe_top_k")?.unwrap_or(1),
        weight_norm: order.or(absent),
        balance_loss_coefficient: shared::balance_loss_coefficient(fields, "moe_loss_weight", 0.01)?,
    })
}

/// Refuses fields of DBRX that change what a model computes in ways that are not implemented.
fn refuse_what_is_not_trained(
    fields: &Fields<'_>,
    attention: &Fields<'_>,
    feed_forward: &Fields<'_>,
) -> Result<(), ConfigError> {
    if fields.flag("tie_word_embeddings")? {
        let supported = "the head of a DBRX model is a matrix of its own, set it to false";
        return Err(fields.unsupported("tie_word_embeddings", &Value::Bool(true), supported));
    }
    shared::refuse_dropout(attention)?;
    shared::refuse_jitter(feed_forward, "moe_jitter_eps")?;
    if feed_forward.flag("uniform_expert_assignment")? {
        let supported = "the router chooses the experts, set it to false";
        return Err(feed_forward.unsupported("uniform_expert_assignment", &Value::Bool(true), supported));
    }
    let Some(activation) = feed_forward.object("ffn_act_fn", "ffn_config.ffn_act_fn.")? else {
        return Ok(());
    };
    match activation.get("name").filter(|name| *name != "silu") {
        Some(name) => Err(activation.unsupported("name", name, "only \"silu\" is")),
        None => Ok(()),
    }
}
