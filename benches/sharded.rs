//! What sharding does to the time of a step and of a checkpoint, on ranks that are threads of this process.
//!
//! The first table: for how long weights are gathered and gradients reduced in a step, and which share of that a rank did not stand
//! and wait for, because it computed meanwhile: of the rank that has hidden least. A gather runs from when a rank comes to it
//! until it has the weights, the wait for other ranks included.
//!
//! The second: all ranks write, and read, their shards of one checkpoint at a time, against as many bytes that as many threads
//! write to a file each and sync, and read. Both take turns, and a ratio is the median over the rounds. What is read was written
//! a moment before and comes from the page cache.

#![allow(missing_docs, clippy::expect_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use tessera_benches::{Rows, forward_backward, median, update};
use tessera_checkpoint::dcp::{DcpReader, ElementType, RankWriter, SaveId, StatePath, write_metadata};
use tessera_dist::{Deadline, Degrees, Mesh, Operation, threads};

const ROWS: Rows = Rows { count: 4, tokens: 256 };
const VOCABULARY: u32 = 8192;
const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
  "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "tie_word_embeddings": false
}"#;
const STEPS: u32 = 5;

/// Tensors of the checkpoint: as many bytes as a model of 67 M parameters has weights.
const TENSORS: usize = 64;
const SHAPE: [usize; 2] = [1024, 1024];
const ELEMENTS: usize = SHAPE[0] * SHAPE[1];
const BYTES: usize = TENSORS * ELEMENTS * size_of::<f32>();
const ROUNDS: usize = 9;

/// How long one kind of collective took a rank in a step, and how much of that was hidden.
struct Cost {
    ran: Duration,
    hidden: f64,
}

/// What gathers and reductions cost in a step that rank of so many which hid least of them. Each computes the same rows.
fn cost(ranks: usize) -> [Cost; 2] {
    const OPERATIONS: [Operation; 2] = [Operation::AllGather, Operation::ReduceScatter];
    let deadline = Deadline::new(Duration::from_secs(600));
    let groups = threads::groups(ranks, &deadline).expect("threads can be started");
    let rank = |group| {
        let degrees = Degrees { shard: ranks, replicate: 1, context: 1 };
        let mesh = Mesh::new(group, degrees).expect("all ranks come");
        let mut engine = ROWS.engine_on(mesh, CONFIG, true);
        let recorder = engine.units().mesh().world().recorder().cloned().expect("several ranks have one");
        let batch = ROWS.batch(VOCABULARY);
        let mut step = || {
            forward_backward(&mut engine, &batch).expect("the batch fits");
            update(&mut engine).expect("the step can be finished");
            OPERATIONS.map(|operation| recorder.totals(operation))
        };
        let before = step();
        let after = (0..STEPS).map(|_| step()).last().expect("there are steps");
        std::array::from_fn(|index| {
            let totals = after[index].since(before[index]);
            Cost { ran: totals.ran / STEPS, hidden: totals.hidden_share() }
        })
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = groups.into_iter().map(|group| scope.spawn(|| rank(group))).collect();
        let costs = ranks.into_iter().map(|rank| rank.join().expect("no rank fails"));
        costs
            .reduce(|one, other| {
                let worse = |(one, other): (Cost, Cost)| if one.hidden <= other.hidden { one } else { other };
                let ([one_gather, one_reduction], [other_gather, other_reduction]) = (one, other);
                [worse((one_gather, other_gather)), worse((one_reduction, other_reduction))]
            })
            .expect("there is a rank")
    })
}

/// Runs `part` for each rank, with the tensors that it holds, on a thread of its own.
fn each_rank<T: Send>(ranks: usize, part: impl Fn(usize, Range<usize>) -> T + Sync) -> Vec<T> {
    let part = &part;
    thread::scope(|scope| {
        let own = |rank: usize| rank * TENSORS / ranks..(rank + 1) * TENSORS / ranks;
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || part(rank, own(rank)))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank fails")).collect()
    })
}

fn name(tensor: usize) -> StatePath {
    StatePath::weight(&format!("model.layers.{tensor}.weight"))
}

fn save(folder: &Path, ranks: usize, values: &[f32]) {
    let shards = each_rank(ranks, |rank, tensors| {
        let mut writer =
            RankWriter::create(folder, rank, SaveId::of("bench")).expect("a shard can be created");
        for tensor in tensors {
            let elements = &values[tensor * ELEMENTS..][..ELEMENTS];
            let written = writer.write_elements(&name(tensor), ElementType::F32, &SHAPE, 0, elements);
            written.expect("a tensor can be written");
        }
        writer.finish().expect("the shard can be synced")
    });
    write_metadata(folder, shards).expect("the shards make up the tensors");
}

/// Into `values`, of which each rank has its part.
fn load(folder: &Path, ranks: usize, values: &mut [f32]) {
    let parts: Vec<Mutex<&mut [f32]>> = values.chunks_mut(values.len() / ranks).map(Mutex::new).collect();
    each_rank(ranks, |rank, tensors| {
        let reader = DcpReader::open(folder).expect("the checkpoint can be opened");
        let mut part = parts[rank].lock().expect("each rank has its own");
        for (tensor, values) in tensors.zip(part.chunks_mut(ELEMENTS)) {
            reader.read_elements(&name(tensor).to_string(), 0, values).expect("a tensor can be read");
        }
    });
}

fn plain(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("plain-{rank}"))
}

fn write_plain(folder: &Path, ranks: usize, values: &[f32]) {
    each_rank(ranks, |rank, tensors| {
        let mut file = File::create(plain(folder, rank)).expect("a file can be created");
        for tensor in tensors {
            let elements = &values[tensor * ELEMENTS..][..ELEMENTS];
            file.write_all(bytemuck::cast_slice(elements)).expect("there is room");
        }
        file.sync_all().expect("the file can be synced");
    });
}

fn read_plain(folder: &Path, ranks: usize, values: &mut [f32]) {
    let parts: Vec<Mutex<&mut [f32]>> = values.chunks_mut(values.len() / ranks).map(Mutex::new).collect();
    each_rank(ranks, |rank, _| {
        let mut file = File::open(plain(folder, rank)).expect("it was written");
        let mut part = parts[rank].lock().expect("each rank has its own");
        for values in part.chunks_mut(ELEMENTS) {
            file.read_exact(bytemuck::cast_slice_mut(values)).expect("it is as long");
        }
    });
}

fn seconds(run: impl FnOnce()) -> f64 {
    let began = Instant::now();
    run();
    began.elapsed().as_secs_f64()
}

/// The times of all rounds by which a checkpoint and a plain file are saved and loaded.
#[derive(Default)]
struct Times {
    saved: Vec<f64>,
    written: Vec<f64>,
    loaded: Vec<f64>,
    read: Vec<f64>,
}

fn times(ranks: usize, values: &[f32]) -> Times {
    let mut times = Times::default();
    let mut back = values.to_vec();
    for _ in 0..ROUNDS {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder can be made");
        let folder = folder.path();
        times.saved.push(seconds(|| save(folder, ranks, values)));
        times.written.push(seconds(|| write_plain(folder, ranks, values)));
        back.fill(0.0);
        times.loaded.push(seconds(|| load(folder, ranks, &mut back)));
        assert!(back == values, "the checkpoint holds something else");
        times.read.push(seconds(|| read_plain(folder, ranks, &mut back)));
    }
    times
}

fn ratio(plain: &[f64], own: &[f64]) -> f64 {
    median(plain.iter().zip(own).map(|(plain, own)| plain / own).collect())
}

fn main() {
    println!("| ranks | gathers, ms a step | hidden | reductions, ms a step | hidden |");
    println!("|------:|-------------------:|-------:|----------------------:|-------:|");
    for ranks in [2, 4] {
        let [gather, reduction] = cost(ranks);
        let milliseconds = |cost: &Cost| cost.ran.as_secs_f64() * 1e3;
        let percent = |cost: &Cost| cost.hidden * 100.0;
        println!(
            "| {ranks} | {:.1} | {:.0} % | {:.1} | {:.0} % |",
            milliseconds(&gather),
            percent(&gather),
            milliseconds(&reduction),
            percent(&reduction)
        );
    }
    let value = |place: u32| (place.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
    let values: Vec<f32> = (0..(TENSORS * ELEMENTS) as u32).map(value).collect();
    let rate = |seconds: Vec<f64>| BYTES as f64 / 1e6 / median(seconds);
    println!(
        "\n| ranks | saved, MB/s | plain files, MB/s | saved ÷ plain | loaded, MB/s | plain files, MB/s | loaded ÷ plain |"
    );
    println!(
        "|------:|------------:|-----------------:|--------------:|-------------:|-----------------:|---------------:|"
    );
    for ranks in [1, 2, 4] {
        let times = times(ranks, &values);
        let (saved, loaded) = (ratio(&times.written, &times.saved), ratio(&times.read, &times.loaded));
        println!(
            "| {ranks} | {:.0} | {:.0} | {saved:.2} | {:.0} | {:.0} | {loaded:.2} |",
            rate(times.saved),
            rate(times.written),
            rate(times.loaded),
            rate(times.read),
        );
    }
}
