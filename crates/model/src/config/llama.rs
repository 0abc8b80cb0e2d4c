//! The `config.json` of Llama, Mistral and Mixtral: the same keys with other defaults, and experts in Mixtral.

use super::fields::Fields;
use super::shared::{DefaultTokens, SMALLEST_NUMBER};
use super::{ConfigError, ExpertsConfig, Family, ModelConfig, NormKind, RopeConfig, shared};

/// What stands for an absent key, as in `LlamaConfig`, `MistralConfig` and `MixtralConfig` of `transformers`.
struct Defaults {
    /// One for each query head where `None`, which is also what a `null` means in every family.
    num_key_value_heads: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    sliding_window: Option<usize>,
    rope_theta: f64,
    tokens: DefaultTokens,
}

impl Defaults {
    const LLAMA: Self = Self {
        num_key_value_heads: None,
        max_position_embeddings: 2048,
        rms_norm_eps: 1.0e-6,
        sliding_window: None,
        rope_theta: 10_000.0,
        tokens: DefaultTokens { bos: Some(1), eos: Some(2) },
    };
    const MISTRAL: Self = Self {
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        sliding_window: Some(4096),
        ..Self::LLAMA
    };
    const MIXTRAL: Self =
        Self { rms_norm_eps: 1.0e-5, sliding_window: None, rope_theta: 1_000_000.0, ..Self::MISTRAL };
}

/// The fields as `transformers` reads them, absent ones with its defaults.
///
/// `attention_bias` and `mlp_bias` are Llama's alone, a sliding window the others': `transformers` ignores the keys
/// elsewhere.
pub(super) fn read(family: Family, fields: &Fields<'_>) -> Result<ModelConfig, ConfigError> {
    let defaults = match family {
        Family::Llama => Defaults::LLAMA,
        Family::Mixtral => Defaults::MIXTRAL,
        _ => Defaults::MISTRAL,
    };
    let hidden_size = fields.required_size("hidden_size")?;
    let num_attention_heads = fields.required_size("num_attention_heads")?;
    let of_llama = |key| Ok::<_, ConfigError>(family == Family::Llama && fields.flag(key)?);
    Ok(ModelConfig {
        family,
        hidden_size,
        intermediate_size: fields.required_size("intermediate_size")?,
        num_hidden_layers: fields.required_size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: defaults.key_value_heads(fields, num_attention_heads)?,
        head_dim: head_dim(fields, hidden_size, num_attention_heads)?,
        vocab_size: fields.required_size("vocab_size")?,
        max_position_embeddings: fields
            .size("max_position_embeddings")?
            .unwrap_or(defaults.max_position_embeddings),
        norm: NormKind::RmsNorm,
        norm_epsilon: fields
            .number("rms_norm_eps", "a number from 1e-12 to 1, such as 1e-05", |epsilon| {
                (SMALLEST_NUMBER..=1.0).contains(&epsilon)
            })?
            .unwrap_or(defaults.rms_norm_eps),
        tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        attention_bias: of_llama("attention_bias")?,
        mlp_bias: of_llama("mlp_bias")?,
        clip_qkv: None,
        experts: (family == Family::Mixtral).then(|| experts(fields)).transpose()?,
        sliding_window: if family == Family::Llama { None } else { defaults.window(fields)? },
        rope: RopeConfig::read(fields, None, defaults.rope_theta)?,
        initializer_range: shared::initializer_range(fields)?,
        bos_token_id: shared::bos_token_id(fields, defaults.tokens)?,
        eos_token_ids: shared::eos_token_ids(fields, defaults.tokens)?,
        stored_dtype: shared::stored_dtype(fields)?,
    })
}

impl Defaults {
    fn key_value_heads(&self, fields: &Fields<'_>, heads: usize) -> Result<usize, ConfigError> {
        let absent = if fields.has("num_key_value_heads") { None } else { self.num_key_value_heads };
        Ok(fields.size("num_key_value_heads")?.or(absent).unwrap_or(heads))
    }

    /// None where the key is `null`.
    fn window(&self, fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
        let absent = if fields.has("sliding_window") { None } else { self.sliding_window };
        Ok(fields.size("sliding_window")?.or(absent))
    }
}

/// Mixtral's experts. A token's weights sum to one. The load-balancing loss is always part of the loss, whatever
/// `output_router_logits` says: that key decides in `transformers` what a forward returns, and is left off in every
/// published config.
fn experts(fields: &Fields<'_>) -> Result<ExpertsConfig, ConfigError> {
    shared::refuse_jitter(fields, "router_jitter_noise")?;
    Ok(ExpertsConfig {
        count: fields.size("num_local_experts")?.unwrap_or(8),
        active: fields.size("num_experts_per_tok")?.unwrap_or(2),
        weight_norm: Some(1.0),
        balance_loss_coefficient: shared::balance_loss_coefficient(fields, "router_aux_loss_coef", 0.001)?,
    })
}

/// Explicit, or the residual stream's width divided among the query heads.
fn head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    match fields.size("head_dim")? {
        Some(explicit) => Ok(explicit),
        None => shared::divided_head_dim(
            fields,
            ("hidden_size", hidden_size),
            ("num_attention_heads", heads),
            "the heads must divide the width, or `head_dim` must be given",
        ),
    }
}
