//! The config of a Llama or Mistral model: the same blocks, which differ in defaults and the sliding window.

use std::fs;
use std::path::Path;
use tessera_ops::attention::Heads;

use serde_json::Value;

use super::fields::{Fields, LARGEST_SIZE};
use super::{ConfigError, RopeConfig};

/// The families that share Llama's block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`: Llama 2, Code Llama, Llama 3 to 3.2, SmolLM2.
    Llama,
    /// `MistralForCausalLM`: the same block, its attention bounded by a sliding window in v0.1.
    Mistral,
}

/// The element type that `torch_dtype` (or `dtype`) names: what the weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TorchDType {
    /// `float32`
    Float32,
    /// `bfloat16`
    BFloat16,
    /// `float16`
    Float16,
}

/// A Llama-like model's shape, every field known.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Which architecture the file names.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward network's inner layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads, a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head, even. `num_attention_heads · head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Rows of the embedding and of the head; a tokenizer may use fewer.
    pub vocab_size: usize,
    /// The longest context the model was trained for, in tokens.
    pub max_position_embeddings: usize,
    /// ε of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Whether the head shares the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// Whether the four attention projections have biases.
    pub attention_bias: bool,
    /// Whether the three feed-forward projections have biases.
    pub mlp_bias: bool,
    /// How many positions back, itself included, a token attends to; everything where `None`.
    pub sliding_window: Option<usize>,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// The token that begins a text, where the model has one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text: none, one or several.
    pub eos_token_ids: Vec<u32>,
    /// What the weights are stored in, where the file says so.
    pub stored_dtype: Option<TorchDType>,
}

impl LlamaConfig {
    /// The attention heads of every block.
    pub fn heads(&self) -> Heads {
        Heads {
            query: self.num_attention_heads,
            key_value: self.num_key_value_heads,
            size: self.head_dim,
            window: self.sliding_window,
        }
    }

    /// Reads and checks the `config.json` at `path`.
    ///
    /// # Errors
    /// When the file cannot be read, is no JSON, or describes a model that cannot be trained.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads and checks the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// When the text is no JSON or describes a model that cannot be trained.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let json: Value = serde_json::from_str(text)
            .map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
        let fields = Fields::of_file(path, &json)?;
        let family = Family::read(&fields)?;
        refuse_what_is_not_trained(&fields)?;
        let config = Self::read(family, &fields)?;
        config.check(path)?;
        Ok(config)
    }

    /// The fields as `transformers` reads them (`LlamaConfig`, `MistralConfig`), absent ones with its defaults.
    fn read(family: Family, fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let hidden_size = fields.required_size("hidden_size")?;
        let num_attention_heads = fields.required_size("num_attention_heads")?;
        let of_llama = |key| Ok::<_, ConfigError>(family == Family::Llama && fields.flag(key)?);
        Ok(Self {
            family,
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size")?,
            num_hidden_layers: fields.required_size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: family.num_key_value_heads(fields, num_attention_heads)?,
            head_dim: head_dim(fields, hidden_size, num_attention_heads)?,
            vocab_size: fields.required_size("vocab_size")?,
            max_position_embeddings: fields
                .size("max_position_embeddings")?
                .unwrap_or(family.default_max_position_embeddings()),
            rms_norm_eps: fields
                .number("rms_norm_eps", "a number above 0, such as 1e-05", |eps| eps > 0.0)?
                .unwrap_or(1.0e-6),
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: of_llama("attention_bias")?,
            mlp_bias: of_llama("mlp_bias")?,
            sliding_window: family.sliding_window(fields)?,
            rope: RopeConfig::read(fields)?,
            initializer_range: fields
                .number("initializer_range", "a number of at least 0, such as 0.02", |range| range >= 0.0)?
                .unwrap_or(0.02),
            bos_token_id: fields.read("bos_token_id", TOKEN_ID, token_id)?,
            eos_token_ids: fields
                .read("eos_token_id", "a token id or a list of them", token_ids)?
                .unwrap_or_default(),
            stored_dtype: stored_dtype(fields)?,
        })
    }

    /// Checks the fields for themselves and against one another, for configs from any source; `path` is for
    /// messages.
    ///
    /// # Errors
    /// Where a size is 0 or absurd, the key/value heads do not divide the query heads, a head's width is odd, or
    /// the model has more parameters than can be counted.
    pub fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let unfit = |key: &str, found: String, expected: String| {
            Err(ConfigError::Unfit { path: path.to_owned(), key: key.to_owned(), found, expected })
        };
        for (key, size) in self.sizes() {
            if !(1..=LARGEST_SIZE).contains(&(size as u64)) {
                return unfit(key, size.to_string(), format!("a whole number from 1 to {LARGEST_SIZE}"));
            }
        }
        let (heads, key_value_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(key_value_heads) {
            let expected = format!("a divisor of `num_attention_heads`, which is {heads}");
            return unfit("num_key_value_heads", key_value_heads.to_string(), expected);
        }
        if !self.head_dim.is_multiple_of(2) {
            let expected = "an even number: rotary embeddings turn dimensions in pairs".to_owned();
            return unfit("head_dim", self.head_dim.to_string(), expected);
        }
        if self.parameters_exact() > i64::MAX as u128 {
            let expected = "sizes whose product is below 2^63".to_owned();
            return unfit("hidden_size", format!("part of {} parameters", self.parameters_exact()), expected);
        }
        Ok(())
    }

    /// The sizes that make up the parameter count and the context.
    fn sizes(&self) -> [(&'static str, usize); 8] {
        [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ]
    }
}

impl Family {
    /// Every family with its `architectures` entry and its `model_type`.
    const ALL: [(Self, &str, &str); 2] =
        [(Self::Llama, "LlamaForCausalLM", "llama"), (Self::Mistral, "MistralForCausalLM", "mistral")];

    /// The family that `architectures` names, or `model_type` where that is absent.
    fn read(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let model_type = Self::named_by(fields, "model_type", fields.get("model_type"))?;
        let architecture = match fields.get("architectures") {
            Some(Value::Array(names)) if names.len() == 1 => {
                Self::named_by(fields, "architectures", names.first())?
            }
            None => None,
            Some(other) => return Err(fields.unfit("architectures", other, "a list of one name")),
        };
        match (architecture, model_type) {
            (Some(architecture), Some(model_type)) if architecture != model_type => {
                Err(ConfigError::Contradiction {
                    path: fields.path().to_owned(),
                    first: format!("`architectures`: {architecture:?}"),
                    second: format!("`model_type`: {model_type:?}"),
                    fix: "make both name the same family".to_owned(),
                })
            }
            (Some(family), _) | (None, Some(family)) => Ok(family),
            (None, None) => Err(fields.missing("architectures", &Self::supported())),
        }
    }

    /// The family of an `architectures` entry or `model_type`.
    fn named_by(fields: &Fields<'_>, key: &str, value: Option<&Value>) -> Result<Option<Self>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        Self::ALL
            .into_iter()
            .find(|(_, architecture, model_type)| value == architecture || value == model_type)
            .map(|(family, ..)| Some(family))
            .ok_or_else(|| fields.unsupported(key, value, &Self::supported()))
    }

    fn supported() -> String {
        let names = Self::ALL.map(|(_, architecture, model_type)| format!("{architecture} ({model_type})"));
        format!("the supported architectures are {}", names.join(" and "))
    }

    /// An absent key is 8 in Mistral and one for each query head in Llama, which a `null` is in both.
    fn num_key_value_heads(self, fields: &Fields<'_>, heads: usize) -> Result<usize, ConfigError> {
        const MISTRAL: usize = 8;
        if self == Self::Mistral && !fields.has("num_key_value_heads") {
            return Ok(MISTRAL);
        }
        Ok(fields.size("num_key_value_heads")?.unwrap_or(heads))
    }

    fn default_max_position_embeddings(self) -> usize {
        match self {
            Self::Llama => 2048,
            Self::Mistral => 131_072,
        }
    }

    /// Mistral's window: 4096 where the key is absent, none where it is `null`. Llama has none: `transformers`
    /// ignores the key there.
    fn sliding_window(self, fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
        const MISTRAL: usize = 4096;
        match self {
            Self::Llama => Ok(None),
            Self::Mistral if !fields.has("sliding_window") => Ok(Some(MISTRAL)),
            Self::Mistral => fields.size("sliding_window"),
        }
    }
}

const TOKEN_ID: &str = "a token id: a whole number of at least 0";

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn token_ids(value: &Value) -> Option<Vec<u32>> {
    match value {
        Value::Array(values) => values.iter().map(token_id).collect(),
        single => token_id(single).map(|id| vec![id]),
    }
}

/// Explicit, or the residual stream's width divided among the query heads.
fn head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    if let Some(explicit) = fields.size("head_dim")? {
        return Ok(explicit);
    }
    if hidden_size.is_multiple_of(heads) {
        return Ok(hidden_size / heads);
    }
    Err(ConfigError::Contradiction {
        path: fields.path().to_owned(),
        first: format!("`hidden_size`: {hidden_size}"),
        second: format!("`num_attention_heads`: {heads}"),
        fix: "the heads must divide the width, or `head_dim` must be given".to_owned(),
    })
}

/// `dtype` as transformers 5 writes it, or `torch_dtype` as the hub's files have it.
fn stored_dtype(fields: &Fields<'_>) -> Result<Option<TorchDType>, ConfigError> {
    let key = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    fields.read(key, "\"float32\", \"bfloat16\" or \"float16\"", |value| match value.as_str()? {
        "float32" => Some(TorchDType::Float32),
        "bfloat16" => Some(TorchDType::BFloat16),
        "float16" => Some(TorchDType::Float16),
        _ => None,
    })
}

/// Refuses fields that change what a model computes in ways that are not implemented.
fn refuse_what_is_not_trained(fields: &Fields<'_>) -> Result<(), ConfigError> {
    if let Some(activation) = fields.get("hidden_act").filter(|activation| *activation != "silu") {
        return Err(fields.unsupported("hidden_act", activation, "only \"silu\" is"));
    }
    if let Some(quantization) = fields.get("quantization_config") {
        let fix = "every parameter is trained, so fetch the model's unquantised weights";
        return Err(fields.unsupported("quantization_config", quantization, fix));
    }
    let is_dropout = |key: &str| key.contains("dropout") || key.ends_with("_pdrop");
    match fields
        .iter()
        .find(|(key, value)| is_dropout(key) && !value.is_null() && value.as_f64() != Some(0.0))
    {
        Some((key, value)) => {
            Err(fields.unsupported(key, value, "training runs without dropout, set it to 0.0"))
        }
        None => Ok(()),
    }
}
