//! A whole training step of a 56 M-parameter Llama (vocabulary 32000, hidden 512, 8 layers, 8 heads of which 4 for keys and
//! values, feed-forward 1376, untied), 4 rows of 512 tokens, AdamW, in fp32 and with factors of products rounded to bf16; and the
//! same with blocks that keep everything.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tessera_benches::{Rows, forward_backward, update};
use tessera_ops::Factors;

const ROWS: Rows = Rows { count: 4, tokens: 512 };
const VOCABULARY: u32 = 32_000;
const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
  "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "tie_word_embeddings": false
}"#;

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step of a 56 M Llama");
    group
        .throughput(Throughput::Elements(u64::from(ROWS.total())))
        .sample_size(10)
        .measurement_time(std::time::Duration::from_secs(12));
    let batch = ROWS.batch(VOCABULARY);
    for (name, factors, recompute) in [
        ("fp32, recompute by block", Factors::Exact, true),
        ("fp32, everything kept", Factors::Exact, false),
        ("amp_bf16, recompute by block", Factors::Bf16, true),
        ("amp_bf16, everything kept", Factors::Bf16, false),
    ] {
        let mut engine = ROWS.engine_with(factors, CONFIG, recompute);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                forward_backward(&mut engine, &batch).expect("the batch fits");
                update(&mut engine).expect("the step can be finished")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
