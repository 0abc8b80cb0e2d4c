//! What the processor can do at most, measured here and now, and the table that holds a criterion bench against it.
//!
//! Two ceilings bound an operator: multiply-adds from registers, and a copy of memory that no cache holds. Both are taken on as many
//! threads as operators use, before the benches and after them, and the better of the two counts: a machine that others use is seldom at its
//! best. The table is made from the files that criterion leaves, which say what work each bench declared and how long it took.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use pulp::{Arch, Simd, WithSimd};
use serde_json::Value;

/// Sums that do not wait for one another: more than a multiply-add's latency times the number that begin in a cycle.
const SUMS: usize = 12;
/// Multiply-adds of each sum in a trial, about 10 ms.
const STEPS: usize = 1 << 22;
const TRIALS: usize = 9;
/// Bytes that a thread copies: several times a shared cache.
const COPIED: usize = 1 << 27;

/// The ceilings, measured before the benches.
pub struct Rooflines {
    before: Ceilings,
    began: SystemTime,
}

/// Of all threads together.
#[derive(Clone, Copy)]
pub struct Ceilings {
    /// Floating-point operations a second, a multiply-add counted as two.
    pub operations: f64,
    /// Bytes a second, read and written.
    pub bytes: f64,
}

impl Ceilings {
    /// Takes the best of some trials.
    pub fn measure() -> Self {
        let threads = rayon::current_num_threads() as f64;
        let lanes = Arch::new().dispatch(Lanes) as f64;
        let multiply_adds = best(|| {
            black_box(Arch::new().dispatch(MultiplyAdds));
        });
        let pairs: Vec<_> = (0..rayon::current_num_threads()).map(|_| vec![1_u8; COPIED]).collect();
        let buffers = std::sync::Mutex::new(pairs);
        let copy = best(|| {
            let taken = buffers.lock().map(|mut buffers| buffers.pop());
            let Ok(Some(mut buffer)) = taken else { return };
            let (from, to) = buffer.split_at_mut(COPIED / 2);
            to.copy_from_slice(black_box(from));
            if let Ok(mut buffers) = buffers.lock() {
                buffers.push(buffer);
            }
        });
        Self {
            operations: threads * (2 * SUMS * STEPS) as f64 * lanes / multiply_adds,
            bytes: threads * COPIED as f64 / copy,
        }
    }

    fn better(self, other: Self) -> Self {
        Self { operations: self.operations.max(other.operations), bytes: self.bytes.max(other.bytes) }
    }
}

impl Rooflines {
    /// To be called before the benches run.
    pub fn measure() -> Self {
        Self { before: Ceilings::measure(), began: SystemTime::now() }
    }

    /// Prints every bench that has run since, with its rate and the share of its ceiling. Prints nothing where none ran, as under
    /// `cargo test`.
    pub fn print(self) {
        let folder = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
        let mut rows = Vec::new();
        collect(&folder.join("criterion"), self.began, &mut rows);
        if rows.is_empty() {
            return;
        }
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let ceilings = self.before.better(Ceilings::measure());
        let (operations, bytes) = (ceilings.operations / 1e9, ceilings.bytes / 1e9);
        println!(
            "\nceilings: {operations:.0} GFLOP/s of fp32 multiply-adds, {bytes:.1} GB/s copied (read and written)\n"
        );
        println!("| bench | ms | rate | of the ceiling |\n|---|---:|---:|---:|");
        for Row { name, seconds, work } in rows {
            let (rate, share) = match work {
                Work::Operations(count) => {
                    (format!("{:.1} GFLOP/s", count / seconds / 1e9), count / seconds / ceilings.operations)
                }
                Work::Bytes(count) => {
                    (format!("{:.1} GB/s", count / seconds / 1e9), count / seconds / ceilings.bytes)
                }
            };
            println!("| {name} | {:.3} | {rate} | {:.0} % |", 1e3 * seconds, 100.0 * share);
        }
    }
}

enum Work {
    Operations(f64),
    Bytes(f64),
}

struct Row {
    name: String,
    seconds: f64,
    work: Work,
}

/// The benches below a folder of criterion's that were written since.
fn collect(folder: &Path, since: SystemTime, rows: &mut Vec<Row>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        match path.file_name() {
            Some(name) if name == "new" => rows.extend(row(&path, since)),
            _ => collect(&path, since, rows),
        }
    }
}

fn row(folder: &Path, since: SystemTime) -> Option<Row> {
    let estimates = folder.join("estimates.json");
    if fs::metadata(&estimates).ok()?.modified().ok()? < since {
        return None;
    }
    let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).ok()?).ok();
    let (bench, estimates) = (read(&folder.join("benchmark.json"))?, read(&estimates)?);
    let work = &bench["throughput"];
    let work = match (work["Elements"].as_f64(), work["Bytes"].as_f64()) {
        (Some(count), _) => Work::Operations(count),
        (_, Some(count)) => Work::Bytes(count),
        _ => return None,
    };
    let seconds = estimates["median"]["point_estimate"].as_f64()? / 1e9;
    Some(Row { name: bench["full_id"].as_str()?.to_owned(), seconds, work })
}

/// Seconds of the quickest of some trials, all threads doing the same at once; the slowest thread counts.
fn best(run: impl Fn() + Sync) -> f64 {
    let trial = || {
        rayon::broadcast(|_| {
            let began = Instant::now();
            run();
            began.elapsed()
        })
        .into_iter()
        .max()
    };
    (0..TRIALS).filter_map(|_| trial()).min().unwrap_or(Duration::MAX).as_secs_f64()
}

/// Numbers in a register.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

struct MultiplyAdds;

impl WithSimd for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        // From memory, so that the compiler knows no product in advance; the sums stay finite.
        let (factor, term) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let mut sums = [term; SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(*sum, factor, term);
            }
        }
        sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum()
    }
}
