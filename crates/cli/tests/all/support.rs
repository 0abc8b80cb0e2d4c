//! A folder with a tiny random model, data and a run file, and the binary run in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const TOKENIZER: &str = include_str!("../../../data/tests/fixtures/tokenizer.json");
/// Rows of the model's embedding; the tokenizer uses 283.
const VOCABULARY: usize = 288;
const HIDDEN: usize = 32;
const INNER: usize = 48;

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Checks that it succeeded, and gives what it printed.
    #[track_caller]
    pub fn printed(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// Checks that it succeeded, and gives the JSON that it printed.
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.printed()).unwrap()
    }

    /// Checks that it was refused as a mistake in the input, with an error that holds all of `parts`.
    #[track_caller]
    pub fn refused(self, parts: &[&str]) {
        self.failed(2, parts);
    }

    /// Checks the exit code, and that the error holds all of `parts`.
    #[track_caller]
    pub fn failed(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.stderr.contains("error: "), "{self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
    }
}

/// A folder to run commands in.
pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// A folder with `model`, `train.jsonl`, `eval.jsonl` and `run.yaml`: two epochs of six batches, named `tiny`.
    pub fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.write("model/config.json", config(VOCABULARY).to_string());
        bench.write("model/tokenizer.json", TOKENIZER);
        bench.write("model/tokenizer_config.json", r#"{"bos_token": "<|begin|>", "eos_token": "<|end|>"}"#);
        bench.write("model/model.safetensors", WEIGHTS.as_slice());
        bench.write("train.jsonl", sums(0..96));
        bench.write("eval.jsonl", sums(96..104));
        bench.write(
            "run.yaml",
            "model: model\n\
             train_data_path: train.jsonl\n\
             eval_data_path: eval.jsonl\n\
             eval_prompts: [\"1 + 2?\"]\n\
             eval_generation: {max_new_tokens: 6}\n\
             training_duration: 2ep\n\
             learning_rate: 1.0e-2\n\
             context_length: 64\n\
             global_train_batch_size: 16\n\
             packing: none\n\
             run_name: tiny\n",
        );
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    /// The lines of a JSON Lines file.
    pub fn json_lines(&self, name: &str) -> Vec<Value> {
        self.text(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The binary with these arguments, in the folder, away from the hub and from the user's own cache.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path("hf"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn tessera(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments))
    }

    /// Rewrites the model's weights; `change` gets their names, shapes and values.
    pub fn change_weights(&self, change: impl FnOnce(&mut Vec<Tensor>)) {
        let mut tensors = tensors();
        change(&mut tensors);
        self.write("model/model.safetensors", serialized(&tensors));
    }
}

/// Runs a command to its end.
pub fn ended(mut command: Command) -> Ended {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Conversations about sums, one a line.
pub fn sums(range: std::ops::Range<u32>) -> String {
    let row = |index: u32| {
        let (a, b) = (index % 10, index / 10 % 10);
        chat(&[
            ("user", &format!("{a} + {b}?")),
            ("assistant", &format!("{}.{}", a + b, " yes".repeat(b as usize % 4))),
        ])
    };
    range.map(row).collect()
}

/// A conversation's line.
pub fn chat(turns: &[(&str, &str)]) -> String {
    let messages: Vec<_> =
        turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    format!("{}\n", json!({ "messages": messages }))
}

/// The tiny model's `config.json`.
pub fn config(vocabulary: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "eos_token_id": null,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
    })
}

/// Name, shape, values.
pub type Tensor = (String, Vec<usize>, Vec<f32>);

/// The tiny model's weights: small numbers without a pattern.
fn tensors() -> Vec<Tensor> {
    let keys = HIDDEN / 2;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..2 {
        let parts: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[HIDDEN]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[keys, HIDDEN]),
            ("self_attn.v_proj", &[keys, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("mlp.gate_proj", &[INNER, HIDDEN]),
            ("mlp.up_proj", &[INNER, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, INNER]),
        ];
        let named =
            |(part, shape): (&str, &[usize])| (format!("model.layers.{layer}.{part}.weight"), shape.to_vec());
        shapes.extend(parts.map(named));
    }
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.1
    };
    let filled = |(name, shape): (String, Vec<usize>)| {
        let norm = shape.len() == 1;
        let values = (0..shape.iter().product()).map(|_| if norm { 1.0 } else { draw() }).collect();
        (name, shape, values)
    };
    shapes.into_iter().map(filled).collect()
}

static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| serialized(&tensors()));

fn serialized(tensors: &[Tensor]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// What a batch came to, without what depends on the clock.
pub fn timeless(mut line: Value) -> Value {
    let fields = line.as_object_mut().unwrap();
    fields.retain(|name, _| {
        !name.starts_with("throughput/")
            && !["time/train", "time/remaining_estimate"].contains(&name.as_str())
    });
    line
}

/// The names in a folder, sorted, without hidden ones.
pub fn names(folder: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}
