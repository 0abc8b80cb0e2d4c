//! What a step gives a GPU to do: how many kernels, products, copies and fills, for each block and outside of them. A launch
//! costs the host microseconds however little it does, so the numbers are written down here and must not grow.
//! `scripts/kernel-table` puts them into benches/README.md.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tessera_data::MicroBatch;
use tessera_dist::{Residency, Single, Wire};
use tessera_model::config::ModelConfig;
use tessera_model::{Compute, LossScale, Model};
use tessera_ops::cuda::Gpu;
use tessera_ops::{DType, Home, Queue};
use tessera_train::engine::{Engine, EngineSettings, Optimizer, OwnNews};
use tessera_train::spec::{AdamSettings, Offload, OptimizerSpec};

/// How often each thing was queued, by name.
type Counts = BTreeMap<String, i64>;

fn less(a: &Counts, b: &Counts) -> Counts {
    let mut rest = a.clone();
    for (name, count) in b {
        *rest.entry(name.clone()).or_default() -= count;
    }
    rest.retain(|_, count| *count != 0);
    rest
}

/// A model in bf16 with heads of 64, and how it is trained.
#[derive(Clone, Copy)]
struct Case {
    layers: usize,
    /// How many experts a block's feed-forward layer has; none: it is dense.
    experts: usize,
    /// Experts go in groups no larger than the embedding.
    vocabulary: usize,
    recompute: bool,
    chunks: usize,
}

const DENSE: Case = Case { layers: 2, experts: 0, vocabulary: 384, recompute: true, chunks: 1 };
/// All experts of a block in one group.
const MIXTURE: Case = Case { experts: 4, vocabulary: 1024, ..DENSE };
const TOKENS: usize = 16;

/// What is counted of an engine.
struct Seen {
    micro_batch: Counts,
    update: Counts,
    evaluation: Counts,
}

impl Seen {
    fn less(&self, other: &Self) -> Self {
        Self {
            micro_batch: less(&self.micro_batch, &other.micro_batch),
            update: less(&self.update, &other.update),
            evaluation: less(&self.evaluation, &other.evaluation),
        }
    }
}

impl Case {
    fn config(self) -> ModelConfig {
        let Self { layers, experts, vocabulary, .. } = self;
        let kind = if experts == 0 {
            r#""architectures": ["LlamaForCausalLM"], "model_type": "llama""#.to_owned()
        } else {
            format!(
                r#""architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": {experts},
                "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1"#
            )
        };
        let text = format!(
            r#"{{{kind}, "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": {layers},
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": {vocabulary}, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "tie_word_embeddings": false, "rope_theta": 10000.0,
            "initializer_range": 0.02}}"#
        );
        ModelConfig::parse(&text, Path::new("config.json")).unwrap()
    }

    fn engine(self, gpu: &Arc<Gpu>) -> Engine {
        let adam = AdamSettings { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0 };
        let settings = EngineSettings {
            micro_batch_tokens: TOKENS,
            micro_batch_rows: 1,
            positions: 64,
            chunk_tokens: TOKENS / self.chunks,
            recompute: self.recompute,
            offload: Offload::None,
            residency: Residency::default(),
            wire: Wire::default(),
            optimizer: Optimizer { spec: OptimizerSpec::AdamW(adam), peak_learning_rate: 1e-3 },
            max_grad_norm: 1.0,
        };
        let model = Model::new(self.config()).computing(Compute { dtype: DType::BF16, home: Home::Gpu });
        let engine = Engine::new(Queue::cuda(gpu).unwrap(), model, Single, settings).unwrap();
        engine.initialise(1).unwrap();
        engine
    }

    /// A micro-batch, then an update, then an evaluation: each finds no gathered weights.
    fn seen(self, gpu: &Arc<Gpu>) -> Seen {
        let mut engine = self.engine(gpu);
        let tokens: Vec<u32> = (0..TOKENS as u32).collect();
        let batch = MicroBatch {
            labels: tokens.iter().map(|&token| token as i32 + 1).collect(),
            positions: tokens.clone(),
            cu_seqlens: vec![0, TOKENS as u32],
            row_starts: vec![0, TOKENS as u32],
            loss_tokens: TOKENS,
            tokens,
        };
        let mut counted = |run: &mut dyn FnMut(&mut Engine)| {
            let before = issued(gpu);
            run(&mut engine);
            less(&issued(gpu), &before)
        };
        let scale = LossScale { token: 1.0 / TOKENS as f64, balance: 0.1 };
        Seen {
            micro_batch: counted(&mut |engine| engine.train_micro_batch(&batch, scale).unwrap()),
            update: counted(&mut |engine| {
                engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
            }),
            evaluation: counted(&mut |engine| engine.evaluate_micro_batch(&batch).unwrap()),
        }
    }

    /// What one more block adds, which is neither the first nor the last, and what remains without blocks.
    fn parts(self, gpu: &Arc<Gpu>) -> Parts {
        let (more, fewer) = (Self { layers: self.layers + 1, ..self }.seen(gpu), self.seen(gpu));
        let block = more.less(&fewer);
        let rest = (0..self.layers).fold(fewer, |rest, _| rest.less(&block));
        Parts { block, rest }
    }
}

struct Parts {
    block: Seen,
    rest: Seen,
}

fn issued(gpu: &Gpu) -> Counts {
    gpu.issued().into_iter().map(|(name, count)| (name, count as i64)).collect()
}

/// Prints the counts and holds their sum against the number written down.
fn check(what: &str, part: &str, counts: &Counts, expected: i64) {
    for (name, count) in counts {
        println!("kernel-table\tlaunches\t{what}\t{part}\t{name}\t{count}");
    }
    let found: i64 = counts.values().sum();
    assert_eq!(
        found, expected,
        "{what}, {part}: {counts:#?}\nFewer is better: write the new number down and run scripts/kernel-table --write. \
         More needs a reason."
    );
}

/// Checks a block's parts. Where blocks keep everything, what training does beyond an evaluation is the backward; the
/// forward's share of the load-balancing loss, which is for training only, counts there. Returns the
/// block that is computed again, and what remains where none is, since the last never is.
fn check_block(what: &str, gpu: &Arc<Gpu>, case: Case, expected: [i64; 5]) -> Parts {
    let [forward, backward, again, chunk, update] = expected;
    let kept = Case { recompute: false, ..case }.parts(gpu);
    let block = case.parts(gpu).block;
    let in_two = Case { chunks: 2, ..case }.parts(gpu).block;
    check(what, "forward", &kept.block.evaluation, forward);
    check(what, "backward", &less(&kept.block.micro_batch, &kept.block.evaluation), backward);
    check(what, "computed again", &less(&block.micro_batch, &kept.block.micro_batch), again);
    check(what, "each further chunk of tokens", &less(&in_two.micro_batch, &block.micro_batch), chunk);
    check(what, "update", &block.update, update);
    Parts { block, rest: kept.rest }
}

#[test]
fn a_dense_model_has_few_launches() {
    let gpu = Gpu::open(0).unwrap();
    let parts = check_block("dense block", &gpu, DENSE, [12, 18, 9, 14, 4]);
    check("outside of blocks", "micro-batch", &parts.rest.micro_batch, 23);
    check("outside of blocks", "update", &parts.rest.update, 13);
}

#[test]
fn experts_have_few_launches() {
    let gpu = Gpu::open(0).unwrap();
    let parts = check_block("block with experts", &gpu, MIXTURE, [18, 28, 13, 17, 8]);
    check("outside of blocks with experts", "micro-batch", &parts.rest.micro_batch, 25);
    let in_two = Case { vocabulary: 384, ..MIXTURE }.parts(&gpu).block;
    check(
        "each further group of experts",
        "micro-batch",
        &less(&in_two.micro_batch, &parts.block.micro_batch),
        18,
    );
    check("each further group of experts", "update", &less(&in_two.update, &parts.block.update), 4);
}
