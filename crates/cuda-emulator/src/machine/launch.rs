//! A launch: its blocks one after another, in a seeded order.

use super::block::Block;
use super::memory::DeviceMemory;
use super::report::{HazardKind, Report};
use super::shared::SharedMemory;
use crate::EmulatorError;
use crate::emulator::Checks;
use crate::error::Place;
use crate::program::{Instruction, Program};
use crate::random::Random;

/// Hardware limits of sm_80 to sm_100.
const MOST_THREADS: u64 = 1024;
const MOST_SHARED: u64 = 227 << 10;
/// What a kernel may use without asking (`cuFuncSetAttribute`).
pub(crate) const DEFAULT_SHARED: u64 = 48 << 10;
const GRID_LIMITS: [u32; 3] = [0x7fff_ffff, 65535, 65535];

/// What a kernel is launched with.
pub(crate) struct Launch<'l> {
    pub program: &'l Program,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u64,
    /// Dynamic shared memory that the kernel was allowed.
    pub shared_limit: u64,
    pub parameters: Vec<u8>,
    pub checks: Checks,
    pub seed: u64,
    /// Different for every launch on a device.
    pub generation: u32,
    /// Instructions that the launch's warps may issue in all.
    pub instruction_limit: u64,
}

/// Runs all blocks of a launch.
pub(crate) fn run(launch: &Launch, memory: &mut DeviceMemory) -> Result<Report, EmulatorError> {
    launch.check()?;
    let program = launch.program;
    let dynamic_start = program.static_shared.next_multiple_of(program.dynamic_alignment);
    let shared = SharedMemory::new((dynamic_start + launch.dynamic_shared) as usize);
    let mut context = Context {
        launch,
        memory,
        shared,
        report: Report::default(),
        issued: vec![0; program.instructions.len()],
        block: [0; 3],
        block_number: 0,
        dynamic_start,
        random: Random::new(launch.seed),
        instructions_left: launch.instruction_limit,
    };
    let [width, height, depth] = launch.grid.map(u64::from);
    let mut order: Vec<u64> = (0..width * height * depth).collect();
    context.random.shuffle(&mut order);
    let mut block = Block::new(launch);
    for number in order {
        context.block_number = number as u32;
        context.block =
            [number % width, number / width % height, number / width / height].map(|at| at as u32);
        context.shared.reset();
        block.start(&context);
        block.run(&mut context)?;
    }
    Ok(context.finish())
}

impl Launch<'_> {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    fn check(&self) -> Result<(), EmulatorError> {
        check_extents(self.program, [self.grid, self.block], self.dynamic_shared, self.shared_limit)?;
        let (given, wanted) = (self.parameters.len(), self.program.parameter_bytes);
        if given != wanted {
            let problem = format!("{given} bytes of arguments; its parameters take {wanted}");
            return Err(EmulatorError::Launch { kernel: self.program.name.clone(), problem });
        }
        Ok(())
    }
}

/// Whether the hardware would take a launch of this size.
pub(crate) fn check_extents(
    program: &Program,
    [grid, block]: [[u32; 3]; 2],
    dynamic_shared: u64,
    shared_limit: u64,
) -> Result<(), EmulatorError> {
    let refuse = |problem: String| EmulatorError::Launch { kernel: program.name.clone(), problem };
    let threads: u64 = block.iter().map(|extent| u64::from(*extent)).product();
    if threads == 0 || threads > MOST_THREADS || block[2] > 64 {
        return Err(refuse(format!("a block of {block:?} threads; 1 to 1024 are possible, 64 of them in z")));
    }
    if grid.iter().zip(GRID_LIMITS).any(|(extent, most)| *extent == 0 || *extent > most) {
        return Err(refuse(format!("a grid of {grid:?} blocks; 1 to {GRID_LIMITS:?} are possible")));
    }
    let blocks = grid.iter().try_fold(1_u32, |blocks, extent| blocks.checked_mul(*extent));
    if blocks.is_none() {
        return Err(refuse(format!("a grid of {grid:?} blocks is more than the emulator runs")));
    }
    let shared = program.static_shared + dynamic_shared;
    let most = shared_limit.clamp(DEFAULT_SHARED, MOST_SHARED);
    if shared > most {
        return Err(refuse(format!(
            "{shared} bytes of shared memory; the kernel may have {most}: raise its \
             CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, at most {MOST_SHARED}"
        )));
    }
    Ok(())
}

/// What the warps of a launch share.
pub(super) struct Context<'l> {
    pub launch: &'l Launch<'l>,
    pub memory: &'l mut DeviceMemory,
    pub shared: SharedMemory,
    pub report: Report,
    /// By instruction.
    pub issued: Vec<u64>,
    pub block: [u32; 3],
    pub block_number: u32,
    pub dynamic_start: u64,
    pub random: Random,
    pub instructions_left: u64,
}

impl<'l> Context<'l> {
    pub fn place(&self, warp: usize, lane: usize, instruction: &Instruction) -> Place {
        let number = (warp * super::registers::LANES + lane) as u32;
        let [width, height, _] = self.launch.block;
        Place {
            kernel: self.launch.program.name.clone(),
            block: self.block,
            thread: [number % width, number / width % height, number / width / height],
            line: instruction.line,
            opcode: self.launch.program.opcodes[instruction.opcode as usize].clone(),
        }
    }

    pub fn fault(
        &self,
        warp: usize,
        lane: usize,
        instruction: &Instruction,
        problem: String,
    ) -> EmulatorError {
        EmulatorError::Fault { place: Box::new(self.place(warp, lane, instruction)), problem }
    }

    pub fn hazard(
        &mut self,
        kind: HazardKind,
        warp: usize,
        lane: usize,
        instruction: &Instruction,
        detail: String,
    ) {
        let place = self.place(warp, lane, instruction);
        self.report.find(kind, || place, instruction.line, detail);
    }

    /// Takes one from what the launch may issue.
    pub fn issue(&mut self, warp: usize, at: usize, instruction: &Instruction) -> Result<(), EmulatorError> {
        self.issued[at] += 1;
        match self.instructions_left.checked_sub(1) {
            Some(left) => {
                self.instructions_left = left;
                Ok(())
            }
            None => {
                let limit = self.launch.instruction_limit;
                Err(self.fault(
                    warp,
                    0,
                    instruction,
                    format!("no end after {limit} instructions: a loop that never ends?"),
                ))
            }
        }
    }

    fn finish(mut self) -> Report {
        let program = self.launch.program;
        for (instruction, count) in
            program.instructions.iter().zip(&self.issued).filter(|(_, count)| **count > 0)
        {
            let opcode = program.opcodes[instruction.opcode as usize].clone();
            *self.report.instructions.entry(opcode).or_default() += count;
        }
        self.report
    }
}
