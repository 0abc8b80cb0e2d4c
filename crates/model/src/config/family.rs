//! The families and how a `config.json` names them.

use std::fmt;

use serde_json::Value;

use super::ConfigError;
use super::fields::Fields;

/// A family of models: what its config means and what its tensors are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`: Llama 2, Code Llama, Llama 3 to 3.2, SmolLM2.
    Llama,
    /// `MistralForCausalLM`: the same block, its attention bounded by a sliding window in v0.1.
    Mistral,
    /// `MixtralForCausalLM`: Mistral's block with experts in place of the feed-forward layer.
    Mixtral,
    /// `DbrxForCausalLM`: experts, clamped queries, keys and values, and LayerNorm.
    Dbrx,
}

/// What a family's `config.json` calls the sizes, with dots between levels.
#[derive(Debug, Clone, Copy)]
pub(super) struct SizeKeys {
    pub hidden_size: &'static str,
    pub intermediate_size: &'static str,
    pub num_hidden_layers: &'static str,
    pub num_attention_heads: &'static str,
    pub num_key_value_heads: &'static str,
    pub head_dim: &'static str,
    pub max_position_embeddings: &'static str,
    pub experts: &'static str,
    pub active_experts: &'static str,
}

const LLAMA_KEYS: SizeKeys = SizeKeys {
    hidden_size: "hidden_size",
    intermediate_size: "intermediate_size",
    num_hidden_layers: "num_hidden_layers",
    num_attention_heads: "num_attention_heads",
    num_key_value_heads: "num_key_value_heads",
    head_dim: "head_dim",
    max_position_embeddings: "max_position_embeddings",
    experts: "num_local_experts",
    active_experts: "num_experts_per_tok",
};

const DBRX_KEYS: SizeKeys = SizeKeys {
    hidden_size: "d_model",
    intermediate_size: "ffn_config.ffn_hidden_size",
    num_hidden_layers: "n_layers",
    num_attention_heads: "n_heads",
    num_key_value_heads: "attn_config.kv_n_heads",
    head_dim: "d_model / n_heads",
    max_position_embeddings: "max_seq_len",
    experts: "ffn_config.moe_num_experts",
    active_experts: "ffn_config.moe_top_k",
};

/// A family, its `architectures` entry and its `model_type`.
type Row = (Family, &'static str, &'static str);

impl Family {
    /// Every family with its `architectures` entry and its `model_type`.
    const ALL: [Row; 4] = [
        (Self::Llama, "LlamaForCausalLM", "llama"),
        (Self::Mistral, "MistralForCausalLM", "mistral"),
        (Self::Mixtral, "MixtralForCausalLM", "mixtral"),
        (Self::Dbrx, "DbrxForCausalLM", "dbrx"),
    ];

    /// The family that `architectures` names, or `model_type` where that is absent.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let model_type =
            Self::named_by(fields, "model_type", fields.get("model_type"), |(.., model_type)| model_type)?;
        let architecture = match fields.get("architectures") {
            Some(Value::Array(names)) if names.len() == 1 => {
                Self::named_by(fields, "architectures", names.first(), |(_, architecture, _)| architecture)?
            }
            None => None,
            Some(other) => return Err(fields.unfit("architectures", other, "a list of one name")),
        };
        match (architecture, model_type) {
            (Some(architecture), Some(model_type)) if architecture != model_type => {
                Err(ConfigError::Contradiction {
                    path: fields.path().to_owned(),
                    first: format!("`architectures`: {architecture}"),
                    second: format!("`model_type`: {model_type}"),
                    fix: "make both name the same family".to_owned(),
                })
            }
            (Some(family), _) | (None, Some(family)) => Ok(family),
            (None, None) => Err(fields.missing("architectures", &Self::supported())),
        }
    }

    /// The family that `value` names as `name` spells it.
    fn named_by(
        fields: &Fields<'_>,
        key: &str,
        value: Option<&Value>,
        name: fn(Row) -> &'static str,
    ) -> Result<Option<Self>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        Self::ALL
            .into_iter()
            .find(|row| value == name(*row))
            .map(|(family, ..)| Some(family))
            .ok_or_else(|| fields.unsupported(key, value, &Self::supported()))
    }

    fn supported() -> String {
        let names = Self::ALL.map(|(_, architecture, model_type)| format!("{architecture} ({model_type})"));
        format!("the supported architectures are {}", names.join(", "))
    }

    pub(super) fn keys(self) -> SizeKeys {
        match self {
            Self::Llama | Self::Mistral | Self::Mixtral => LLAMA_KEYS,
            Self::Dbrx => DBRX_KEYS,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Mixtral => "Mixtral",
            Self::Dbrx => "DBRX",
        })
    }
}
