//! One step of a small model, for a program that counts instructions: unlike times, their number is the same whatever else the
//! machine does.
//!
//! `scripts/instructions` runs it under callgrind, which counts from where [`counted_step`] begins to where it ends. All of the
//! step is done by one thread, the one that calls. The step before makes what is made but once.

#![allow(missing_docs, clippy::expect_used)]

use std::env;

use rayon::ThreadPoolBuilder;
use tessera_benches::{Rows, forward_backward, update};
use tessera_data::MicroBatch;
use tessera_ops::Factors;
use tessera_train::engine::Engine;

const ROWS: Rows = Rows { count: 2, tokens: 64 };
const VOCABULARY: u32 = 1024;
const DENSE: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "tie_word_embeddings": false
}"#;
const EXPERTS: &str = r#"{
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
  "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "tie_word_embeddings": false, "num_local_experts": 4, "num_experts_per_tok": 2,
  "router_aux_loss_coef": 0.02
}"#;

fn engine(case: &str) -> Option<Engine> {
    let recompute = true;
    Some(match case {
        "dense fp32" => ROWS.engine(DENSE, recompute),
        "dense amp_bf16" => ROWS.engine_with(Factors::Bf16, DENSE, recompute),
        "experts fp32" => ROWS.engine(EXPERTS, recompute),
        _ => return None,
    })
}

#[inline(never)]
fn counted_step(engine: &mut Engine, batch: &MicroBatch) {
    forward_backward(engine, batch).expect("the batch fits");
    update(engine).expect("the step can be finished");
}

fn main() {
    let case = env::args().nth(1).unwrap_or_default();
    ThreadPoolBuilder::new()
        .num_threads(1)
        .use_current_thread()
        .build_global()
        .expect("there is no pool yet");
    // `cargo bench` names no case: there is nothing to time.
    let Some(mut engine) = engine(&case) else { return };
    let batch = ROWS.batch(VOCABULARY);
    forward_backward(&mut engine, &batch).expect("the batch fits");
    update(&mut engine).expect("the step can be finished");
    counted_step(&mut engine, &batch);
}
