//! The product of fp32 factors packed for kernels of our own, rounded to bf16 on the way or not, with sums in fp32.
//!
//! Both factors are packed block by block into a buffer that its thread keeps, each element once for as many blocks of the output
//! as the buffer allows; then tasks compute pieces of the output from it with the best micro-kernel that the processor has. How all
//! is cut follows from the shapes and the micro-kernel alone, and each element is summed by one task in one order: what comes out
//! does not depend on the threads.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod pack;
mod portable;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;
use std::thread::LocalKey;

use rayon::prelude::*;

use self::kernel::Block;
pub(super) use self::kernel::Kernel;
use self::pack::{LINES, Lines, Side, Tile};
use super::{Matrix, MatrixMut, Output, Threads};

/// Tiles of the buffer for the right factor, which all tasks read: 4 MiB.
const RIGHT_TILES: usize = 4096;
/// Tiles of the buffer for the left factor, which each task packs for itself and finds in its L2 cache: 512 KiB.
const LEFT_TILES: usize = 512;
/// The longest part of the inner dimension that is packed at once. How it is cut shows in the bits; nothing else does.
const MOST_DEPTH: usize = 1024;
/// Strips of columns that are multiplied one after the other: their part of the output stays in the L2 cache.
const COLUMN_STRIPS: usize = 16;
/// Strips that one task packs of the right factor.
const PACKED_STRIPS: usize = 8;
/// Multiply-adds below which a product is computed by the thread that asks for it.
const SMALL: usize = 1 << 19;

/// c = scale·a·b, or c += scale·a·b, of matrices that lie in their slices; c is not empty.
pub(super) fn product(
    kernel: Kernel,
    c: MatrixMut<'_, f32>,
    a: Matrix<'_, f32>,
    b: Matrix<'_, f32>,
    scale: f32,
    output: Output,
    threads: Threads,
) {
    let (rows, columns, depth) = (c.rows, c.columns, a.columns);
    if depth == 0 {
        if output == Output::Replace {
            c.data.chunks_mut(c.row_stride).take(rows).for_each(|row| row[..columns].fill(0.0));
        }
        return;
    }
    let threads = if rows * columns * depth < SMALL { Threads::Current } else { threads };
    let c = Out { start: c.data.as_mut_ptr(), stride: c.row_stride };
    let product = Product { kernel, a: Lines::rows(a), b: Lines::columns(b), c, scale, threads };
    // A thread from outside goes into the pool once, not for every loop over tasks.
    match threads {
        Threads::Pool => rayon::scope(|_| product.run(output)),
        Threads::Current => product.run(output),
    }
}

/// The length of equal pieces of `total`, multiples of `unit` and at most about `most`.
fn even_step(total: usize, most: usize, unit: usize) -> usize {
    let most = (most / unit * unit).max(unit);
    total.div_ceil(total.div_ceil(most)).next_multiple_of(unit)
}

/// `0..total` in pieces of `step`.
fn pieces(total: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..total).step_by(step).map(move |start| start..total.min(start + step))
}

thread_local! {
    static LEFT: RefCell<Vec<Vec<Tile>>> = const { RefCell::new(Vec::new()) };
    static RIGHT: RefCell<Vec<Vec<Tile>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with a buffer of this thread, made when it is first needed. A thread that waits for others may begin with another
/// product meanwhile, which then gets another buffer.
fn with_buffer(
    buffers: &'static LocalKey<RefCell<Vec<Vec<Tile>>>>,
    tiles: usize,
    body: impl FnOnce(&mut [Tile]),
) {
    let free = buffers.with_borrow_mut(Vec::pop);
    let mut buffer = free.unwrap_or_else(|| vec![Tile::ZERO; tiles]);
    body(&mut buffer);
    buffers.with_borrow_mut(|free| free.push(buffer));
}

/// The output, of which each task writes its own part.
#[derive(Clone, Copy)]
struct Out {
    start: *mut f32,
    stride: usize,
}

// SAFETY: an exclusively borrowed matrix that tasks write disjoint parts of.
#[allow(unsafe_code)]
unsafe impl Send for Out {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Out {}

/// One call.
struct Product<'a> {
    kernel: Kernel,
    a: Lines<'a>,
    b: Lines<'a>,
    c: Out,
    scale: f32,
    threads: Threads,
}

/// What is multiplied at one time: a part of the columns and of the inner dimension.
struct Part<'a> {
    /// The packed right factor, strips of so many tiles.
    right: &'a [Tile],
    strip: usize,
    columns: Range<usize>,
    depth: Range<usize>,
    adds: bool,
}

impl Product<'_> {
    fn run(&self, output: Output) {
        let (columns, depth) = (self.b.count(), self.a.depth());
        let (row_strips, column_strips) = self.kernel.strips();
        let tile = self.kernel.packing().depth();
        let depth_step = even_step(depth, MOST_DEPTH, tile);
        let strip = depth_step / tile;
        let column_step = even_step(columns, RIGHT_TILES / strip * LINES, column_strips * LINES);
        let most_rows = LEFT_TILES / strip / row_strips * row_strips * LINES;
        with_buffer(&RIGHT, RIGHT_TILES, |buffer| {
            for depth in pieces(depth, depth_step) {
                for columns in pieces(columns, column_step) {
                    let strip = depth.len().div_ceil(tile);
                    let right = &mut buffer[..columns.len().div_ceil(LINES) * strip];
                    self.pack_right(columns.clone(), depth.clone(), strip, right);
                    let adds = output == Output::Add || depth.start > 0;
                    self.multiply(most_rows, &Part { right, strip, columns, depth: depth.clone(), adds });
                }
            }
        });
    }

    fn pack_right(&self, columns: Range<usize>, depth: Range<usize>, strip: usize, right: &mut [Tile]) {
        let pack = |(task, tiles): (usize, &mut [Tile])| {
            let first = columns.start + task * PACKED_STRIPS * LINES;
            self.b.pack(self.kernel.packing(), Side::Right, first, depth.clone(), tiles);
        };
        match self.threads {
            Threads::Pool => right.par_chunks_mut(PACKED_STRIPS * strip).enumerate().for_each(pack),
            Threads::Current => right.chunks_mut(PACKED_STRIPS * strip).enumerate().for_each(pack),
        }
    }

    /// Deals out blocks of rows, and where these are too few for the threads, of columns.
    fn multiply(&self, most_rows: usize, part: &Part<'_>) {
        let (row_strips, column_strips) = self.kernel.strips();
        let (rows, columns) = (self.a.count(), part.columns.len());
        let wanted = match self.threads {
            Threads::Pool => 2 * rayon::current_num_threads(),
            Threads::Current => 1,
        };
        let row_step = even_step(rows, most_rows.min(rows.div_ceil(wanted)), row_strips * LINES);
        let down = rows.div_ceil(row_step);
        let column_step = even_step(columns, columns.div_ceil(wanted.div_ceil(down)), column_strips * LINES);
        let across = columns.div_ceil(column_step);
        let run = |task: usize| {
            let (row, column) = (task / across * row_step, task % across * column_step);
            let (rows, columns) = (row..rows.min(row + row_step), column..columns.min(column + column_step));
            self.kernel.prepared(|| self.multiply_rows(part, rows, columns));
        };
        match self.threads {
            Threads::Pool => (0..down * across).into_par_iter().with_max_len(1).for_each(run),
            Threads::Current => (0..down * across).for_each(run),
        }
    }

    /// A task: packs its rows and multiplies them with columns of the part.
    fn multiply_rows(&self, part: &Part<'_>, rows: Range<usize>, columns: Range<usize>) {
        let (strip, (_, column_strips)) = (part.strip, self.kernel.strips());
        with_buffer(&LEFT, LEFT_TILES, |left| {
            let left = &mut left[..rows.len().div_ceil(LINES) * strip];
            self.a.pack(self.kernel.packing(), Side::Left, rows.start, part.depth.clone(), left);
            for block in pieces(columns.len(), COLUMN_STRIPS / column_strips * column_strips * LINES) {
                let first = columns.start + block.start;
                // SAFETY: the task's part of the output lies in the matrix, and belongs to no other task.
                #[allow(unsafe_code)]
                let c = unsafe { self.c.start.add(rows.start * self.c.stride + part.columns.start + first) };
                self.multiply_block(&Block {
                    left,
                    right: &part.right[first / LINES * strip..],
                    strip,
                    tiles: strip,
                    c,
                    stride: self.c.stride,
                    rows: rows.len(),
                    columns: block.len(),
                    scale: self.scale,
                    adds: part.adds,
                });
            }
        });
    }

    /// One piece of the inner dimension after the other, and of each the blocks of the micro-kernel, in the order in which the
    /// output lies in memory.
    fn multiply_block(&self, block: &Block<'_>) {
        let (row_strips, column_strips) = self.kernel.strips();
        for tiles in pieces(block.tiles, self.kernel.tiles()) {
            for rows in pieces(block.rows, row_strips * LINES) {
                for columns in pieces(block.columns, column_strips * LINES) {
                    // SAFETY: strips of all lines of the block were packed, and the smaller block lies in it.
                    #[allow(unsafe_code)]
                    unsafe {
                        self.kernel.multiply(&Block {
                            left: &block.left[rows.start / LINES * block.strip + tiles.start..],
                            right: &block.right[columns.start / LINES * block.strip + tiles.start..],
                            tiles: tiles.len(),
                            c: block.c.add(rows.start * block.stride + columns.start),
                            rows: rows.len(),
                            columns: columns.len(),
                            adds: block.adds || tiles.start > 0,
                            ..*block
                        });
                    }
                }
            }
        }
    }
}
