//! A run that takes a second: a random two-block model, a small tokenizer, a few conversations.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tessera_train::TrainError;
use tessera_train::launch::Launch;
use tessera_train::observe::{Observer, Update};
use tessera_train::run::{Outcome, StopSignal, train};
use tessera_train::spec::RunSpec;

const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "vocab_size": 288, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
  "tie_word_embeddings": true, "rope_theta": 10000.0, "torch_dtype": "float32", "initializer_range": 0.05
}"#;

/// The same size with experts of which the smallest group holds a few: three units of them in each block.
const MIXTURE: &str = r#"{
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
  "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "vocab_size": 288, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
  "num_local_experts": 5, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1, "sliding_window": null,
  "tie_word_embeddings": false, "rope_theta": 10000.0, "torch_dtype": "float32", "initializer_range": 0.05,
  "eos_token_id": null
}"#;

/// A temporary folder with a model, data and runs.
pub struct Tiny {
    pub folder: tempfile::TempDir,
}

/// What a run said, and when to stop it.
#[derive(Default)]
pub struct Watcher {
    pub warnings: Mutex<Vec<String>>,
    pub losses: Mutex<Vec<(u64, f64)>>,
    stop_after: Option<u64>,
    stop: StopSignal,
}

impl Observer for Watcher {
    fn observe(&self, update: Update<'_>) {
        match update {
            Update::Warning(text) => self.warnings.lock().unwrap().push(text.to_owned()),
            Update::TrainingStarts { batch, .. } => self.stop_before(batch + 1),
            Update::Step(step) => {
                self.losses.lock().unwrap().push((step.batch, step.loss));
                self.stop_before(step.batch + 2);
            }
            _ => {}
        }
    }
}

impl Watcher {
    /// The batch under way is the last one if it is the `batch`th.
    fn stop_before(&self, batch: u64) {
        if self.stop_after == Some(batch) {
            self.stop.request(15);
        }
    }
}

impl Tiny {
    pub fn new() -> Self {
        Self::with_config(CONFIG)
    }

    /// A model with experts.
    pub fn mixture() -> Self {
        Self::with_config(MIXTURE)
    }

    fn with_config(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("config.json"), config).unwrap();
        let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/fixtures/tokenizer.json");
        fs::copy(tokenizer, model.join("tokenizer.json")).unwrap();
        fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
        let conversation = |index: usize| {
            let question = "why ".repeat(index % 7);
            format!(
                r#"{{"messages": [{{"role": "user", "content": "{question}{index}?"}}, {{"role": "assistant", "content": "since {}"}}]}}"#,
                index * 3
            )
        };
        let lines =
            |range: std::ops::Range<usize>| range.map(|index| conversation(index) + "\n").collect::<String>();
        fs::write(folder.path().join("train.jsonl"), lines(0..64)).unwrap();
        fs::write(folder.path().join("eval.jsonl"), lines(64..70)).unwrap();
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The run file, with `arguments` laid over it.
    pub fn spec(&self, arguments: &[&str]) -> RunSpec {
        let root = self.folder.path().display();
        let text = format!(
            "model: {root}/model\ntrain_data_path: {root}/train.jsonl\neval_data_path: {root}/eval.jsonl\n\
             eval_prompts: [why?, '2?']\neval_generation: {{max_new_tokens: 4}}\ninit: random\nsave_folder: {root}/runs\n\
             run_name: tiny\ncontext_length: 96\nglobal_train_batch_size: 4\ndevice_train_microbatch_size: 2\n\
             learning_rate: 1.0e-2\ntraining_duration: 2ep\nsave_interval: 3ba\neval_interval: 4ba\n"
        );
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        RunSpec::parse(&text, Path::new("run.yaml"), &arguments).unwrap()
    }

    /// Trains, stopping after `stop_after` batches.
    pub fn train(
        &self,
        arguments: &[&str],
        stop_after: Option<u64>,
    ) -> (Result<Outcome, TrainError>, Arc<Watcher>) {
        self.train_spec(self.spec(arguments), stop_after)
    }

    /// Trains what `spec` says.
    pub fn train_spec(
        &self,
        spec: RunSpec,
        stop_after: Option<u64>,
    ) -> (Result<Outcome, TrainError>, Arc<Watcher>) {
        let watcher = Arc::new(Watcher { stop_after, ..Default::default() });
        let observer: Arc<dyn Observer> = watcher.clone();
        (train(spec, &Launch::alone(), &observer, &watcher.stop), watcher)
    }

    /// The exported weights of a run.
    pub fn exported(&self, run: &str) -> Vec<u8> {
        let folder = self.path("runs").join(run).join("huggingface");
        let batch = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        fs::read(batch.join("model.safetensors")).unwrap()
    }

    /// Lines of a run's metrics, without the fields that depend on time.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path("runs").join(run).join("metrics.jsonl")).unwrap();
        let timed = ["throughput/", "time/train", "time/remaining", "memory/"];
        text.lines()
            .map(|line| {
                let mut line: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
                line.retain(|key, _| !timed.iter().any(|prefix| key.starts_with(prefix)));
                line.into()
            })
            .collect()
    }
}
