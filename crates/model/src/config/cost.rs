//! What a model costs: its parameters and the floating-point operations to train it.

use super::LlamaConfig;

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

impl LlamaConfig {
    /// The exact number of trainable parameters. A tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        self.parameters_exact().min(u128::from(u64::MAX)) as u64
    }

    /// [`parameter_count`](Self::parameter_count) in a type that no config within the size limits overflows.
    pub(super) fn parameters_exact(&self) -> u128 {
        let [hidden, inner, vocabulary, layers] =
            [self.hidden_size, self.intermediate_size, self.vocab_size, self.num_hidden_layers]
                .map(|size| size as u128);
        let queries = self.num_attention_heads as u128 * self.head_dim as u128;
        let keys = self.num_key_value_heads as u128 * self.head_dim as u128;

        let attention = 2 * hidden * queries + 2 * hidden * keys;
        let attention_bias = if self.attention_bias { queries + 2 * keys + hidden } else { 0 };
        let feed_forward = 3 * hidden * inner;
        let feed_forward_bias = if self.mlp_bias { 2 * inner + hidden } else { 0 };
        let norms = 2 * hidden;
        let block = attention + attention_bias + feed_forward + feed_forward_bias + norms;

        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        embeddings * vocabulary * hidden + layers * block + hidden
    }

    /// Operations that forward and backward of `work` need, nothing counted twice and nothing that is not needed: products of
    /// the blocks for each token, of the head for each loss token, and causal attention within each document.
    pub fn training_flops(&self, work: TrainingWork) -> f64 {
        let head = self.vocab_size as f64 * self.hidden_size as f64;
        let embeddings = if self.tie_word_embeddings { 1.0 } else { 2.0 };
        let blocks = self.parameters_exact() as f64 - embeddings * head;
        let attention = (self.num_hidden_layers * self.num_attention_heads * self.head_dim) as f64;
        6.0 * (blocks * work.tokens as f64
            + head * work.loss_tokens as f64
            + attention * work.squared_lengths as f64)
    }

    /// Operations to train on one token of a sequence of `sequence_length`: `6·N + 12·L·heads·head_dim·s`,
    /// where N leaves out the input embedding (a look-up) and counts the head, tied or not. A sliding window
    /// is not subtracted, so that figures compare with other engines'.
    pub fn training_flops_per_token(&self, sequence_length: usize) -> TrainingFlops {
        let input_embedding =
            if self.tie_word_embeddings { 0 } else { self.vocab_size as u128 * self.hidden_size as u128 };
        let products = 6.0 * (self.parameters_exact() - input_embedding) as f64;
        let attention =
            [12, self.num_hidden_layers, self.num_attention_heads, self.head_dim, sequence_length]
                .map(|size| size as f64)
                .iter()
                .product::<f64>();
        TrainingFlops { full: products + attention, causal: products + attention / 2.0 }
    }
}
