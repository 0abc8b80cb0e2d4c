//! The keys that mean the same in every family.

use serde_json::Value;

use super::fields::Fields;
use super::{ConfigError, TorchDType};

/// The bounds of numbers that a forward and a backward compute with: what follows from them, and their third powers, stays
/// normal in fp32.
pub(super) const SMALLEST_NUMBER: f64 = 1.0e-12;
pub(super) const LARGEST_NUMBER: f64 = 1.0e12;

/// The token that begins a text and the one that ends it, where a config has no keys for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct DefaultTokens {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

/// The standard deviation of freshly drawn weights.
pub(super) fn initializer_range(fields: &Fields<'_>) -> Result<f64, ConfigError> {
    const DEFAULT: f64 = 0.02;
    Ok(number_or_zero(fields, "initializer_range")?.unwrap_or(DEFAULT))
}

/// The token that begins a text; none where the key is `null`.
pub(super) fn bos_token_id(fields: &Fields<'_>, default: DefaultTokens) -> Result<Option<u32>, ConfigError> {
    if !fields.has("bos_token_id") {
        return Ok(default.bos);
    }
    fields.read("bos_token_id", "a token id: a whole number of at least 0", token_id)
}

/// The tokens that end a text; none where the key is `null`.
pub(super) fn eos_token_ids(fields: &Fields<'_>, default: DefaultTokens) -> Result<Vec<u32>, ConfigError> {
    if !fields.has("eos_token_id") {
        return Ok(Vec::from_iter(default.eos));
    }
    let ids = fields.read("eos_token_id", "a token id or a list of them", |value| match value {
        Value::Array(values) => values.iter().map(token_id).collect(),
        single => token_id(single).map(|id| vec![id]),
    })?;
    Ok(ids.unwrap_or_default())
}

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// `dtype` as transformers 5 writes it, or `torch_dtype` as the hub's files have it.
pub(super) fn stored_dtype(fields: &Fields<'_>) -> Result<Option<TorchDType>, ConfigError> {
    let key = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    fields.read(key, "\"float32\", \"bfloat16\" or \"float16\"", |value| match value.as_str()? {
        "float32" => Some(TorchDType::Float32),
        "bfloat16" => Some(TorchDType::BFloat16),
        "float16" => Some(TorchDType::Float16),
        _ => None,
    })
}

/// The residual stream's width divided among the query heads.
pub(super) fn divided_head_dim(
    fields: &Fields<'_>,
    (width_key, width): (&str, usize),
    (heads_key, heads): (&str, usize),
    fix: &str,
) -> Result<usize, ConfigError> {
    if width.is_multiple_of(heads) {
        return Ok(width / heads);
    }
    Err(ConfigError::Contradiction {
        path: fields.path().to_owned(),
        first: format!("`{width_key}`: {width}"),
        second: format!("`{heads_key}`: {heads}"),
        fix: fix.to_owned(),
    })
}

/// What the load-balancing loss is multiplied with.
pub(super) fn balance_loss_coefficient(
    fields: &Fields<'_>,
    key: &str,
    default: f64,
) -> Result<f64, ConfigError> {
    Ok(number_or_zero(fields, key)?.unwrap_or(default))
}

/// 0, or a number that can be computed with.
fn number_or_zero(fields: &Fields<'_>, key: &str) -> Result<Option<f64>, ConfigError> {
    let fits = |value| value == 0.0 || (SMALLEST_NUMBER..=LARGEST_NUMBER).contains(&value);
    fields.number(key, "0, or a number from 1e-12 to 1e12, such as 0.02", fits)
}

/// Refuses fields that change what a model computes in ways that are not implemented.
pub(super) fn refuse_what_is_not_trained(fields: &Fields<'_>) -> Result<(), ConfigError> {
    if let Some(activation) = fields.get("hidden_act").filter(|activation| *activation != "silu") {
        return Err(fields.unsupported("hidden_act", activation, "only \"silu\" is"));
    }
    if let Some(quantization) = fields.get("quantization_config") {
        let fix = "every parameter is trained, so fetch the model's unquantised weights";
        return Err(fields.unsupported("quantization_config", quantization, fix));
    }
    refuse_dropout(fields)
}

/// Refuses dropout of any kind.
pub(super) fn refuse_dropout(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let is_dropout = |key: &str| key.contains("dropout") || key.ends_with("_pdrop");
    fields.iter().filter(|(key, _)| is_dropout(key)).try_for_each(|(key, _)| {
        refuse_unless_zero(fields, key, "training runs without dropout, set it to 0.0")
    })
}

/// Refuses noise on the router's input, which no backward here repeats.
pub(super) fn refuse_jitter(fields: &Fields<'_>, key: &str) -> Result<(), ConfigError> {
    refuse_unless_zero(fields, key, "tokens are routed without noise, set it to 0.0")
}

/// Refuses a value that is there and not the number 0; `supported` says why.
fn refuse_unless_zero(fields: &Fields<'_>, key: &str, supported: &str) -> Result<(), ConfigError> {
    match fields.get(key).filter(|value| value.as_f64() != Some(0.0)) {
        Some(value) => Err(fields.unsupported(key, value, supported)),
        None => Ok(()),
    }
}
