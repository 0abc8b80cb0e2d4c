//! What the families call their tensors on disk. Every tensor name that a model reads or writes is spelt here.
//!
//! Llama, Mistral and DBRX have one spelling: that of their repositories, which `transformers` writes too. Mixtral has two.
//! Its repositories, and `save_pretrained`, keep three matrices for each expert; since version 5 `transformers` holds all
//! experts of a block in two tensors, which land on disk with `save_original_format=False` or from a bare state dict.
//! They are the same numbers in the same order, so an expert is a range of rows either way.

use std::ops::Range;

use tessera_ops::experts::linear::WeightLayout;

use crate::config::Family;

/// The name of the output matrix, in every family.
const OUTPUT: &str = "lm_head.weight";

/// Ends of the names of Mixtral's fused experts.
const FUSED_EXPERTS: [&str; 2] = [".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"];
/// What the names of its experts have in them in the original spelling.
const ORIGINAL_EXPERTS: &str = ".block_sparse_moe.experts.";

/// Which of a family's spellings a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Naming {
    /// That of the family's repositories on the hub.
    #[default]
    Original,
    /// Mixtral's experts in two tensors a block, as `transformers` 5 holds them in memory.
    FusedExperts,
}

impl Naming {
    /// Whether a family has more than one spelling.
    pub fn varies(family: Family) -> bool {
        family == Family::Mixtral
    }

    /// The spelling of a checkpoint with tensors of these `names`. What mixes both spellings, [`mixed`](Self::mixed) tells.
    pub fn of<'a>(family: Family, names: impl IntoIterator<Item = &'a str>) -> Self {
        if family == Family::Mixtral && names.into_iter().any(is_fused) {
            Self::FusedExperts
        } else {
            Self::Original
        }
    }

    /// A tensor in the original spelling and one in the other, where a checkpoint with tensors of these `names` has both.
    pub fn mixed<'a>(
        family: Family,
        names: impl IntoIterator<Item = &'a str> + Clone,
    ) -> Option<(&'a str, &'a str)> {
        let first = |wanted: fn(&str) -> bool| names.clone().into_iter().find(|name| wanted(name));
        if family == Family::Mixtral { first(is_original).zip(first(is_fused)) } else { None }
    }
}

fn is_fused(name: &str) -> bool {
    FUSED_EXPERTS.iter().any(|end| name.ends_with(end))
}

fn is_original(name: &str) -> bool {
    name.contains(ORIGINAL_EXPERTS)
}

/// The tensor names of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    family: Family,
    naming: Naming,
}

impl Names {
    /// Ends of the names of buffers, which old checkpoints hold and which are no parameters.
    pub const BUFFERS: [&'static str; 1] = ["rotary_emb.inv_freq"];

    /// Those of a family in one of its spellings.
    pub fn new(family: Family, naming: Naming) -> Self {
        Self { family, naming }
    }

    /// The token embedding `[vocabulary, hidden]`.
    pub fn embedding(&self) -> String {
        match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral => "model.embed_tokens.weight",
            Family::Dbrx => "transformer.wte.weight",
        }
        .to_owned()
    }

    /// The weight of the norm before the head `[hidden]`.
    pub fn final_norm(&self) -> String {
        match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral => "model.norm.weight",
            Family::Dbrx => "transformer.norm_f.weight",
        }
        .to_owned()
    }

    /// The output matrix `[vocabulary, hidden]`.
    pub fn output(&self) -> String {
        OUTPUT.to_owned()
    }

    /// Those of block `index`, counted from 0.
    pub fn block(&self, index: usize) -> BlockNames {
        let prefix = match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral => format!("model.layers.{index}"),
            Family::Dbrx => format!("transformer.blocks.{index}"),
        };
        BlockNames { family: self.family, naming: self.naming, prefix }
    }
}

/// The query, key and value projections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryKeyValue {
    /// One tensor each.
    Separate([String; 3]),
    /// One tensor, the rows of the queries first, then those of the keys, then those of the values.
    Fused(String),
}

/// The sizes that shape the tensors of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertSizes {
    /// How many experts a block has, E.
    pub count: usize,
    /// Width of the residual stream, H.
    pub hidden: usize,
    /// Width of one expert's inner layer, F.
    pub intermediate: usize,
}

/// Where a matrix of an expert lies on disk: in some rows of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertTensor {
    /// The tensor's name.
    pub name: String,
    /// The whole tensor's shape.
    pub shape: Vec<usize>,
    /// The rows that are this matrix, all dimensions but the last counted as one.
    pub rows: Range<usize>,
    /// The length of a row: the tensor's last dimension.
    pub columns: usize,
}

/// The tensor names of one block. Which of them it has, its config says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockNames {
    family: Family,
    naming: Naming,
    /// What all of them begin with, without the dot.
    prefix: String,
}

impl BlockNames {
    /// The weight of the norm before attention `[hidden]`.
    pub fn attention_norm(&self) -> String {
        self.tensor("input_layernorm.weight", "norm_attn_norm.norm_1.weight")
    }

    /// The projections to queries, keys and values.
    pub fn query_key_value(&self) -> QueryKeyValue {
        match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral => {
                QueryKeyValue::Separate(["q", "k", "v"].map(|part| self.attention(part, "weight")))
            }
            Family::Dbrx => QueryKeyValue::Fused(self.name("norm_attn_norm.attn.Wqkv.weight")),
        }
    }

    /// Their biases, where attention has biases.
    pub fn query_key_value_biases(&self) -> [String; 3] {
        ["q", "k", "v"].map(|part| self.attention(part, "bias"))
    }

    /// Attention's output projection `[hidden, heads · head size]`.
    pub fn output(&self) -> String {
        self.tensor("self_attn.o_proj.weight", "norm_attn_norm.attn.out_proj.weight")
    }

    /// Its bias, where attention has biases.
    pub fn output_bias(&self) -> String {
        self.attention("o", "bias")
    }

    /// The weight of the norm before the feed-forward layer or the experts `[hidden]`.
    pub fn feed_forward_norm(&self) -> String {
        self.tensor("post_attention_layernorm.weight", "norm_attn_norm.norm_2.weight")
    }

    /// The gate of a feed-forward layer `[intermediate, hidden]`.
    pub fn gate(&self) -> String {
        self.name("mlp.gate_proj.weight")
    }

    /// Its bias.
    pub fn gate_bias(&self) -> String {
        self.name("mlp.gate_proj.bias")
    }

    /// What the gate is multiplied with `[intermediate, hidden]`.
    pub fn up(&self) -> String {
        self.name("mlp.up_proj.weight")
    }

    /// Its bias.
    pub fn up_bias(&self) -> String {
        self.name("mlp.up_proj.bias")
    }

    /// The output of a feed-forward layer `[hidden, intermediate]`.
    pub fn down(&self) -> String {
        self.name("mlp.down_proj.weight")
    }

    /// Its bias.
    pub fn down_bias(&self) -> String {
        self.name("mlp.down_proj.bias")
    }

    /// The router `[experts, hidden]`.
    pub fn router(&self) -> String {
        let mixtral = match self.naming {
            Naming::Original => "block_sparse_moe.gate.weight",
            Naming::FusedExperts => "mlp.gate.weight",
        };
        self.tensor(mixtral, "ffn.router.layer.weight")
    }

    /// Gate and up of an expert, each `[F, H]`.
    pub fn expert_gate_up(&self, sizes: ExpertSizes, expert: usize) -> [ExpertTensor; 2] {
        let ExpertSizes { count, hidden, intermediate } = sizes;
        match (self.family, self.naming) {
            (Family::Dbrx, _) => ["w1", "v1"].map(|matrix| self.dbrx_expert(matrix, sizes, expert)),
            (_, Naming::Original) => {
                ["w1", "w3"].map(|matrix| self.mixtral_expert(matrix, expert, [intermediate, hidden]))
            }
            (_, Naming::FusedExperts) => [2 * expert, 2 * expert + 1].map(|half| ExpertTensor {
                name: self.name("mlp.experts.gate_up_proj"),
                shape: vec![count, 2 * intermediate, hidden],
                rows: half * intermediate..(half + 1) * intermediate,
                columns: hidden,
            }),
        }
    }

    /// The output of an expert, in the layout of [`expert_down_layout`](Self::expert_down_layout).
    pub fn expert_down(&self, sizes: ExpertSizes, expert: usize) -> ExpertTensor {
        let ExpertSizes { count, hidden, intermediate } = sizes;
        match (self.family, self.naming) {
            (Family::Dbrx, _) => self.dbrx_expert("w2", sizes, expert),
            (_, Naming::Original) => self.mixtral_expert("w2", expert, [hidden, intermediate]),
            (_, Naming::FusedExperts) => ExpertTensor {
                name: self.name("mlp.experts.down_proj"),
                shape: vec![count, hidden, intermediate],
                rows: expert * hidden..(expert + 1) * hidden,
                columns: intermediate,
            },
        }
    }

    /// Whether the output of an expert is stored `[H, F]`, as a linear layer is, or `[F, H]`.
    pub fn expert_down_layout(&self) -> WeightLayout {
        match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral => WeightLayout::OutputsInputs,
            Family::Dbrx => WeightLayout::InputsOutputs,
        }
    }

    /// A whole tensor for each matrix of each expert.
    fn mixtral_expert(&self, matrix: &str, expert: usize, [rows, columns]: [usize; 2]) -> ExpertTensor {
        let name = self.name(&format!("block_sparse_moe.experts.{expert}.{matrix}.weight"));
        ExpertTensor { name, shape: vec![rows, columns], rows: 0..rows, columns }
    }

    /// One tensor `[E·F, H]` for a matrix of all experts.
    fn dbrx_expert(&self, matrix: &str, sizes: ExpertSizes, expert: usize) -> ExpertTensor {
        let ExpertSizes { count, hidden, intermediate } = sizes;
        ExpertTensor {
            name: self.name(&format!("ffn.experts.mlp.{matrix}")),
            shape: vec![count * intermediate, hidden],
            rows: expert * intermediate..(expert + 1) * intermediate,
            columns: hidden,
        }
    }

    fn attention(&self, part: &str, kind: &str) -> String {
        self.name(&format!("self_attn.{part}_proj.{kind}"))
    }

    /// A name that only DBRX spells differently.
    fn tensor(&self, llama: &str, dbrx: &str) -> String {
        match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral => self.name(llama),
            Family::Dbrx => self.name(dbrx),
        }
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A checkpoint is read with the names that it has, whatever order they come in.
    #[test]
    fn the_spelling_is_told_by_the_names() {
        let of = |family, names: &[&str]| Naming::of(family, names.iter().copied());
        let original = ["model.norm.weight", "model.layers.1.block_sparse_moe.experts.0.w1.weight"];
        let fused = ["model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.gate_up_proj"];
        assert_eq!(of(Family::Mixtral, &original), Naming::Original);
        assert_eq!(of(Family::Mixtral, &fused), Naming::FusedExperts);
        assert_eq!(of(Family::Mixtral, &[]), Naming::Original);
        assert_eq!(of(Family::Dbrx, &fused), Naming::Original);
    }

    #[test]
    fn a_tensor_of_each_spelling_is_named_where_both_are_there() {
        let [original, gate_up, down] = [
            "model.layers.0.block_sparse_moe.experts.0.w1.weight",
            "model.layers.1.mlp.experts.gate_up_proj",
            "model.layers.1.mlp.experts.down_proj",
        ];
        let mixed = |names: &[&'static str]| Naming::mixed(Family::Mixtral, names.iter().copied());
        assert_eq!(mixed(&["lm_head.weight", down, original]), Some((original, down)));
        assert_eq!(mixed(&[gate_up, original]), Some((original, gate_up)));
        assert_eq!([mixed(&[original]), mixed(&[gate_up, down]), mixed(&[])], [None; 3]);
        assert_eq!(Naming::mixed(Family::Dbrx, [original, down]), None);
    }

    /// All experts of a block take up their tensors, none of which has an element in two of them.
    #[test]
    fn the_parts_of_experts_fill_their_tensors() {
        let sizes = ExpertSizes { count: 3, hidden: 4, intermediate: 5 };
        for (family, naming) in [
            (Family::Mixtral, Naming::Original),
            (Family::Mixtral, Naming::FusedExperts),
            (Family::Dbrx, Naming::Original),
        ] {
            let names = Names::new(family, naming).block(0);
            let parts = (0..sizes.count).flat_map(|expert| {
                let [gate, up] = names.expert_gate_up(sizes, expert);
                [gate, up, names.expert_down(sizes, expert)]
            });
            let mut tensors: HashMap<String, (usize, Vec<usize>)> = HashMap::new();
            for part in parts {
                assert_eq!(part.shape.last(), Some(&part.columns));
                let elements = part.shape.iter().product();
                let (size, found) = tensors.entry(part.name).or_insert((elements, Vec::new()));
                assert_eq!(*size, elements);
                found.extend(part.rows.start * part.columns..part.rows.end * part.columns);
            }
            for (name, (size, mut found)) in tensors {
                found.sort_unstable();
                assert_eq!(found, (0..size).collect::<Vec<_>>(), "{name}");
            }
        }
    }
}
