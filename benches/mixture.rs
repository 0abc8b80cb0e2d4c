//! What routing costs: a training step of models with experts against the step of a dense model that computes as much for
//! each token (its feed-forward layer is as wide as the active experts together).
//!
//! The models take turns, round after round, so that whatever else the machine does falls on all of them: a ratio is the
//! median over the rounds of each round's own ratio.

use std::time::Instant;

use serde_json::{Value, json};
use tessera_benches::{Rows, forward_backward, median, update};
use tessera_data::MicroBatch;
use tessera_train::engine::Engine;

const ROWS: Rows = Rows { count: 4, tokens: 1024 };
const ROUNDS: usize = 9;
const VOCABULARY: u32 = 8192;
/// Width of the dense model's feed-forward layer, and of a token's active experts together.
const ACTIVE: usize = 2048;
/// How many experts there are and how many a token uses.
const MIXTURES: [(usize, usize); 2] = [(8, 2), (16, 4)];

/// A Mistral, or with experts a Mixtral.
fn config(experts: Option<(usize, usize)>) -> Value {
    let mut config = json!({
        "architectures": ["MistralForCausalLM"], "hidden_size": 512, "intermediate_size": ACTIVE, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": VOCABULARY, "sliding_window": null,
        "max_position_embeddings": 1024,
    });
    if let Some((count, active)) = experts {
        config["architectures"] = json!(["MixtralForCausalLM"]);
        config["intermediate_size"] = json!(ACTIVE / active);
        config["num_local_experts"] = json!(count);
        config["num_experts_per_tok"] = json!(active);
        config["router_aux_loss_coef"] = json!(0.02);
    }
    config
}

/// A model, and how long its rounds took.
struct Contender {
    name: String,
    engine: Engine,
    /// Seconds of forward and backward.
    passes: Vec<f64>,
    /// Seconds of the whole step.
    steps: Vec<f64>,
}

impl Contender {
    fn new(experts: Option<(usize, usize)>) -> Self {
        let name = match experts {
            Some((count, active)) => format!("{active} of {count} experts"),
            None => "dense".to_owned(),
        };
        let engine = ROWS.engine(&config(experts).to_string(), true);
        Self { name, engine, passes: Vec::new(), steps: Vec::new() }
    }

    fn step(&mut self, batch: &MicroBatch) {
        let start = Instant::now();
        forward_backward(&mut self.engine, batch).expect("the batch fits");
        self.passes.push(start.elapsed().as_secs_f64());
        update(&mut self.engine).expect("the step can be finished");
        self.steps.push(start.elapsed().as_secs_f64());
    }

    fn forget(&mut self) {
        self.passes.clear();
        self.steps.clear();
    }

    /// A line of the table, with the ratios to another.
    fn line(&self, other: &Self) -> String {
        let parameters = self.engine.model().config().parameter_count() as f64 / 1e6;
        let active = self.engine.model().config().active_parameter_count() as f64 / 1e6;
        let ratio = |own: &[f64], other: &[f64]| {
            median(own.iter().zip(other).map(|(own, other)| own / other).collect())
        };
        format!(
            "| {:<16} | {parameters:>10.1} | {active:>6.1} | {:>20.0} | {:>5.2} | {:>15.0} | {:>5.2} |",
            self.name,
            median(self.passes.clone()) * 1e3,
            ratio(&self.passes, &other.passes),
            median(self.steps.clone()) * 1e3,
            ratio(&self.steps, &other.steps),
        )
    }
}

fn main() {
    let mut contenders = vec![Contender::new(None)];
    contenders.extend(MIXTURES.map(|mixture| Contender::new(Some(mixture))));
    let batch = ROWS.batch(VOCABULARY);
    for round in 0..=ROUNDS {
        contenders.iter_mut().for_each(|contender| contender.step(&batch));
        if round == 0 {
            // It touched all memory for the first time.
            contenders.iter_mut().for_each(Contender::forget);
        }
    }
    println!(
        "| model            | M parameters | active | forward, backward ms | ratio | with the update | ratio |"
    );
    contenders.iter().for_each(|contender| println!("{}", contender.line(&contenders[0])));
}
