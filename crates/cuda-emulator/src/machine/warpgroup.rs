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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Emulator, Options};

    /// Rows of 64 columns; each kernel multiplies columns 16..32 of A, from row 0, with a part of B.
    const COLUMNS: usize = 64;

    /// Two 64 × 64 matrices in shared memory, swizzled by the host, and one product of 64 × 16 and 16 × 64.
    fn kernel(product: &str) -> String {
        let sums: Vec<String> = (0..32).map(|at| format!("%f{at}")).collect();
        let stores: String = (0..32).map(|at| format!("st.global.f32 [%d3+{}], %f{at};\n", 4 * at)).collect();
        let copies: String = (0..8)
            .map(|at| {
                format!(
                    "ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d1+{0}];\n\
                     st.shared.v4.u32 [%r5+{0}], {{%r1, %r2, %r3, %r4}};\n",
                    16 * at
                )
            })
            .collect();
        let ones: String = (0..32).map(|at| format!("mov.f32 %f{at}, 0f3F800000;\n")).collect();
        format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n\
             .visible .entry test(.param .u64 px, .param .u64 py)\n{{\n\
             .reg .b64 %d<9>;\n.reg .b32 %r<20>;\n.reg .f32 %f<32>;\n.reg .pred adds;\n\
             .shared .align 1024 .b8 both[16384];\n\
             ld.param.u64 %d1, [px];\nld.param.u64 %d3, [py];\nmov.u32 %r9, %tid.x;\n\
             mad.wide.u32 %d1, %r9, 128, %d1;\nmad.wide.u32 %d3, %r9, 128, %d3;\n\
             mov.u32 %r5, both;\nshl.b32 %r6, %r9, 7;\nadd.u32 %r5, %r5, %r6;\n{copies}{ones}\
             fence.proxy.async.shared::cta;\nbar.sync 0;\nmov.u32 %r7, both;\nshr.u32 %r7, %r7, 4;\n\
             cvt.u64.u32 %d4, %r7;\nmov.u64 %d5, 0x4000004000000000;\nor.b64 %d4, %d4, %d5;\n\
             wgmma.fence.sync.aligned;\n{}\nwgmma.commit_group.sync.aligned;\n\
             wgmma.wait_group.sync.aligned 0;\n{stores}ret;\n}}\n",
            product.replace("SUMS", &format!("{{{}}}", sums.join(", ")))
        )
    }

    fn a(row: usize, column: usize) -> f32 {
        ((row * 7 + column * 3) % 19) as f32 - 9.0
    }

    fn b(row: usize, column: usize) -> f32 {
        ((row * 5 + column * 11) % 17) as f32 - 8.0
    }

    /// What the lanes of the four warps have as `[row][column]`.
    fn run(product: &str) -> Vec<f32> {
        let mut matrices = vec![bf16::ZERO; 2 * COLUMNS * COLUMNS];
        for row in 0..COLUMNS {
            for column in 0..COLUMNS {
                let place = row * COLUMNS + ((column / 8) ^ (row % 8)) * 8 + column % 8;
                matrices[place] = bf16::from_f32(a(row, column));
                matrices[COLUMNS * COLUMNS + place] = bf16::from_f32(b(row, column));
            }
        }
        let mut device = Emulator::new(Options::default());
        let (x, y) =
            (device.upload(&matrices).unwrap(), device.upload(&[0.0_f32; COLUMNS * COLUMNS]).unwrap());
        let module = device.load_module(&kernel(product)).unwrap();
        let function = module.function("test").unwrap();
        let report = device.launch(&function, [1; 3], [128, 1, 1], 0, &[x.into(), y.into()]).unwrap();
        assert!(report.hazards.is_empty(), "{}", report.hazards[0]);
        assert_eq!((report.matrix_multiplies, report.flops), (4, 2 * 64 * 64 * 16));
        let found: Vec<f32> = device.download(y, COLUMNS * COLUMNS).unwrap();
        let mut sums = vec![0.0; COLUMNS * COLUMNS];
        for (thread, values) in found.chunks(32).enumerate() {
            for (word, value) in values.iter().enumerate() {
                let row = thread / 32 * 16 + thread % 32 / 4 + word / 2 % 2 * 8;
                sums[row * COLUMNS + word / 4 * 8 + thread % 4 * 2 + word % 2] = *value;
            }
        }
        sums
    }

    fn is(found: &[f32], expected: impl Fn(usize, usize) -> f32) {
        for (place, found) in found.iter().enumerate() {
            let (row, column) = (place / COLUMNS, place % COLUMNS);
            assert_eq!(*found, expected(row, column), "{row}, {column}");
        }
    }

    const SHAPE: &str = "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16";

    /// B's rows run along the inner dimension; its columns 16..32 are a step of 32 bytes into the pattern.
    #[test]
    fn both_operands_are_read_where_descriptors_say() {
        let found = run(&format!(
            "setp.ne.b32 adds, 1, 0;\nadd.u64 %d6, %d4, 2;\nadd.u64 %d7, %d4, 514;\n\
             {SHAPE} SUMS, %d6, %d7, adds, 1, 1, 0, 0;"
        ));
        is(&found, |row, column| 1.0 + (16..32).map(|k| a(row, k) * b(column, k)).sum::<f32>());
    }

    /// The inner dimension is B's rows 16..32; A is one in every place of its columns 0 and 1, from registers.
    #[test]
    fn the_right_operand_may_be_transposed_and_the_left_one_in_registers() {
        let found = run(&format!(
            "setp.ne.b32 adds, 0, 0;\nadd.u64 %d7, %d4, 640;\nand.b32 %r10, %r9, 3;\nsetp.eq.u32 adds, %r10, 0;\n\
             selp.b32 %r11, 0x3f803f80, 0, adds;\nmov.u32 %r12, 0;\nsetp.ne.b32 adds, 0, 0;\n\
             {SHAPE} SUMS, {{%r11, %r11, %r12, %r12}}, %d7, adds, 1, 1, 1;"
        ));
        is(&found, |_, column| b(16, column) + b(17, column));
    }

    #[test]
    fn other_layouts_are_refused() {
        let product =
            format!("setp.ne.b32 adds, 1, 0;\nmov.u64 %d6, 0;\n{SHAPE} SUMS, %d6, %d4, adds, 1, 1, 0, 0;");
        let mut device = Emulator::new(Options::default());
        let x = device.upload(&[0_u32; 4096]).unwrap();
        let module = device.load_module(&kernel(&product)).unwrap();
        let function = module.function("test").unwrap();
        let error = device.launch(&function, [1; 3], [128, 1, 1], 0, &[x.into(), x.into()]).unwrap_err();
        assert!(error.to_string().contains("128-byte swizzling"), "{error}");
    }
}
