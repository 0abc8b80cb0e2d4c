//! From text to packed rows: [`prepare`] with an empty cache against `encode_batch` and `encode_batch_fast` of the
//! tokenizers crate on the same texts, and packing alone.
//!
//! The texts are generated from seeded words, as text files and as prompts with responses; four plays of
//! `scripts/fetch shakespeare` are a third corpus where they have been fetched. The tokenizer is that of SmolLM2
//! where `scripts/fetch smollm2` has brought it, else a fixture with 20 merges; names of benches say which.
//! [`prepare`] does more than tokenise: it hashes and checks the source, writes rows with loss masks to disk, syncs
//! and maps them. It begins with nothing in its cache each time.

#![allow(missing_docs, clippy::unwrap_used)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BatchSize, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use serde_json::json;
use tempfile::TempDir;
use tessera_benches::texts::{Random, Writer};
use tessera_checkpoint::huggingface::GgufFile;
use tessera_data::{DataSettings, Packing, TargetResponses, Task, TextTokenizer, pack, prepare};
use tokenizers::Tokenizer;

const CONTEXT: usize = 2048;
const DOCUMENTS: usize = 16;
const DOCUMENT_BYTES: usize = 64 << 10;
const EXAMPLES: usize = 2048;
const PLAYS: usize = 4;
const PACKED: usize = 1_000_000;
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/data/tests/fixtures/tokenizer.json");

/// A source for [`prepare`], and the texts in it.
struct Corpus {
    name: &'static str,
    path: PathBuf,
    task: Task,
    texts: Vec<String>,
}

impl Corpus {
    fn files(folder: &Path, name: &'static str, texts: Vec<String>) -> Self {
        let path = folder.join(name);
        fs::create_dir(&path).unwrap();
        for (number, text) in texts.iter().enumerate() {
            fs::write(path.join(format!("{number:03}.txt")), text).unwrap();
        }
        Self { name, path, task: Task::ContinuedPretrain, texts }
    }

    fn generated_files(folder: &Path, writer: &mut Writer) -> Self {
        let texts = (0..DOCUMENTS).map(|_| writer.text(DOCUMENT_BYTES)).collect();
        Self::files(folder, "generated text files", texts)
    }

    fn generated_examples(folder: &Path, writer: &mut Writer) -> Self {
        let path = folder.join("examples.jsonl");
        let (mut texts, mut rows) = (Vec::new(), String::new());
        for _ in 0..EXAMPLES {
            let (prompt, response) = (writer.random.between(32, 224), writer.random.between(64, 832));
            let (prompt, response) = (writer.text(prompt), writer.text(response));
            rows.push_str(&format!("{}\n", json!({"prompt": prompt, "response": response})));
            texts.extend([prompt, response]);
        }
        fs::write(&path, rows).unwrap();
        Self { name: "generated prompts and responses", path, task: Task::InstructionFinetune, texts }
    }

    fn shakespeare(folder: &Path) -> Option<Self> {
        let fetched = fetched("shakespeare").filter(|path| path.is_dir())?;
        let mut paths: Vec<_> = fs::read_dir(fetched).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let texts = paths.iter().take(PLAYS).map(|path| fs::read_to_string(path).unwrap()).collect();
        Some(Self::files(folder, "plays of Shakespeare", texts))
    }

    fn settings(&self, vocab_size: usize) -> DataSettings {
        DataSettings {
            sources: vec![self.path.to_str().unwrap().into()],
            hold_out: None,
            task: self.task,
            context_length: CONTEXT,
            target_responses: TargetResponses::All,
            packing: Packing::BestFit,
            seed: 17,
            vocab_size,
        }
    }
}

/// Where `scripts/fetch` puts an input, whether or not it is there.
fn fetched(input: &str) -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let below_cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let cache = set("TESSERA_CACHE").or_else(|| Some(below_cache()?.join("tessera")))?;
    Some(cache.join("inputs").join(input))
}

/// The tokenizer's name, and the same tokenizer for [`prepare`] and alone.
fn tokenizer() -> (&'static str, TextTokenizer, Tokenizer) {
    let smollm2 = fetched("smollm2").map(|folder| folder.join("SmolLM2-135M-Instruct.Q4_1.gguf"));
    let (name, json, config) = match smollm2.filter(|file| file.is_file()) {
        Some(file) => {
            let files = GgufFile::open(&file).unwrap().tokenizer().unwrap();
            ("SmolLM2's tokenizer", files.tokenizer.to_string().into_bytes(), Some(files.config))
        }
        None => ("fixture tokenizer", fs::read(FIXTURE).unwrap(), None),
    };
    let text_tokenizer = TextTokenizer::new(&json, config.as_ref(), None).unwrap();
    (name, text_tokenizer, Tokenizer::from_bytes(&json).unwrap())
}

fn tokenising(criterion: &mut Criterion) {
    let folder = temporary();
    let mut writer = Writer::default();
    let mut corpora = vec![
        Corpus::generated_files(folder.path(), &mut writer),
        Corpus::generated_examples(folder.path(), &mut writer),
    ];
    corpora.extend(Corpus::shakespeare(folder.path()));
    let (tokenizer_name, text_tokenizer, tokenizer) = tokenizer();
    for corpus in corpora {
        let settings = corpus.settings(tokenizer.get_vocab_size(true));
        let texts: Vec<&str> = corpus.texts.iter().map(String::as_str).collect();
        let mut group = criterion.benchmark_group(format!("{}, {tokenizer_name}", corpus.name));
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        group.throughput(Throughput::Bytes(bytes as u64)).sample_size(10).sampling_mode(SamplingMode::Flat);
        group.bench_function("prepare", |bencher| {
            let run = |cache: TempDir| {
                let prepared = prepare(&settings, &text_tokenizer, cache.path(), &|_| {}).unwrap();
                (prepared, cache)
            };
            bencher.iter_batched(temporary, run, BatchSize::PerIteration);
        });
        group.bench_function("encode_batch", |bencher| {
            let run = |texts| tokenizer.encode_batch(texts, false).unwrap();
            bencher.iter_batched(|| texts.clone(), run, BatchSize::PerIteration);
        });
        group.bench_function("encode_batch_fast", |bencher| {
            let run = |texts| tokenizer.encode_batch_fast(texts, false).unwrap();
            bencher.iter_batched(|| texts.clone(), run, BatchSize::PerIteration);
        });
        group.finish();
    }
}

/// A folder on the disk that holds the build: the system's temporary one may be memory, where syncing is nothing.
fn temporary() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn packing(criterion: &mut Criterion) {
    let mut random = Random::default();
    let lengths: Vec<u32> = (0..PACKED).map(|_| 1 + random.skewed(CONTEXT) as u32).collect();
    let mut group = criterion.benchmark_group("packing");
    group.throughput(Throughput::Elements(PACKED as u64)).sample_size(10);
    group.bench_function("best_fit, 1 M examples", |bencher| {
        bencher.iter(|| pack::best_fit(&lengths, CONTEXT as u32, 17));
    });
    group.finish();
}

/// Ten samples each, in two to four seconds: the whole file within a minute.
fn brief() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = brief(); targets = tokenising, packing }
criterion_main!(benches);
