//! A whole training step of a 56 M-parameter Llama (vocabulary 32000, hidden 512, 8 layers, 8 heads of which 4 for keys and
//! values, feed-forward 1376, untied), 4 rows of 512 tokens, fp32, AdamW; and the same with blocks that keep everything.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tessera_data::MicroBatch;
use tessera_dist::Single;
use tessera_model::config::ModelConfig;
use tessera_model::{LossScale, Model};
use tessera_train::engine::{Engine, EngineSettings, Optimizer, OwnNews};
use tessera_train::spec::OptimizerSpec;

const ROWS: u32 = 4;
const CONTEXT: u32 = 512;
const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
  "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "tie_word_embeddings": false
}"#;

fn engine(recompute: bool) -> Engine {
    let config =
        ModelConfig::parse(CONFIG, std::path::Path::new("config.json")).expect("the config is valid");
    let settings = EngineSettings {
        micro_batch_tokens: (ROWS * CONTEXT) as usize,
        micro_batch_rows: ROWS as usize,
        positions: CONTEXT as usize,
        chunk_tokens: tessera_train::engine::CHUNK_TOKENS,
        recompute,
        residency: tessera_dist::Residency::default(),
        optimizer: Optimizer { spec: OptimizerSpec::default(), peak_learning_rate: 1e-3 },
        max_grad_norm: 1.0,
    };
    let engine = Engine::new(Model::new(config), Single, settings).expect("there is memory");
    engine.initialise(17).expect("weights can be drawn");
    engine
}

fn batch() -> MicroBatch {
    let tokens = ROWS * CONTEXT;
    MicroBatch {
        tokens: (0..tokens).map(|place| place.wrapping_mul(2_654_435_761) % 32_000).collect(),
        labels: (0..tokens).map(|place| (place.wrapping_mul(40_503) % 32_000) as i32).collect(),
        positions: (0..tokens).map(|place| place % CONTEXT).collect(),
        cu_seqlens: (0..=ROWS).map(|row| row * CONTEXT).collect(),
        row_starts: (0..=ROWS).map(|row| row * CONTEXT).collect(),
        loss_tokens: tokens as usize,
    }
}

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step of a 56 M Llama");
    group
        .throughput(Throughput::Elements(u64::from(ROWS * CONTEXT)))
        .sample_size(10)
        .measurement_time(std::time::Duration::from_secs(12));
    let batch = batch();
    for (name, recompute) in [("recompute by block", true), ("everything kept", false)] {
        let mut engine = engine(recompute);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let scale = LossScale { token: 1.0 / batch.loss_tokens as f64, balance: 0.0 };
                engine.train_micro_batch(&batch, scale).expect("the batch fits");
                engine.finish_step(1.0, OwnNews::default(), |_| {}).expect("the step can be finished")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
