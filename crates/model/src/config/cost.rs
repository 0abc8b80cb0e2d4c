//! What a model costs: its parameters and the floating-point operations to train it.

use super::{ModelConfig, TorchDType};

/// Bytes that each parameter takes while it is trained by AdamW: fp32 weight, gradient and two moments.
const STATE_BYTES: u64 = 16;

/// Floating-point operations of one training step (forward and backward, no recompute), for each token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingFlops {
    /// With attention counted over the whole square of the sequence, as torchtitan, nanoGPT and LLM Foundry do.
    pub full: f64,
    /// With half of that: what a causal kernel needs.
    pub causal: f64,
}

/// What is trained on, as far as its cost depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrainingWork {
    /// Tokens.
    pub tokens: u64,
    /// Tokens that have a target: only these go through the head.
    pub loss_tokens: u64,
    /// Σ of the squared lengths of the documents: what attention costs.
    pub squared_lengths: u64,
}

impl ModelConfig {
    /// The exact number of trainable parameters. A tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        saturated(self.parameters_exact())
    }

    /// Bytes of the weights as they are stored; in 16 bits where the config does not say.
    pub fn stored_bytes(&self) -> u64 {
        let bytes = match self.stored_dtype {
            Some(TorchDType::Float32) => 4,
            Some(TorchDType::BFloat16 | TorchDType::Float16) | None => 2,
        };
        self.parameter_count().saturating_mul(bytes)
    }

    /// Bytes of weights, gradients and AdamW's moments in training, over all devices; what tokens take comes on top.
    pub fn training_state_bytes(&self) -> u64 {
        self.parameter_count().saturating_mul(STATE_BYTES)
    }

    /// The exact number of parameters that one token's forward uses: of the experts, only the active ones.
    pub fn active_parameter_count(&self) -> u64 {
        saturated(self.active_parameters())
    }

    /// [`parameter_count`](Self::parameter_count) in a type that no config within the size limits overflows.
    pub(super) fn parameters_exact(&self) -> u128 {
        self.parameters_with(self.experts.map_or(0, |experts| experts.count))
    }

    fn active_parameters(&self) -> u128 {
        self.parameters_with(self.experts.map_or(0, |experts| experts.active))
    }

    /// The parameters with so many experts a block, where there are experts; the router keeps its size.
    fn parameters_with(&self, experts: usize) -> u128 {
        let [hidden, inner, vocabulary, layers] =
            [self.hidden_size, self.intermediate_size, self.vocab_size, self.num_hidden_layers]
                .map(|size| size as u128);
        let queries = self.num_attention_heads as u128 * self.head_dim as u128;
        let keys = self.num_key_value_heads as u128 * self.head_dim as u128;

        let attention = 2 * hidden * queries + 2 * hidden * keys;
        let attention_bias = if self.attention_bias { queries + 2 * keys + hidden } else { 0 };
        let gated = 3 * hidden * inner;
        let gated_bias = if self.mlp_bias { 2 * inner + hidden } else { 0 };
        let feed_forward = match self.experts {
            None => gated + gated_bias,
            Some(all) => experts as u128 * gated + all.count as u128 * hidden,
        };
        let norms = 2 * hidden;
        let block = attention + attention_bias + feed_forward + norms;

        self.embeddings() * vocabulary * hidden + layers * block + hidden
    }

    /// How many matrices of the vocabulary's size there are.
    fn embeddings(&self) -> u128 {
        if self.tie_word_embeddings { 1 } else { 2 }
    }

    /// Operations that forward and backward of `work` need, nothing counted twice: products of the blocks for each token, with
    /// its active experts only, of the head for each loss token, and causal attention within each document.
    ///
    /// Attention is counted over the whole of each document, as in [`training_flops_per_token`](Self::training_flops_per_token):
    /// where documents are longer than a sliding window, this is more than is computed, and a utilisation made of it too high.
    pub fn training_flops(&self, work: TrainingWork) -> f64 {
        let head = self.vocab_size as u128 * self.hidden_size as u128;
        let blocks = self.active_parameters() - self.embeddings() * head;
        let attention = (self.num_hidden_layers * self.num_attention_heads * self.head_dim) as f64;
        6.0 * (blocks as f64 * work.tokens as f64
            + head as f64 * work.loss_tokens as f64
            + attention * work.squared_lengths as f64)
    }

    /// Operations to train on one token of a sequence of `sequence_length`: `6·N + 12·L·heads·head_dim·s`,
    /// where N is the active parameters without the input embedding (a look-up) and with the head, tied or not. A
    /// sliding window is not subtracted, so that figures compare with other engines'.
    pub fn training_flops_per_token(&self, sequence_length: usize) -> TrainingFlops {
        let head = self.vocab_size as u128 * self.hidden_size as u128;
        let products = 6.0 * (self.active_parameters() - (self.embeddings() - 1) * head) as f64;
        let attention =
            [12, self.num_hidden_layers, self.num_attention_heads, self.head_dim, sequence_length]
                .map(|size| size as f64)
                .iter()
                .product::<f64>();
        TrainingFlops { full: products + attention, causal: products + attention / 2.0 }
    }
}

fn saturated(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
