//! Reading sources: every row of a file read and held against the rules of its task ([`validate`]), beside those who could not do
//! less. JSON on one thread, beside serde_json's own values of the same lines; Parquet on one thread and on all, beside the `parquet`
//! crate's reader, which makes Arrow's arrays of the same columns and stops there.
//!
//! Each round takes them in turn and the table has medians, since the mood of a shared machine lasts for seconds. The files are in
//! the system's memory. A row has texts of some hundred bytes, as chats have. Arguments, if any, are parts of the names of the lines
//! that are wanted.

#![allow(missing_docs, clippy::unwrap_used)]

use std::env;
use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::{Value, json};
use tessera_benches::texts::Writer;
use tessera_data::{SourceSettings, Task, validate};

const BYTES: usize = 128 << 20;
const ROUNDS: usize = 11;

/// A prompt and what follows it.
type Pair = (String, String);

fn pairs() -> Vec<Pair> {
    let (mut writer, mut pairs, mut bytes) = (Writer::default(), Vec::new(), 0);
    while bytes < BYTES {
        let lengths = (writer.random.between(32, 224), writer.random.between(64, 832));
        let pair = (writer.text(lengths.0), writer.text(lengths.1));
        bytes += pair.0.len() + pair.1.len();
        pairs.push(pair);
    }
    pairs
}

fn lines(path: PathBuf, pairs: &[Pair], row: impl Fn(&Pair) -> Value) -> PathBuf {
    let lines: Vec<_> = pairs.iter().map(|pair| format!("{}\n", row(pair))).collect();
    fs::write(&path, lines.concat()).unwrap();
    path
}

fn table(path: PathBuf, pairs: &[Pair], compression: Compression) -> PathBuf {
    let column = |texts: Vec<&str>| Arc::new(StringArray::from(texts)) as ArrayRef;
    let prompts = column(pairs.iter().map(|(prompt, _)| prompt.as_str()).collect());
    let responses = column(pairs.iter().map(|(_, response)| response.as_str()).collect());
    let batch = RecordBatch::try_from_iter([("prompt", prompts), ("response", responses)]).unwrap();
    // Texts that hardly come twice are written plain, as other programs do when their dictionary grows too large.
    let properties = WriterProperties::builder().set_compression(compression).set_dictionary_enabled(false);
    let file = File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

fn ours(path: &Path, task: Task) {
    black_box(validate(&[path.to_str().unwrap().into()] as &[SourceSettings], task, &|_| {}).unwrap());
}

fn serde_json(path: &Path) {
    for line in fs::read(path).unwrap().split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        black_box(serde_json::from_slice::<Value>(line).unwrap());
    }
}

fn arrow(path: &Path) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    for batch in builder.with_batch_size(4096).build().unwrap() {
        black_box(batch.unwrap());
    }
}

fn seconds(pool: &ThreadPool, run: impl FnOnce() + Send) -> f64 {
    let start = Instant::now();
    pool.install(run);
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A line of the table: `bytes` read by ours and by theirs in turn.
fn compare(name: &str, pool: &ThreadPool, bytes: usize, ours: impl Fn() + Sync, theirs: impl Fn() + Sync) {
    let mut wanted = env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    if wanted.peek().is_some() && !wanted.any(|wanted| name.contains(&wanted)) {
        return;
    }
    let rounds = (0..ROUNDS).map(|_| (seconds(pool, &ours), seconds(pool, &theirs)));
    let rounds: Vec<(f64, f64)> = rounds.collect();
    let rate = |times: Vec<f64>| bytes as f64 / 1e6 / median(times);
    let ratio = median(rounds.iter().map(|(ours, theirs)| theirs / ours).collect());
    let (ours, theirs) = rounds.into_iter().unzip();
    println!("| {name} | {:.0} | {:.0} | {ratio:.2} |", rate(ours), rate(theirs));
}

fn main() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| folder.path().join(name);
    let pairs = pairs();
    let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    println!("| read and checked | MB/s | the other, MB/s | of the other |\n|---|---:|---:|---:|");

    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let chat = |(prompt, response): &Pair| json!({"messages": [message("user", prompt), message("assistant", response)]});
    let instruction = |(prompt, response): &Pair| json!({"prompt": prompt, "response": response});
    let text = |(prompt, response): &Pair| json!({"text": format!("{prompt}{response}")});
    for (name, task, path) in [
        ("chat", Task::ChatCompletion, lines(at("chat.jsonl"), &pairs, chat)),
        ("prompts", Task::InstructionFinetune, lines(at("prompts.jsonl"), &pairs, instruction)),
        ("texts", Task::ContinuedPretrain, lines(at("texts.jsonl"), &pairs, text)),
    ] {
        let bytes = fs::metadata(&path).unwrap().len() as usize;
        let name = format!("JSON lines, {name}, 1 thread");
        compare(&name, &pool(1), bytes, || ours(&path, task), || serde_json(&path));
    }

    let all = rayon::current_num_threads();
    for (name, compression) in [("plain", Compression::UNCOMPRESSED), ("snappy", Compression::SNAPPY)] {
        let path = table(at(&format!("{name}.parquet")), &pairs, compression);
        let bytes = pairs.iter().map(|(prompt, response)| prompt.len() + response.len()).sum();
        for threads in [1, all] {
            let name = format!("Parquet, {name}, {threads} thread{}", if threads == 1 { "" } else { "s" });
            compare(&name, &pool(threads), bytes, || ours(&path, Task::InstructionFinetune), || arrow(&path));
        }
    }
}
