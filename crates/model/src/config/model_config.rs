//! The shape of a decoder model, every field known, and what must hold between the fields.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tessera_ops::attention::Heads;

use super::fields::{Fields, LARGEST_SIZE};
use super::{ConfigError, Family, RopeConfig, dbrx, llama, shared};

/// The most blocks and the most experts that are believed, and the most of both together: for each of them a model lists its
/// tensors, which must not take the memory or the time before the weights are looked at.
const MOST_LAYERS: u64 = 4096;
const MOST_EXPERTS: u64 = 4096;
const MOST_EXPERTS_IN_ALL: usize = 100_000;

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

/// How a row of the residual stream is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By its root mean square, with a weight.
    RmsNorm,
    /// By its mean and deviation, with a weight and no bias.
    LayerNorm,
}

/// Experts of which each token uses a few.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsConfig {
    /// How many experts there are.
    pub count: usize,
    /// How many of them a token uses.
    pub active: usize,
    /// The order p of the norm by which a token's weights are divided: 1 makes them sum to one. They stay the softmax's
    /// probabilities where `None`.
    pub weight_norm: Option<f64>,
    /// What the load-balancing loss is multiplied with before it is added to the loss.
    pub balance_loss_coefficient: f64,
}

/// A decoder model's shape, every field known.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
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
    /// How the residual stream is normalised before attention, before the feed-forward layer and before the head.
    pub norm: NormKind,
    /// ε of every norm.
    pub norm_epsilon: f64,
    /// Whether the head shares the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// Whether the four attention projections have biases.
    pub attention_bias: bool,
    /// Whether the three feed-forward projections have biases.
    pub mlp_bias: bool,
    /// What queries, keys and values are clamped to, both signs, before the rotation (DBRX); not clamped where `None`.
    pub clip_qkv: Option<f64>,
    /// The experts that take the place of the feed-forward layer; `intermediate_size` is one expert's then.
    pub experts: Option<ExpertsConfig>,
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

impl ModelConfig {
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
        shared::refuse_what_is_not_trained(&fields)?;
        let config = match family {
            Family::Llama | Family::Mistral | Family::Mixtral => llama::read(family, &fields)?,
            Family::Dbrx => dbrx::read(&fields)?,
        };
        config.check(path)?;
        Ok(config)
    }

    /// The `config.json` `source`, from which this was read, as it is exported: with every key that the versions of
    /// `transformers` need to compute the same.
    pub fn exported(&self, source: &Value) -> Value {
        match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral => source.clone(),
            Family::Dbrx => dbrx::with_both_bases(source, self.rope.theta),
        }
    }

    /// Checks the fields for themselves and against one another, for configs from any source; `path` is for
    /// messages.
    ///
    /// # Errors
    /// Where a size or the number of all experts is 0 or absurd, the key/value heads do not divide the query heads, a head's width is odd, a token
    /// uses more experts than there are, or the model has more parameters than can be counted.
    pub fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let keys = self.family.keys();
        let unfit = |key: &str, found: String, expected: String| {
            Err(ConfigError::Unfit { path: path.to_owned(), key: key.to_owned(), found, expected })
        };
        for (key, size, most) in self.sizes() {
            if !(1..=most).contains(&(size as u64)) {
                return unfit(key, size.to_string(), format!("a whole number from 1 to {most}"));
            }
        }
        let (heads, key_value_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(key_value_heads) {
            let expected = format!("a divisor of `{}`, which is {heads}", keys.num_attention_heads);
            return unfit(keys.num_key_value_heads, key_value_heads.to_string(), expected);
        }
        if !self.head_dim.is_multiple_of(2) {
            let expected = "an even number: rotary embeddings turn dimensions in pairs".to_owned();
            return unfit(keys.head_dim, self.head_dim.to_string(), expected);
        }
        if let Some(ExpertsConfig { count, active, .. }) = self.experts
            && active > count
        {
            let expected = format!("a whole number up to `{}`, which is {count}", keys.experts);
            return unfit(keys.active_experts, active.to_string(), expected);
        }
        let layers = self.num_hidden_layers;
        if let Some(ExpertsConfig { count, .. }) = self.experts
            && layers * count > MOST_EXPERTS_IN_ALL
        {
            let expected = format!(
                "at most {MOST_EXPERTS_IN_ALL} experts in all blocks, of which `{}` says there are {layers}",
                keys.num_hidden_layers
            );
            return unfit(keys.experts, count.to_string(), expected);
        }
        if self.parameters_exact() > i64::MAX as u128 {
            let expected = "sizes whose product is below 2^63".to_owned();
            let found = format!("part of {} parameters", self.parameters_exact());
            return unfit(keys.hidden_size, found, expected);
        }
        Ok(())
    }

    /// The sizes that make up the parameter count and the context, with their keys and the most that they may be.
    fn sizes(&self) -> Vec<(&'static str, usize, u64)> {
        let keys = self.family.keys();
        let mut sizes = vec![
            (keys.hidden_size, self.hidden_size, LARGEST_SIZE),
            (keys.intermediate_size, self.intermediate_size, LARGEST_SIZE),
            (keys.num_hidden_layers, self.num_hidden_layers, MOST_LAYERS),
            (keys.num_attention_heads, self.num_attention_heads, LARGEST_SIZE),
            (keys.num_key_value_heads, self.num_key_value_heads, LARGEST_SIZE),
            (keys.head_dim, self.head_dim, LARGEST_SIZE),
            ("vocab_size", self.vocab_size, LARGEST_SIZE),
            (keys.max_position_embeddings, self.max_position_embeddings, LARGEST_SIZE),
        ];
        if let Some(experts) = self.experts {
            sizes.extend([
                (keys.experts, experts.count, MOST_EXPERTS),
                (keys.active_experts, experts.active, MOST_EXPERTS),
            ]);
        }
        sizes
    }
}
