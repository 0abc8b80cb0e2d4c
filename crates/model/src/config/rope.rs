//! Rotary position embedding: its base, its scaling, and the inverse frequencies that follow.
//!
//! Every spelling is read: `rope_theta` beside `rope_scaling`, which may hold the base too, `rope_parameters`, which holds
//! both, and DBRX's `attn_config.rope_theta`. The formulas are those of `transformers`, `modeling_rope_utils.py`.

use std::f64::consts::PI;

use serde_json::Value;

use super::ConfigError;
use super::fields::Fields;

/// Rotary position embedding as a model was trained with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// The base θ of the geometric series of frequencies.
    pub theta: f64,
    /// How the frequencies were stretched to a longer context.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched beyond the context of the first pre-training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as the base gives them (`rope_type: default`).
    None,
    /// Llama 3.1's: long wavelengths divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// What long wavelengths are stretched by.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` count as long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` count as short.
        high_freq_factor: f64,
        /// The context of the first pre-training, in tokens.
        original_max_position_embeddings: usize,
    },
    /// Every frequency divided by `factor` (position interpolation).
    Linear {
        /// What positions are divided by.
        factor: f64,
    },
    /// NTK scaling that grows with the sequence once it passes `max_position_embeddings`, and has no effect
    /// within it. Training stays within it, so the factor never enters a frequency here.
    Dynamic {
        /// The growth that applies beyond `max_position_embeddings`.
        factor: f64,
    },
}

impl RopeConfig {
    /// Reads every spelling there is; those that are there must agree. `attention` is an object within the config that may
    /// hold the base too, `default_theta` the base where none does.
    pub(super) fn read(
        fields: &Fields<'_>,
        attention: Option<&Fields<'_>>,
        default_theta: f64,
    ) -> Result<Self, ConfigError> {
        let parameters = fields.object("rope_parameters", "rope_parameters.")?;
        let scaling = fields.object("rope_scaling", "rope_scaling.")?;
        let mut thetas = Vec::new();
        for fields in [Some(fields), scaling.as_ref(), parameters.as_ref(), attention].into_iter().flatten() {
            refuse_partial_rotation(fields)?;
            thetas.extend(theta(fields)?.map(|theta| (fields.name("rope_theta"), theta)));
        }
        let mut scalings = Vec::new();
        for (key, object) in [("rope_scaling", &scaling), ("rope_parameters", &parameters)] {
            let read = object.as_ref().map(RopeScaling::read).transpose()?.flatten();
            scalings.extend(read.map(|scaling| (key.to_owned(), scaling)));
        }
        Ok(Self {
            theta: agreeing(fields, thetas)?.unwrap_or(default_theta),
            scaling: agreeing(fields, scalings)?.unwrap_or(RopeScaling::None),
        })
    }

    /// The angle by which each pair of dimensions turns from one position to the next, in radians:
    /// `head_dim / 2` values, pair `i` being dimensions `i` and `i + head_dim / 2` (the rotate-half order).
    ///
    /// Unscaled `θ^(−2i / head_dim)`; then as [`RopeScaling`] says
    /// (`_compute_{default,linear_scaling,dynamic_ntk,llama3}_parameters` of `modeling_rope_utils.py`).
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f64> {
        let unscaled = |pair: usize| self.theta.powf(-2.0 * pair as f64 / head_dim as f64);
        (0..head_dim / 2).map(|pair| self.scaling.apply(unscaled(pair))).collect()
    }
}

fn theta(fields: &Fields<'_>) -> Result<Option<f64>, ConfigError> {
    fields.number("rope_theta", "a number above 1, such as 500000.0", |theta| theta > 1.0)
}

/// What all spellings of a value that are there say; each is a key with its value.
fn agreeing<T: Copy + PartialEq + std::fmt::Debug>(
    fields: &Fields<'_>,
    spellings: Vec<(String, T)>,
) -> Result<Option<T>, ConfigError> {
    let Some((first_key, first)) = spellings.first() else { return Ok(None) };
    match spellings.iter().find(|(_, value)| value != first) {
        Some((second_key, second)) => Err(ConfigError::Contradiction {
            path: fields.path().to_owned(),
            first: format!("`{first_key}`: {first:?}"),
            second: format!("`{second_key}`: {second:?}"),
            fix: "keep the one that the model was trained with and remove the other".to_owned(),
        }),
        None => Ok(Some(*first)),
    }
}

fn refuse_partial_rotation(fields: &Fields<'_>) -> Result<(), ConfigError> {
    match fields.get("partial_rotary_factor").filter(|factor| factor.as_f64() != Some(1.0)) {
        Some(factor) => {
            Err(fields.unsupported("partial_rotary_factor", factor, "whole heads are rotated, only 1.0 is"))
        }
        None => Ok(()),
    }
}

impl RopeScaling {
    /// Reads `rope_scaling`, or the scaling in `rope_parameters`; nothing where it names no type. `type` is the
    /// older name of `rope_type`.
    fn read(fields: &Fields<'_>) -> Result<Option<Self>, ConfigError> {
        let key = if fields.get("rope_type").is_some() { "rope_type" } else { "type" };
        let Some(rope_type) = fields.text(key)? else { return Ok(None) };
        let scaling = match rope_type {
            "default" => Self::None,
            "linear" => Self::Linear { factor: required_factor(fields, "factor")? },
            "dynamic" => Self::Dynamic { factor: required_factor(fields, "factor")? },
            "llama3" => Self::read_llama3(fields)?,
            other => {
                let supported = "the supported ones are \"default\", \"llama3\", \"linear\" and \"dynamic\"";
                return Err(fields.unsupported(key, &Value::from(other), supported));
            }
        };
        Ok(Some(scaling))
    }

    fn read_llama3(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let low_freq_factor = required_factor(fields, "low_freq_factor")?;
        let high_freq_factor = required_factor(fields, "high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            let expected = format!("a number above low_freq_factor, which is {low_freq_factor}");
            return Err(fields.unfit("high_freq_factor", &Value::from(high_freq_factor), &expected));
        }
        Ok(Self::Llama3 {
            factor: required_factor(fields, "factor")?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: fields.required_size("original_max_position_embeddings")?,
        })
    }

    /// One inverse frequency, stretched.
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::None | Self::Dynamic { .. } => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                // Turns over the original context: what the two thresholds are compared with.
                let turns = original_max_position_embeddings as f64 * frequency / (2.0 * PI);
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = smooth.clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}

/// A factor with which every frequency stays a finite number of fp32.
fn required_factor(fields: &Fields<'_>, key: &str) -> Result<f64, ConfigError> {
    let expected = "a number from 1e-6 to 1e6";
    let fits = |factor| (1.0e-6..=1.0e6).contains(&factor);
    fields.number(key, expected, fits)?.ok_or_else(|| fields.missing(key, expected))
}
