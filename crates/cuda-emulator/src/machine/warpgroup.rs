//! `wgmma`: products of a warpgroup, whose operands the tensor cores read from shared memory by descriptors.
//!
//! Each warp computes its own sixteen rows when it issues the product. On the hardware the product goes on until it is waited
//! for: who reads its sums too early, or overwrites its operands, is not found out here, but by the compiler's warnings and on
//! a GPU. Overwriting without a barrier is a race, which is reported as any other.

use half::bf16;

use super::access::LaneAccess;
use super::launch::Context;
use super::race::Kind;
use super::registers::{ALL_LANES, LANES, Row};
use super::warp::Warp;
use crate::EmulatorError;
use crate::number::Half;
use crate::program::{GroupLeft, GroupMultiply, Instruction};
use crate::ptx::Space;

/// Rows of a warp, and the depth of a product.
const ROWS: usize = 16;
const DEPTH: usize = 16;
const WARPS: usize = 4;
/// What the hardware reads at once, and where its swizzling pattern begins again.
const CHUNK: u64 = 16;
const PATTERN: u64 = 128;

/// Where a matrix lies, as 64 bits describe it: addresses in units of 16 bytes.
struct Described {
    start: u64,
    /// Bytes from 64 columns to the next, where the inner dimension is the rows.
    leading: u64,
    /// Bytes from eight rows to the next.
    stride: u64,
}

impl Described {
    /// `None` for another mode than 128-byte swizzling from the pattern's beginning.
    fn read(bits: u64) -> Option<Self> {
        let field = |shift: u32| (bits >> shift & 0x3fff) << 4;
        let known = bits >> 62 == 1 && bits >> 49 & 7 == 0;
        known.then(|| Self { start: field(0), leading: field(16), stride: field(32) })
    }

    /// Where a chunk of 16 bytes lies: address bits 4..7 are swizzled by bits 7..10.
    fn chunk(&self, row: usize, chunk: usize) -> u64 {
        let (row, chunk) = (row as u64, chunk as u64);
        let panel = chunk * CHUNK / PATTERN * self.leading;
        let at = self.start + panel + row / 8 * self.stride + row % 8 * PATTERN + chunk * CHUNK % PATTERN;
        at ^ (at >> 7 & 7) << 4
    }
}

impl Warp {
    /// D = A·B, or D += A·B: 64 × 16 and 16 × N, of which this warp has 16 rows.
    pub fn multiply_group(
        &mut self,
        multiply: &GroupMultiply,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<(), EmulatorError> {
        let columns = multiply.targets.len() * 2;
        context.report.matrix_multiplies += 1;
        context.report.flops += (2 * ROWS * columns * DEPTH) as u64;
        let left = self.left(&multiply.left, instruction, context)?;
        let right = self.right(multiply, columns, instruction, context)?;
        let adds = self.registers.read::<u32>(multiply.adds)[0] != 0;
        for (word, (target, sums)) in multiply.targets.iter().zip(&multiply.sums).enumerate() {
            let before: [f32; LANES] = if adds { self.registers.read(*sums) } else { [0.0; LANES] };
            let values: [f32; LANES] = std::array::from_fn(|lane| {
                let row = lane / 4 + word / 2 % 2 * 8;
                let column = word / 4 * 8 + lane % 4 * 2 + word % 2;
                (0..DEPTH).fold(before[lane], |sum, k| sum + left[row][k] * right[k * columns + column])
            });
            self.registers.write(*target, ALL_LANES, &values);
        }
        Ok(())
    }

    fn left(
        &mut self,
        left: &GroupLeft,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<[[f32; DEPTH]; ROWS], EmulatorError> {
        let mut values = [[0.0; DEPTH]; ROWS];
        match left {
            GroupLeft::Registers(sources) => {
                for (word, source) in sources.iter().enumerate() {
                    let words: Row = self.registers.read(*source);
                    for (lane, pair) in words.into_iter().enumerate() {
                        let (row, k) = (lane / 4 + word % 2 * 8, word / 2 * 8 + lane % 4 * 2);
                        values[row][k] = bf16::from_bits(pair as u16).widen();
                        values[row][k + 1] = bf16::from_bits((pair >> 16) as u16).widen();
                    }
                }
            }
            GroupLeft::Shared(descriptor) => {
                let bits = self.registers.read::<u64>(*descriptor)[0];
                let first = self.index % WARPS * ROWS;
                for (row, values) in values.iter_mut().enumerate() {
                    for (chunk, eight) in values.chunks_exact_mut(8).enumerate() {
                        self.read_chunk(bits, [first + row, chunk], eight, instruction, context)?;
                    }
                }
            }
        }
        Ok(values)
    }

    /// `[k][column]`.
    fn right(
        &mut self,
        multiply: &GroupMultiply,
        columns: usize,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<Vec<f32>, EmulatorError> {
        let bits = self.registers.read::<u64>(multiply.right)[0];
        let mut values = vec![0.0; DEPTH * columns];
        if multiply.right_is_by_rows {
            for (k, row) in values.chunks_exact_mut(columns).enumerate() {
                for (chunk, eight) in row.chunks_exact_mut(8).enumerate() {
                    self.read_chunk(bits, [k, chunk], eight, instruction, context)?;
                }
            }
            return Ok(values);
        }
        for column in 0..columns {
            for chunk in 0..DEPTH / 8 {
                let mut eight = [0.0; 8];
                self.read_chunk(bits, [column, chunk], &mut eight, instruction, context)?;
                for (k, value) in eight.into_iter().enumerate() {
                    values[(chunk * 8 + k) * columns + column] = value;
                }
            }
        }
        Ok(values)
    }

    fn read_chunk(
        &mut self,
        descriptor: u64,
        [row, chunk]: [usize; 2],
        into: &mut [f32],
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<(), EmulatorError> {
        let described = Described::read(descriptor).ok_or_else(|| {
            let problem = format!("the descriptor {descriptor:#018x} is not one of 128-byte swizzling");
            context.fault(self.index, 0, instruction, problem)
        })?;
        let address = described.chunk(row, chunk);
        let access =
            LaneAccess { lane: 0, space: Space::Shared, address, size: CHUNK as usize, kind: Kind::Read };
        let bytes = self.locate(&access, instruction, context)?;
        for (value, pair) in into.iter_mut().zip(bytes.chunks_exact(2)) {
            *value = bf16::from_bits(u16::from_le_bytes([pair[0], pair[1]])).widen();
        }
        Ok(())
    }
}
