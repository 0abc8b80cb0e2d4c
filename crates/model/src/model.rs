//! A whole model as the step loop sees it: units of parameters, and the stages that use them in order.

use std::collections::HashSet;

use tessera_ops::{DType, Home};

use crate::balance::Balance;
use crate::block::Block;
use crate::config::ModelConfig;
use crate::head::Head;
use crate::names::{Names, Naming};
use crate::table::{Initial, Segment, UnitTable};

/// What a model computes in, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    /// Of gathered weights, of the residual stream, and of what products read and write: fp32, or bf16 with what needs more in
    /// fp32.
    pub dtype: DType,
    /// Whose memory its operators work in.
    pub home: Home,
}

/// fp32 on the host.
impl Default for Compute {
    fn default() -> Self {
        Self { dtype: DType::F32, home: Home::Host }
    }
}

/// The stages of a model and the table of its units.
///
/// Unit 0 is the embedding; the units of the blocks' stages follow. The head's unit holds the output matrix and the final
/// norm, in this order: the last unit, or unit 0 where the embedding is also the output matrix.
pub struct Model {
    config: ModelConfig,
    compute: Compute,
    names: Names,
    units: Vec<UnitTable>,
    blocks: Vec<Block>,
    /// The unit of each block's first stage.
    first_units: Vec<usize>,
    head: Head,
    head_unit: usize,
}

impl Model {
    /// The model that a config describes, with the tensor names that its family's folders have.
    pub fn new(config: ModelConfig) -> Self {
        let names = Names::new(config.family, Naming::default());
        Self::with_names(config, names)
    }

    /// The model that a config describes, with the tensor names of a folder. It computes in fp32.
    pub fn with_names(config: ModelConfig, names: Names) -> Self {
        Self::build(config, names, Compute::default())
    }

    /// The same model, computing as `compute` says.
    pub fn computing(self, compute: Compute) -> Self {
        Self::build(self.config, self.names, compute)
    }

    /// The same model, computing where its operators do.
    pub fn computing_at(self, home: Home) -> Self {
        let compute = Compute { home, ..self.compute };
        if compute == self.compute { self } else { self.computing(compute) }
    }

    fn build(config: ModelConfig, names: Names, compute: Compute) -> Self {
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let matrix =
            |name: String| Segment::of(name, [vocabulary, hidden], Initial::Normal(config.initializer_range));
        let final_norm = Segment::of(names.final_norm(), [hidden], Initial::Constant(1.0));
        let tied = config.tie_word_embeddings;
        let embedding = matrix(names.embedding());
        let mut units =
            vec![UnitTable::new(if tied { vec![embedding, final_norm.clone()] } else { vec![embedding] })];
        let (mut blocks, mut first_units) = (Vec::new(), Vec::new());
        for index in 0..config.num_hidden_layers {
            let (block, block_units) = Block::new(&config, &names.block(index), compute);
            blocks.push(block);
            first_units.push(units.len());
            units.extend(block_units);
        }
        let head_unit = if tied { 0 } else { units.len() };
        if !tied {
            units.push(UnitTable::new(vec![matrix(names.output()), final_norm]));
        }
        let head = Head::new(&config, compute);
        Self { config, compute, names, units, blocks, first_units, head, head_unit }
    }

    /// The config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What it computes in, and where.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// What its tensors are called in a Hugging Face folder.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The tables of the units, in the order in which a forward needs them.
    pub fn units(&self) -> &[UnitTable] {
        &self.units
    }

    /// The decoder blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The unit of a block's stage.
    pub fn stage_unit(&self, block: usize, stage: usize) -> usize {
        self.first_units[block] + stage
    }

    /// The unit that a forward needs after that of a block's stage.
    pub fn unit_after(&self, block: usize, stage: usize) -> usize {
        let last = block + 1 == self.blocks.len() && stage + 1 == self.blocks[block].stages();
        if last { self.head_unit } else { self.stage_unit(block, stage) + 1 }
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The unit whose first two segments are the output matrix and the final norm.
    pub fn head_unit(&self) -> usize {
        self.head_unit
    }

    /// What the load-balancing loss is summed over, where the model has experts.
    pub fn balance(&self) -> Option<Balance> {
        let experts = self.config.experts?;
        Some(Balance { layers: self.blocks.len(), experts: experts.count })
    }

    /// Every tensor's name in a Hugging Face folder and its shape, in the order of the units.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
        let mut seen = HashSet::new();
        for placed in self.units.iter().flat_map(UnitTable::parameters) {
            if seen.insert(&placed.parameter.name) {
                tensors.push((placed.parameter.name.clone(), placed.parameter.shape.clone()));
            }
        }
        tensors
    }

    /// The number of parameters.
    pub fn parameter_count(&self) -> usize {
        self.units.iter().flat_map(UnitTable::parameters).map(|placed| placed.parameter.elements()).sum()
    }
}
