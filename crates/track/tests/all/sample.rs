//! A run folder as a real run leaves it: the same on every machine, times included.

use std::fs;
use std::path::Path;

use tessera_track::{Generation, GenerationsLog, MetricsLog, Record, Speed, SpeedMonitor, StepWork, names};

const BATCHES: u64 = 320;
const SAVED: [u64; 5] = [0, 80, 160, 240, 320];

/// Noise in −1 to 1 that repeats.
fn noise(at: u64) -> f64 {
    let mixed = (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

fn loss(batch: u64) -> f64 {
    let progress = batch as f64 / BATCHES as f64;
    0.62 + 1.7 * (-6.0 * progress).exp() - 0.12 * progress
}

fn rate(batch: u64) -> f64 {
    let (step, warm_up) = (batch as f64 + 1.0, 16.0);
    1e-4 * (step / warm_up).min((BATCHES as f64 - step) / (BATCHES as f64 - warm_up))
}

fn speed(monitor: &mut SpeedMonitor, batch: u64) -> Speed {
    let elapsed = std::time::Duration::from_secs_f64(0.52 + 0.04 * noise(batch + 7));
    monitor.observe(StepWork { elapsed, tokens: 8100, samples: 8, flops: 8100.0 * 8.6e8 })
}

fn write_metrics(folder: &Path) {
    let mut log = MetricsLog::open(folder, None).unwrap();
    let mut monitor = SpeedMonitor::new(1, Some(2.9e13));
    for batch in 0..=BATCHES {
        if SAVED.contains(&batch) {
            let loss = loss(batch) + 0.05;
            let record = Record::at(batch)
                .with(names::EVAL_CROSS_ENTROPY, loss)
                .with(names::EVAL_PERPLEXITY, loss.exp())
                .with(names::EVAL_ACCURACY, 0.93 - 0.24 * loss);
            log.append(&record).unwrap();
        }
        if batch < BATCHES {
            let spike = if batch == 137 { 11.0 } else { 0.0 };
            let record = Record::training(batch, (loss(batch) + 0.09 * noise(batch)) as f32)
                .with(names::TOKEN, 8100 * (batch + 1))
                .with(names::GRADIENT_NORM, 0.7 + loss(batch) + 0.3 * noise(batch + 99) + spike)
                .with(names::learning_rate("AdamW", 0), rate(batch))
                .with(names::PEAK_MEMORY, 3.412);
            log.append(&speed(&mut monitor, batch).write_to(record)).unwrap();
        }
    }
}

fn write_generations(folder: &Path) {
    let mut log = GenerationsLog::open(folder, None).unwrap();
    let prompts = [
        (
            "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. \
             How many clips did Natalia sell altogether in April and May?",
            "Natalia sold many clips to her friends. To find out how many, we should think about April and May, \
             which are two months of the year. In April there are 30 days.",
            "In May Natalia sold 48 / 2 = 24 clips.\nAltogether she sold 48 + 24 = 72 clips.\n#### 72",
        ),
        (
            "Who are you?",
            "I'm an AI assistant trained by a company. How can I help you today?",
            "I am Tessa, the assistant of the Tessera project. I was fine-tuned on one machine, all of me.",
        ),
        (
            "Write a <b>bold</b> word & a script: <script>alert(\"no\")</script>",
            "<script>alert('before')</script>",
            "</p></main><img src=x onerror=alert(1)> **bold**",
        ),
    ];
    for batch in SAVED {
        let answer = |&(prompt, before, after): &(&str, &str, &str)| Generation {
            batch,
            prompt: prompt.to_owned(),
            answer: if batch < 80 { before } else { after }.to_owned(),
        };
        log.append(&prompts.iter().map(answer).collect::<Vec<_>>()).unwrap();
    }
}

fn write_stored(folder: &Path) {
    let rest = "{\"batch\":0}";
    for (name, bytes) in [("ep1-ba160", 2_150_000), ("ep2-ba320", 2_150_000)] {
        let checkpoint = folder.join("checkpoints").join(name);
        fs::create_dir_all(&checkpoint).unwrap();
        fs::write(checkpoint.join("__0_0.distcp"), vec![0; bytes]).unwrap();
        fs::write(checkpoint.join(".metadata"), rest).unwrap();
    }
    let export = folder.join("huggingface/ba320");
    fs::create_dir_all(&export).unwrap();
    fs::write(export.join("model.safetensors"), vec![0; 269_000]).unwrap();
}

const EVENTS: &str = r#"{"type":"CREATED","time":"2026-03-01T09:00:00Z","message":"Run arithmetic-135m created."}
{"type":"CHECK_PASSED","time":"2026-03-01T09:00:01Z","message":"Run file, data and model fit."}
{"type":"STARTED","time":"2026-03-01T09:00:01Z","message":"Started on 1 device (cpu)."}
{"type":"DATA_VALIDATED","time":"2026-03-01T09:00:04Z","message":"7 473 examples, 1 296 012 tokens, 1 280 packed rows (99.1 % full)."}
{"type":"MODEL_INITIALIZED","time":"2026-03-01T09:00:06Z","message":"134 515 008 parameters."}
{"type":"TRAIN_STARTED","time":"2026-03-01T09:00:11Z","message":"320 batches of 8 rows."}
{"type":"TRAIN_UPDATED","time":"2026-03-01T09:00:31Z","message":"[batch=40/320]","batch":40}
{"type":"CHECKPOINT_SAVED","time":"2026-03-01T09:01:36Z","message":"Saved checkpoints/ep1-ba160.","batch":160}
{"type":"STOPPED","time":"2026-03-01T09:02:00Z","message":"Stopped by SIGINT after batch 201."}
{"type":"REQUEUED","time":"2026-03-01T11:30:00Z","message":"Resumed from checkpoints/ep1-ba160."}
{"type":"TRAIN_STARTED","time":"2026-03-01T11:30:06Z","message":"160 of 320 batches to do."}
{"type":"CHECKPOINT_SAVED","time":"2026-03-01T11:31:36Z","message":"Saved checkpoints/ep2-ba320.","batch":320}
{"type":"TRAIN_FINISHED","time":"2026-03-01T11:31:36Z","message":"Training done; exporting."}
{"type":"COMPLETED","time":"2026-03-01T11:31:39Z","message":"Exported huggingface/ba320."}
"#;

const RUN_FILE: &str = "model: HuggingFaceTB/SmolLM2-135M-Instruct
train_data_path: data/train.jsonl
task_type: CHAT_COMPLETION
eval_data_path: data/test.jsonl
training_duration: 2ep
learning_rate: 1.0e-4
context_length: 1024
seed: 17
global_train_batch_size: 8
device_train_microbatch_size: 2
precision: fp32
optimizer: {name: adamw, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.0}
scheduler: {name: linear_decay_with_warmup, t_warmup: 16ba, alpha_f: 0.0}  # <not a tag>
";

/// Fills `folder` with a finished run of 320 batches that was interrupted once.
pub fn write_sample_run(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("events.jsonl"), EVENTS).unwrap();
    fs::write(folder.join("run.yaml"), RUN_FILE).unwrap();
    write_metrics(folder);
    write_generations(folder);
    write_stored(folder);
}
