//! Every micro-kernel that the processor has against an fp64 product of the factors, rounded by `half` where the kernel rounds.

use half::bf16;
use rayon::ThreadPoolBuilder;

use super::kernel::Kernel;
use super::pack::{LINES, Lines, PAIRED, Side, Tile};
use crate::gemm::{self, Factors, Matrix, MatrixMut, Output, Threads};

/// Numbers that look random, the same for the same seed (splitmix64).
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// In −1..1.
    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// In 0..bound.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// How the factors of x·Wᵀ, dy·W and dyᵀ·x lie in memory.
#[derive(Debug, Clone, Copy)]
enum Layout {
    NT,
    NN,
    TN,
}

/// A product and its surroundings: rows of factors and output are `gap` longer than they need be, and begin at `offset`.
#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    columns: usize,
    depth: usize,
    layout: Layout,
    output: Output,
    scale: f32,
    gap: usize,
    offset: usize,
}

const OUTSIDE: f32 = 12_345.0;

impl Case {
    /// A factor whose rows lie in memory as such, or its transpose where `columns` do.
    fn factor<'a>(&self, data: &'a [f32], [rows, columns]: [usize; 2], by_columns: bool) -> Matrix<'a, f32> {
        let data = &data[self.offset..];
        match by_columns {
            false => Matrix::block(data, rows, columns, columns + self.gap),
            true => Matrix::block(data, columns, rows, rows + self.gap).transposed(),
        }
    }

    fn factors(&self, seeded: &mut Seeded) -> (Vec<f32>, Vec<f32>) {
        let room = |a: usize, b: usize| self.offset + (a + self.gap) * (b + self.gap);
        (seeded.values(room(self.rows, self.depth)), seeded.values(room(self.depth, self.columns)))
    }

    /// The output, in a slice of [`OUTSIDE`] where the product must not write.
    fn run(&self, kernel: Kernel, (a, b): (&[f32], &[f32]), before: &[f32]) -> Vec<f32> {
        let stride = self.columns + self.gap;
        let mut c = vec![OUTSIDE; self.offset + self.rows * stride];
        for (row, before) in before.chunks_exact(self.columns.max(1)).enumerate() {
            c[self.offset + row * stride..][..self.columns].copy_from_slice(before);
        }
        let a = self.factor(a, [self.rows, self.depth], matches!(self.layout, Layout::TN));
        let b = self.factor(b, [self.depth, self.columns], matches!(self.layout, Layout::NT));
        let out = MatrixMut {
            data: &mut c[self.offset..],
            rows: self.rows,
            columns: self.columns,
            row_stride: stride,
        };
        super::product(kernel, out, a, b, self.scale, self.output, Threads::Pool);
        c
    }

    /// Holds each element against the fp64 sum of the rounded factors' products. A sum of k products in fp32, in whatever order,
    /// is within k·2⁻²⁴ of the sum of their magnitudes; scaling and adding to the output round twice more.
    fn check(&self, kernel: Kernel, seeded: &mut Seeded) {
        let (a, b) = self.factors(seeded);
        let before = seeded.values(self.rows * self.columns);
        let c = self.run(kernel, (&a, &b), &before);
        let rounded = |values: &[f32]| match kernel.factors() {
            Factors::Exact => values.to_vec(),
            Factors::Bf16 => values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>(),
        };
        let (a, b) = (rounded(&a), rounded(&b));
        let a = self.factor(&a, [self.rows, self.depth], matches!(self.layout, Layout::TN));
        let b = self.factor(&b, [self.depth, self.columns], matches!(self.layout, Layout::NT));
        let stride = self.columns + self.gap;
        for (place, &found) in c.iter().enumerate() {
            let (row, column) = match place.checked_sub(self.offset) {
                Some(place) if place % stride < self.columns => (place / stride, place % stride),
                _ => {
                    assert_eq!(found, OUTSIDE, "{kernel:?} {self:?}: wrote outside of its output");
                    continue;
                }
            };
            let before = f64::from(before[row * self.columns + column]);
            let before = if self.output == Output::Add { before } else { 0.0 };
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for k in 0..self.depth {
                let left = f64::from(a.data[row * a.row_stride + k * a.column_stride]);
                let right = f64::from(b.data[k * b.row_stride + column * b.column_stride]);
                (sum, magnitude) = (sum + left * right, magnitude + (left * right).abs());
            }
            let scale = f64::from(self.scale);
            let expected = before + scale * sum;
            let bound =
                (self.depth + 3) as f64 * 2.0_f64.powi(-24) * (before.abs() + scale.abs() * magnitude);
            let error = (f64::from(found) - expected).abs();
            assert!(
                error <= bound,
                "{kernel:?} {self:?}: {found} at {row}, {column} instead of {expected}: {error:e} > {bound:e}"
            );
        }
    }
}

const LAYOUTS: [Layout; 3] = [Layout::NT, Layout::NN, Layout::TN];

#[test]
fn every_kernel_sums_the_products_of_its_factors() {
    let sizes = [
        (5, 7, 0),
        (1, 1, 1),
        (1, 40, 33),
        (17, 1, 64),
        (16, 16, 32),
        (32, 32, 64),
        (33, 49, 31),
        (64, 96, 256),
        (31, 95, 1025),
        (70, 130, 517),
        (3, 4100, 520),
        (600, 20, 90),
    ];
    for kernel in Kernel::available() {
        let mut seeded = Seeded(1);
        for (rows, columns, depth) in sizes {
            for layout in LAYOUTS {
                let (output, scale) = (Output::Replace, 1.0);
                let case = Case { rows, columns, depth, layout, output, scale, gap: 0, offset: 0 };
                case.check(kernel, &mut seeded);
                case.check(kernel, &mut seeded);
                Case { output: Output::Add, gap: 5, offset: 3, ..case }.check(kernel, &mut seeded);
                Case { output: Output::Add, scale: 0.3, ..case }.check(kernel, &mut seeded);
                Case { scale: -0.125, gap: 1, ..case }.check(kernel, &mut seeded);
            }
        }
    }
}

#[test]
fn every_kernel_does_so_for_any_shape() {
    for kernel in Kernel::available() {
        let mut seeded = Seeded(2);
        for _ in 0..150 {
            let case = Case {
                rows: 1 + seeded.below(80),
                columns: 1 + seeded.below(120),
                depth: seeded.below(150),
                layout: LAYOUTS[seeded.below(3)],
                output: [Output::Replace, Output::Add][seeded.below(2)],
                scale: [1.0, 0.125, -1.7][seeded.below(3)],
                gap: seeded.below(4),
                offset: seeded.below(5),
            };
            case.check(kernel, &mut seeded);
        }
    }
}

#[test]
fn nothing_times_something_is_nothing() {
    let factors = Factors::Bf16;
    let a = Matrix::new(&[], 0, 3);
    gemm::product(
        MatrixMut::new(&mut [], 0, 5),
        a,
        Matrix::new(&[1.0_f32; 15], 3, 5),
        1.0,
        Output::Add,
        Threads::Pool,
        factors,
    );
    let b = Matrix::new(&[], 3, 0);
    gemm::product(
        MatrixMut::new(&mut [], 5, 0),
        Matrix::new(&[1.0_f32; 15], 5, 3),
        b,
        1.0,
        Output::Add,
        Threads::Pool,
        factors,
    );
}

/// A factor neither of whose strides is 1: every second column of a matrix.
#[test]
fn strides_may_be_anything() {
    let data = Seeded(3).values(40 * 90);
    let a = Matrix { data: &data, rows: 40, columns: 45, row_stride: 90, column_stride: 2 };
    let dense: Vec<f32> = (0..40 * 45).map(|place| data[place / 45 * 90 + place % 45 * 2]).collect();
    let (mut found, mut expected) = ([1.0; 40 * 40], [2.0; 40 * 40]);
    for kernel in Kernel::available() {
        let product = |a: Matrix<'_, f32>, c: &mut [f32]| {
            super::product(
                kernel,
                MatrixMut::new(c, 40, 40),
                a,
                a.transposed(),
                1.0,
                Output::Replace,
                Threads::Current,
            );
        };
        product(a, &mut found);
        product(Matrix::new(&dense, 40, 45), &mut expected);
        assert_eq!(found, expected);
    }
}

#[test]
fn threads_do_not_show() {
    let mut seeded = Seeded(4);
    for (rows, columns, depth) in
        [(1, 4100, 700), (500, 300, 1100), (37, 2000, 130), (2000, 33, 129), (300, 300, 64)]
    {
        for (kernel, layout) in Kernel::available().flat_map(|kernel| LAYOUTS.map(|layout| (kernel, layout)))
        {
            let (output, scale) = (Output::Add, 0.7);
            let case = Case { rows, columns, depth, layout, output, scale, gap: 0, offset: 0 };
            let (a, b) = case.factors(&mut seeded);
            let before = seeded.values(rows * columns);
            let bits = |threads: usize| {
                let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let c = pool.install(|| case.run(kernel, (&a, &b), &before));
                c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let one = bits(1);
            for threads in [2, 3, 5] {
                assert!(one == bits(threads), "{kernel:?} {case:?}: other bits with {threads} threads");
            }
        }
    }
}

/// What is not finite stays in its own row or column, also where strips are filled up with zeros.
#[test]
fn what_is_not_finite_spreads_no_further() {
    for kernel in Kernel::available() {
        // The largest number rounds to infinity.
        let largest = if kernel.factors() == Factors::Bf16 { f32::MAX } else { f32::NEG_INFINITY };
        for wrong in [f32::NAN, f32::INFINITY, largest] {
            let (mut a, b, mut c) = (vec![1.0; 20 * 33], vec![1.0; 33 * 20], vec![0.0; 20 * 20]);
            a[7 * 33 + 32] = wrong;
            let (a, b) = (Matrix::new(&a, 20, 33), Matrix::new(&b, 33, 20));
            super::product(
                kernel,
                MatrixMut::new(&mut c, 20, 20),
                a,
                b,
                1.0,
                Output::Replace,
                Threads::Current,
            );
            for (place, &c) in c.iter().enumerate() {
                assert_eq!(place / 20 == 7, !c.is_finite(), "{kernel:?}: {c} at {place} for {wrong}");
                assert!(place / 20 == 7 || c == 33.0);
            }
        }
    }
}

/// All packings that round do so as `half` does, ties, NaN, infinity and overflow included, and all lay words out alike. Numbers
/// below the normal ones are left out, for the processor's conversion flushes them.
#[test]
fn packings_round_to_nearest_even() {
    let mut seeded = Seeded(5);
    let mut values: Vec<f32> = (0..LINES * PAIRED)
        .map(|_| f32::from_bits(seeded.next() as u32))
        .map(|value| if value == 0.0 || value.is_subnormal() { 1.0 } else { value })
        .collect();
    let ties = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0x7f80_0000, 0xff80_0000, 0x7f7f_ffff];
    for (value, bits) in values.iter_mut().zip(ties) {
        *value = f32::from_bits(bits);
    }
    for kernel in Kernel::available() {
        for (side, by_lines) in
            [(Side::Left, true), (Side::Left, false), (Side::Right, true), (Side::Right, false)]
        {
            check_packing(kernel, side, by_lines, &values);
        }
    }
}

/// Packs the first tile of a matrix whose lines lie in memory as such, or side by side, and looks at each of its elements.
fn check_packing(kernel: Kernel, side: Side, by_lines: bool, values: &[f32]) {
    let (packing, depth) = (kernel.packing(), kernel.packing().depth());
    let lines = match by_lines {
        true => Lines::rows(Matrix::new(values, LINES, PAIRED)),
        false => Lines::columns(Matrix::new(values, PAIRED, LINES)),
    };
    let mut tile = [Tile::ZERO];
    lines.pack(packing, side, 0, 0..depth, &mut tile);
    for (line, place) in (0..LINES).flat_map(|line| (0..depth).map(move |place| (line, place))) {
        let value = values[if by_lines { line * PAIRED + place } else { place * LINES + line }];
        let word = |index: usize| match side {
            Side::Left => tile[0].words(line)[index],
            Side::Right => tile[0].words(index)[line],
        };
        let found = match depth {
            PAIRED => f32::from_bits(word(place / 2) >> (16 * (place % 2)) << 16),
            _ => f32::from_bits(word(place)),
        };
        let expected = match kernel.factors() {
            Factors::Exact => value,
            Factors::Bf16 => bf16::from_f32(value).to_f32(),
        };
        let same = expected == found || expected.is_nan() && found.is_nan();
        assert!(same, "{packing:?} {side:?} {by_lines}: {found} instead of {expected} at {line}, {place}");
    }
}
