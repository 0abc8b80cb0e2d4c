//! How `eval_prompts` are answered, named as LLM Foundry's generation callback names it.

use serde::Serialize;

use super::reader::{self, MapReader};

/// Settings of the answers; complete once they are written at all. The defaults are the service's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GenerationSpec {
    /// Whether tokens are drawn; otherwise the most likely one is taken each time.
    pub do_sample: bool,
    /// The longest answer, in tokens.
    pub max_new_tokens: usize,
    /// What logits are divided by before a draw.
    pub temperature: f64,
    /// How many of the most likely tokens a draw considers.
    pub top_k: usize,
    /// The probability that the considered tokens make up.
    pub top_p: f64,
}

impl Default for GenerationSpec {
    fn default() -> Self {
        Self { do_sample: true, max_new_tokens: 100, temperature: 1.0, top_k: 50, top_p: 0.95 }
    }
}

impl GenerationSpec {
    /// Reads the map `eval_generation`.
    pub(super) fn read(map: &mut MapReader<'_>) -> Self {
        let default = Self::default();
        let temperature = reader::number(|value| value > 0.0, "a number above 0, such as 1.0");
        let top_p = reader::number(|value| value > 0.0 && value <= 1.0, "a number above 0 and at most 1");
        Self {
            do_sample: map.optional("do_sample", reader::boolean).unwrap_or(default.do_sample),
            max_new_tokens: map
                .optional("max_new_tokens", reader::whole(1))
                .unwrap_or(default.max_new_tokens),
            temperature: map.optional("temperature", temperature).unwrap_or(default.temperature),
            top_k: map.optional("top_k", reader::whole(1)).unwrap_or(default.top_k),
            top_p: map.optional("top_p", top_p).unwrap_or(default.top_p),
        }
    }
}
