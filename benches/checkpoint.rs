//! Saving and loading 256 MiB of fp32 tensors, 64 of 1024 × 1024: a checkpoint by one rank, an export as safetensors,
//! and, to hold them against, as many bytes written to one file and synced, and read from one file.
//!
//! All that is saved is synced to the disk that holds the build. All that is loaded was written a moment before, so
//! it comes from the page cache: loading shows what parsing, checksums and copying cost, not the disk. Throughput
//! counts the bytes of the file; an export in bf16 has half as many.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use serde_json::json;
use tempfile::TempDir;
use tessera_checkpoint::dcp::{DcpReader, ElementType, RankWriter, SaveId, StatePath, write_metadata};
use tessera_checkpoint::huggingface::{DEFAULT_SHARD_BYTES, Export, ExportDType, ExportOptions};

const TENSORS: usize = 64;
const SHAPE: [usize; 2] = [1024, 1024];
const ELEMENTS: usize = SHAPE[0] * SHAPE[1];
const BYTES: usize = TENSORS * ELEMENTS * size_of::<f32>();

/// Each tensor's elements are the next [`ELEMENTS`] of these.
fn values() -> Vec<f32> {
    let value = |place: u32| (place.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
    (0..(TENSORS * ELEMENTS) as u32).map(value).collect()
}

fn names() -> Vec<String> {
    (0..TENSORS).map(|number| format!("model.layers.{number}.weight")).collect()
}

fn save(folder: &Path, names: &[String], values: &[f32]) {
    let mut writer = RankWriter::create(folder, 0, SaveId::of("bench")).unwrap();
    for (name, elements) in names.iter().zip(values.chunks(ELEMENTS)) {
        writer.write_elements(&StatePath::weight(name), ElementType::F32, &SHAPE, 0, elements).unwrap();
    }
    write_metadata(folder, vec![writer.finish().unwrap()]).unwrap();
}

fn load(folder: &Path, names: &[String], values: &mut [f32]) {
    let reader = DcpReader::open(folder).unwrap();
    for (name, elements) in names.iter().zip(values.chunks_mut(ELEMENTS)) {
        reader.read_elements(&StatePath::weight(name).to_string(), 0, elements).unwrap();
    }
}

fn export(folder: &Path, names: &[String], values: &[f32], dtype: ExportDType) {
    let tensors: Vec<_> = names.iter().map(|name| (name.clone(), SHAPE.to_vec())).collect();
    let config = json!({"model_type": "llama", "torch_dtype": "float32"});
    let options =
        ExportOptions { dtype, max_shard_bytes: DEFAULT_SHARD_BYTES, config: &config, side_files: &[] };
    let mut export = Export::create(&folder.join("export"), &tensors, &options).unwrap();
    for (name, elements) in names.iter().zip(values.chunks(ELEMENTS)) {
        export.write(name, elements).unwrap();
    }
    export.finish().unwrap();
}

fn write_and_sync(folder: &Path, bytes: &[u8]) {
    let mut file = File::create(folder.join("plain")).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

fn temporary() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Measures `run`, which fills an empty folder with `bytes` bytes. Removing the folder is not counted.
fn measure_saving(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    bytes: usize,
    mut run: impl FnMut(&Path),
) {
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(name, |bencher| {
        let fill = |folder: TempDir| {
            run(folder.path());
            folder
        };
        bencher.iter_batched(temporary, fill, BatchSize::PerIteration);
    });
}

fn saving(criterion: &mut Criterion) {
    let (names, values, plain) = (names(), values(), vec![0x5a_u8; BYTES]);
    let mut group = criterion.benchmark_group("saving 256 MiB");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    measure_saving(&mut group, "plain file", BYTES, |folder| write_and_sync(folder, &plain));
    measure_saving(&mut group, "checkpoint", BYTES, |folder| save(folder, &names, &values));
    for (name, dtype, bytes) in
        [("export in fp32", ExportDType::F32, BYTES), ("export in bf16", ExportDType::Bf16, BYTES / 2)]
    {
        measure_saving(&mut group, name, bytes, |folder| export(folder, &names, &values, dtype));
    }
    group.finish();
}

fn loading(criterion: &mut Criterion) {
    let (names, mut values, mut plain) = (names(), values(), vec![0x5a_u8; BYTES]);
    let folder = temporary();
    save(folder.path(), &names, &values);
    write_and_sync(folder.path(), &plain);
    let mut group = criterion.benchmark_group("loading 256 MiB");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10).sampling_mode(SamplingMode::Flat);
    group.bench_function("plain file", |bencher| {
        bencher.iter(|| File::open(folder.path().join("plain")).unwrap().read_exact(&mut plain).unwrap());
    });
    group.bench_function("checkpoint", |bencher| {
        bencher.iter(|| load(folder.path(), &names, &mut values));
    });
    group.finish();
}

/// Ten samples each, in about three seconds: the whole file within a minute.
fn brief() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3))
}

criterion_group! { name = benches; config = brief(); targets = saving, loading }
criterion_main!(benches);
