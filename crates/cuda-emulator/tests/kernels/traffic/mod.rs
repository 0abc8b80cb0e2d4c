//! What every kernel moves and computes, against what it must: bytes, floating-point operations, instructions.
//!
//! Bytes counted are those of the sectors of 32 bytes that warps touch, so an access that is not coalesced counts for what
//! it wastes, and one that a cache serves counts like any other. Bytes needed are each input once and each output once, an
//! output that is added to twice. Operations needed are those of the formula at the head of the kernel's file, a function
//! like exp as one.
//!
//! The sizes are small for the sake of time, and no ratio depends on them but for what a block reads once for many
//! rows: a real row count has more rows for each. Launches are those of the operators. `scripts/kernel-table` makes the
//! table in benches/README.md of the lines that these tests print.

mod attention;
mod elementwise;
mod experts;
mod norms;
mod optimizers;
mod rows;

use tessera_cuda_emulator::{Random, Report};

use crate::device::{Argument, Kernels, Launch, unsigned};
use crate::support::{Values, Variant};

/// Bytes counted by bytes needed, at most, of a kernel that memory bounds.
const LIMIT: f64 = 1.1;
const ROWS: usize = 64;
const WIDTH: usize = 2048;
const SIZE: usize = ROWS * WIDTH;

/// What a kernel's time goes into.
#[derive(Clone, Copy, PartialEq)]
enum Bound {
    /// Bytes: none may be moved that need not.
    Memory,
    /// Products on tensor cores: shared memory must feed them without conflicts.
    TensorCores,
    /// What is too little to matter or is served by caches.
    Neither,
}

/// A kernel on stated extents.
struct Case {
    file: &'static str,
    kernel: String,
    size: String,
    launch: Launch,
    bound: Bound,
    /// Bytes that must move.
    bytes: usize,
    /// Floating-point operations that must be done.
    flops: usize,
    /// What bytes and operations are proportional to.
    elements: usize,
}

impl Case {
    /// A kernel that memory bounds, on `ROWS` rows of `WIDTH` elements with a block for each row.
    fn new(file: &'static str, kernel: impl Into<String>, bytes: usize, flops: usize) -> Self {
        Self {
            file,
            kernel: kernel.into(),
            size: format!("{ROWS} × {WIDTH}"),
            launch: Launch::blocks(ROWS),
            bound: Bound::Memory,
            bytes,
            flops,
            elements: SIZE,
        }
    }

    fn launch(self, launch: Launch) -> Self {
        Self { launch, ..self }
    }

    fn of(self, size: impl Into<String>, elements: usize) -> Self {
        Self { size: size.into(), elements, ..self }
    }

    fn bound(self, bound: Bound) -> Self {
        Self { bound, ..self }
    }

    fn run(&self, mut arguments: Vec<Argument<'_>>) {
        let report = Kernels::load(self.file).run(&self.kernel, self.launch, &mut arguments);
        self.tell(&report);
        let Self { kernel, bytes, .. } = self;
        match self.bound {
            Bound::Memory => {
                let (counted, most) = (bytes_of(&report), LIMIT * *bytes as f64);
                assert!(counted as f64 <= most, "{kernel}: {counted} bytes counted, {bytes} needed");
            }
            Bound::TensorCores => assert_eq!(report.bank_conflicts, 0, "{kernel}"),
            Bound::Neither => {}
        }
    }

    /// Prints a line for `scripts/kernel-table`, which names the fields. `mma` are of PTX, which moves and computes
    /// addresses more often than the machine code does.
    fn tell(&self, report: &Report) {
        let bound = match self.bound {
            Bound::Memory => "memory",
            Bound::TensorCores => "tensor cores",
            Bound::Neither => "–",
        };
        let numbers = [
            self.launch.threads as u64,
            self.launch.shared as u64,
            self.elements as u64,
            self.bytes as u64,
            bytes_of(report),
            self.flops as u64,
            report.flops,
            report.issued(),
            report.matrix_multiplies,
        ];
        let numbers = numbers.map(|number| number.to_string()).join("\t");
        println!("kernel-table\tkernel\t{}\t{}\t{bound}\t{numbers}", self.kernel, self.size);
    }
}

/// Bytes of the sectors that warps touched.
fn bytes_of(report: &Report) -> u64 {
    32 * (report.global_read_sectors + report.global_written_sectors)
}

fn values<V: Variant>(count: usize) -> Vec<V> {
    Values::random(&mut Random::new(1), count).rounded
}

fn floats(count: usize) -> Vec<f32> {
    Values::random(&mut Random::new(2), count).rounded
}

fn named<V: Variant>(kernel: &str) -> String {
    format!("{kernel}_{}", V::SUFFIX)
}

fn rows() -> Argument<'static> {
    unsigned(ROWS)
}

fn width() -> Argument<'static> {
    unsigned(WIDTH)
}
