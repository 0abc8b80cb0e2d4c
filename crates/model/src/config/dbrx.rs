//! The `config.json` of DBRX: keys of its own, attention and experts in objects of their own.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::shared::{DefaultTokens, LARGEST_NUMBER, SMALLEST_NUMBER};
use super::{ConfigError, ExpertsConfig, Family, ModelConfig, NormKind, RopeConfig, shared};

/// The base where a config gives none, as in the model's original code.
const ROPE_THETA: f64 = 10_000.0;
/// ε of torch's LayerNorm, which DBRX leaves as it is.
const NORM_EPSILON: f64 = 1.0e-5;
/// The vocabulary is tiktoken's, of which `transformers` supposes nothing.
const TOKENS: DefaultTokens = DefaultTokens { bos: None, eos: None };
/// Orders of a norm with which the powers of a token's probabilities, in fp64, still add up to more than 0.
const NORM_ORDERS: RangeInclusive<f64> = 1.0..=16.0;

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
        clip_qkv: attention.number("clip_qkv", "a number from 1e-12 to 1e12, or null", |bound| {
            (SMALLEST_NUMBER..=LARGEST_NUMBER).contains(&bound)
        })?,
        experts: Some(experts(&feed_forward)?),
        sliding_window: None,
        rope: RopeConfig::read(fields, Some(&attention), ROPE_THETA)?,
        initializer_range: shared::initializer_range(fields)?,
        bos_token_id: shared::bos_token_id(fields, TOKENS)?,
        eos_token_ids: shared::eos_token_ids(fields, TOKENS)?,
        stored_dtype: shared::stored_dtype(fields)?,
    })
}

/// The config with the rotary base in all of its places: version 5 of `transformers` computes with `rope_parameters`, or with
/// `rope_scaling` alone where there is one, and cannot do without `attn_config.rope_theta`, which is the one that versions
/// before it and the original code read.
pub(super) fn with_both_bases(source: &Value, theta: f64) -> Value {
    let mut exported = source.clone();
    let object_at = |key: &str| source.get(key).and_then(Value::as_object).cloned();
    let scaling = object_at("rope_scaling").filter(|scaling| !scaling.is_empty());
    let parameters = object_at("rope_parameters")
        .or_else(|| scaling.clone())
        .unwrap_or_else(|| Map::from_iter([("rope_type".to_owned(), json!("default"))]));
    let attention = object_at("attn_config").unwrap_or_default();
    let holders =
        [("rope_parameters", Some(parameters)), ("rope_scaling", scaling), ("attn_config", Some(attention))];
    if let Some(exported) = exported.as_object_mut() {
        for (key, holder) in holders {
            let Some(mut holder) = holder else { continue };
            if holder.get("rope_theta").is_none_or(Value::is_null) {
                holder.insert("rope_theta".to_owned(), json!(theta));
            }
            exported.insert(key.to_owned(), holder.into());
        }
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
        "the order of a norm, a number from 1 to 16, or null",
        |order| NORM_ORDERS.contains(&order),
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
    match activation.get("name") {
        Some(name) if name == "silu" => Ok(()),
        Some(name) => Err(activation.unsupported("name", name, "only \"silu\" is")),
        None => Err(activation.missing("name", "\"silu\"")),
    }
}
