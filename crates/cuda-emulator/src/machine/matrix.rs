//! `ldmatrix` and `mma.sync`: matrices spread over the registers of a warp, as PTX's section on warp-level matrix
//! instructions lays them out.

use half::{bf16, f16};

use super::access::{LaneAccess, count_traffic};
use super::launch::Context;
use super::race::Kind;
use super::registers::{ALL_LANES, LANES, Row, Source, Target};
use super::warp::Warp;
use crate::EmulatorError;
use crate::number::Half;
use crate::program::{Address, Instruction, MatrixElement, Multiply};

/// Rows of A and C, columns of B and C.
const ROWS: usize = 16;
const COLUMNS: usize = 8;
/// The deepest product.
const DEPTH: usize = 16;

impl Warp {
    /// Lane 8·m + r has the address of row r of matrix m, eight 16-bit numbers. Lane l gets elements 2·(l mod 4) and
    /// the next of row l / 4; transposed, of column l / 4.
    pub fn load_matrix(
        &mut self,
        address: &Address,
        targets: &[Target],
        transposed: bool,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<(), EmulatorError> {
        let addresses = self.addresses(address);
        for (matrix, target) in targets.iter().enumerate() {
            let mut rows = [[0_u16; 8]; 8];
            for (row, numbers) in rows.iter_mut().enumerate() {
                let lane = matrix * 8 + row;
                let access = LaneAccess {
                    lane,
                    space: address.space,
                    address: addresses[lane],
                    size: 16,
                    kind: Kind::Read,
                };
                let bytes = self.locate(&access, instruction, context)?;
                for (number, pair) in numbers.iter_mut().zip(bytes.chunks_exact(2)) {
                    *number = u16::from_le_bytes([pair[0], pair[1]]);
                }
            }
            let pick = |row: usize, column: usize| {
                u32::from(if transposed { rows[column][row] } else { rows[row][column] })
            };
            let values: Row = std::array::from_fn(|lane| {
                let (row, column) = (lane / 4, lane % 4 * 2);
                pick(row, column) | pick(row, column + 1) << 16
            });
            self.registers.write(*target, ALL_LANES, &values);
            // Each matrix is a pass of eight lanes over the banks.
            let lanes = 0xff << (matrix * 8);
            count_traffic(address.space, lanes, &addresses, 16, Kind::Read, context);
        }
        Ok(())
    }

    /// D = A·B + C: products are exact in f32, sums are taken in f32 by ascending k. (The hardware's order inside one
    /// instruction is not documented.)
    pub fn multiply(&mut self, multiply: &Multiply, context: &mut Context) {
        let depth = multiply.depth;
        context.report.matrix_multiplies += 1;
        context.report.flops += (2 * ROWS * COLUMNS * depth) as u64;
        let read = |sources: &[Source]| -> Vec<Row> {
            sources.iter().map(|source| self.registers.read::<u32>(*source)).collect()
        };
        let (a_words, b_words, c_words) = (read(&multiply.a), read(&multiply.b), read(&multiply.c));
        let mut a = [[0.0_f32; DEPTH]; ROWS];
        let mut b = [[0.0_f32; COLUMNS]; DEPTH];
        let mut d = [[0.0_f32; COLUMNS]; ROWS];
        for lane in 0..LANES {
            let (group, member) = (lane / 4, lane % 4);
            for (word, values) in a_words.iter().enumerate() {
                let row = group + word % 2 * 8;
                place(multiply.element, values[lane], word / 2, member, |k, value| a[row][k] = value);
            }
            for (word, values) in b_words.iter().enumerate() {
                place(multiply.element, values[lane], word, member, |k, value| b[k][group] = value);
            }
            for (word, values) in c_words.iter().enumerate() {
                d[group + word / 2 * 8][member * 2 + word % 2] = f32::from_bits(values[lane]);
            }
        }
        for (row, sums) in d.iter_mut().enumerate() {
            for k in 0..depth {
                let factor = a[row][k];
                for (sum, other) in sums.iter_mut().zip(&b[k]) {
                    *sum += factor * other;
                }
            }
        }
        for (word, target) in multiply.targets.iter().enumerate() {
            let values: [f32; LANES] =
                std::array::from_fn(|lane| d[lane / 4 + word / 2 * 8][lane % 4 * 2 + word % 2]);
            self.registers.write(*target, ALL_LANES, &values);
        }
    }
}

/// Gives the numbers of one word, with their k: two 16-bit numbers side by side, or one tf32.
fn place(element: MatrixElement, word: u32, step: usize, member: usize, mut put: impl FnMut(usize, f32)) {
    let (low, high) = (word as u16, (word >> 16) as u16);
    let k = step * 8 + member * 2;
    match element {
        MatrixElement::Bf16 => {
            put(k, bf16::from_bits(low).widen());
            put(k + 1, bf16::from_bits(high).widen());
        }
        MatrixElement::F16 => {
            put(k, f16::from_bits(low).widen());
            put(k + 1, f16::from_bits(high).widen());
        }
        // The hardware looks at the upper 19 bits only.
        MatrixElement::Tf32 => put(step * 4 + member, f32::from_bits(word & 0xffff_e000)),
    }
}
