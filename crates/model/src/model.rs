//! A whole model as the step loop sees it: units of parameters, and the stages that use them in order.

use crate::block::Block;
use crate::config::LlamaConfig;
use crate::head::Head;
use crate::table::{Initial, Segment, UnitTable};

/// The name of the token embedding in a Hugging Face folder.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name of the output matrix in a Hugging Face folder.
pub const OUTPUT: &str = "lm_head.weight";
const FINAL_NORM: &str = "model.norm.weight";

/// The stages of a model and the table of its units.
///
/// Unit 0 is the embedding, unit 1 + i block i. The head's unit holds the output matrix and the final norm, in this order:
/// the last unit, or unit 0 where the embedding is also the output matrix.
pub struct Model {
    config: LlamaConfig,
    units: Vec<UnitTable>,
    blocks: Vec<Block>,
    head: Head,
    head_unit: usize,
}

impl Model {
    /// The model that a config describes.
    pub fn new(config: LlamaConfig) -> Self {
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let matrix = |name: &str| {
            Segment::of(name.into(), [vocabulary, hidden], Initial::Normal(config.initializer_range))
        };
        let final_norm = Segment::of(FINAL_NORM.into(), [hidden], Initial::Constant(1.0));
        let (blocks, block_units): (Vec<_>, Vec<_>) =
            (0..config.num_hidden_layers).map(|index| Block::new(&config, index)).unzip();
        let mut units = Vec::with_capacity(blocks.len() + 2);
        let head_unit;
        if config.tie_word_embeddings {
            units.push(UnitTable::new(vec![matrix(EMBEDDING), final_norm]));
            units.extend(block_units);
            head_unit = 0;
        } else {
            units.push(UnitTable::new(vec![matrix(EMBEDDING)]));
            units.extend(block_units);
            head_unit = units.len();
            units.push(UnitTable::new(vec![matrix(OUTPUT), final_norm]));
        }
        let head = Head::new(hidden, vocabulary, config.rms_norm_eps);
        Self { config, units, blocks, head, head_unit }
    }

    /// The config.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The tables of the units, in the order in which a forward needs them.
    pub fn units(&self) -> &[UnitTable] {
        &self.units
    }

    /// The decoder blocks; block i uses unit 1 + i.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The unit whose first two segments are the output matrix and the final norm.
    pub fn head_unit(&self) -> usize {
        self.head_unit
    }

    /// Every parameter's name in a Hugging Face folder and its shape, in the order of the units.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let parameters = self.units.iter().flat_map(UnitTable::parameters);
        parameters.map(|placed| (placed.parameter.name.clone(), placed.parameter.shape.clone())).collect()
    }

    /// The number of parameters.
    pub fn parameter_count(&self) -> usize {
        self.units.iter().flat_map(UnitTable::parameters).map(|placed| placed.parameter.elements()).sum()
    }
}
