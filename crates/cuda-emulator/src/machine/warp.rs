//! A warp: its groups of lanes, and one instruction after another.

use super::block::lanes_of_warp;
use super::copies::Copies;
use super::launch::{Context, Launch};
use super::race::Who;
use super::registers::{ALL_LANES, LANES, Mask, Registers, Source, Target, lanes};
use crate::EmulatorError;
use crate::program::{Barrier, BarrierReduction, Instruction, Operation, Special};

/// Instructions of a turn: long, since a turn costs; finite, since a warp may wait for another in a loop.
const TURN: u32 = 50_000;

pub(super) struct Warp {
    pub index: usize,
    pub registers: Registers,
    /// `.local` memory, one lane's after another's.
    pub local: Vec<u8>,
    /// Lanes that the block has threads for.
    pub exists: Mask,
    /// Lanes that have not exited.
    pub live: Mask,
    groups: Vec<Group>,
    /// By warp of the block: what it did in epochs below this came before what this warp does now.
    pub clock: Vec<u32>,
    pub copies: Copies,
    /// Where a parameter is copied to be read.
    pub scratch: [u8; 32],
}

/// Lanes that are at the same instruction.
#[derive(Debug, Clone, Copy)]
struct Group {
    at: usize,
    mask: Mask,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// For other lanes of the warp to come to the same instruction.
    ForLanes,
    ForBarrier,
}

/// Why a warp stopped.
pub(super) enum Pause {
    Turn,
    Barrier(Arrival),
    Done,
}

/// A warp's coming to a barrier.
pub(super) struct Arrival {
    pub number: u32,
    pub count: Option<u32>,
    pub waits: bool,
    pub instruction: usize,
    pub lanes: Mask,
    /// Lanes whose predicate holds, of a `bar.red`.
    pub votes: Mask,
    pub reduction: Option<(BarrierReduction, Target)>,
}

/// What an instruction does to the flow of control.
pub(super) enum Step {
    Next,
    Jump(usize),
    /// By lane.
    Scatter(Box<[usize; LANES]>),
    Exit,
    /// Other lanes must come first.
    Wait,
    Arrive(Arrival),
}

impl Warp {
    pub fn new(launch: &Launch, index: usize, warps: usize) -> Self {
        let program = launch.program;
        Self {
            index,
            registers: Registers::new(program.rows, program.predicates),
            local: vec![0xff; program.local_bytes * LANES],
            exists: lanes_of_warp(launch.threads(), index),
            live: 0,
            groups: Vec::new(),
            clock: vec![0; warps],
            copies: Copies::default(),
            scratch: [0; 32],
        }
    }

    /// At the kernel's first instruction, in the block that `context` names.
    pub fn start(&mut self, context: &Context) {
        self.live = self.exists;
        self.groups = vec![Group { at: 0, mask: self.exists, state: State::Ready }];
        self.clock.fill(0);
        self.clock[self.index] = 1;
        self.copies = Copies::default();
        self.local.fill(0xff);
        for (special, row) in &context.launch.program.specials {
            for lane in 0..LANES {
                self.registers.row_mut(*row)[lane] = special.value(self.index, lane, context);
                self.registers.row_mut(row + 1)[lane] = 0;
            }
        }
    }

    pub fn is_live(&self) -> bool {
        self.live != 0
    }

    /// The accesses that this warp makes now.
    pub fn who(&self, generation: u32, block: u32) -> Who<'_> {
        let warp = self.index as u32;
        Who { generation, block, warp, epoch: self.clock[self.index], clock: &self.clock }
    }

    /// What comes now is later than what a barrier ordered.
    pub fn end_epoch(&mut self) {
        self.clock[self.index] += 1;
    }

    pub fn pass_barrier(&mut self, lanes: Mask, result: Option<(Target, u32)>) {
        match result {
            Some((Target::Predicate(index), value)) => {
                self.registers.set_predicate(index, lanes, if value == 0 { 0 } else { ALL_LANES });
            }
            Some((target, value)) => self.registers.write(target, lanes, &[value; LANES]),
            None => {}
        }
        for group in self.groups.iter_mut().filter(|group| group.state == State::ForBarrier) {
            group.at += 1;
            group.state = State::Ready;
        }
    }

    /// Runs until the warp has to wait, its turn is over, or all lanes have exited.
    pub fn run(&mut self, context: &mut Context) -> Result<Pause, EmulatorError> {
        let mut turn = TURN;
        while turn > 0 {
            self.merge();
            let ready = self.groups.iter().enumerate().filter(|(_, group)| group.state == State::Ready);
            let Some((index, _)) = ready.min_by_key(|(_, group)| group.at) else {
                return if self.groups.is_empty() { Ok(Pause::Done) } else { Err(self.stuck(context)) };
            };
            if let Some(arrival) = self.run_group(index, &mut turn, context)? {
                return Ok(Pause::Barrier(arrival));
            }
        }
        Ok(Pause::Turn)
    }

    /// Groups that met become one; one that waited for lanes looks again who is there.
    fn merge(&mut self) {
        let mut index = 0;
        while index < self.groups.len() {
            let Group { at, .. } = self.groups[index];
            while let Some(other) = (index + 1..self.groups.len()).find(|other| self.groups[*other].at == at)
            {
                let other = self.groups.swap_remove(other);
                self.groups[index].mask |= other.mask;
                self.groups[index].state = State::Ready;
            }
            index += 1;
        }
    }

    /// Whether another group is to run, or to join, before `index` goes on.
    fn must_switch(&self, index: usize) -> bool {
        let at = self.groups[index].at;
        let mut others = self.groups.iter().enumerate().filter(|(other, _)| *other != index);
        others.any(|(_, other)| other.at == at || other.state == State::Ready && other.at < at)
    }

    fn run_group(
        &mut self,
        index: usize,
        turn: &mut u32,
        context: &mut Context,
    ) -> Result<Option<Arrival>, EmulatorError> {
        let launch = context.launch;
        while *turn > 0 {
            *turn -= 1;
            let Group { at, mask, .. } = self.groups[index];
            let instruction = &launch.program.instructions[at];
            context.issue(self.index, at, instruction)?;
            let active = match instruction.guard {
                None => mask,
                Some((place, negated)) => mask & self.registers.predicate(place, negated),
            };
            let count = u64::from(active.count_ones());
            context.report.lane_instructions += count;
            context.report.flops += u64::from(instruction.flops) * count;
            let step = match &instruction.operation {
                _ if active == 0 => Step::Next,
                Operation::Compute(compute) => {
                    compute(&mut self.registers, active);
                    Step::Next
                }
                operation => self.execute(operation, active, at, instruction, context)?,
            };
            let goes_on = match step {
                Step::Next => {
                    self.groups[index].at += 1;
                    true
                }
                Step::Jump(target) if active == mask => {
                    self.groups[index].at = target;
                    true
                }
                Step::Arrive(arrival) => {
                    let group = &mut self.groups[index];
                    if arrival.waits {
                        group.state = State::ForBarrier;
                    } else {
                        group.at += 1;
                    }
                    return Ok(Some(arrival));
                }
                step => {
                    self.split(index, active, step);
                    false
                }
            };
            if !goes_on || self.groups.len() > 1 && self.must_switch(index) {
                break;
            }
        }
        Ok(None)
    }

    /// The lanes of `active` leave their group, which goes on behind the instruction if lanes are left.
    fn split(&mut self, index: usize, active: Mask, step: Step) {
        let Group { at, mask, .. } = self.groups.swap_remove(index);
        let mut add = |at, mask, state| {
            if mask != 0 {
                self.groups.push(Group { at, mask, state });
            }
        };
        add(at + 1, mask & !active, State::Ready);
        match step {
            Step::Jump(target) => add(target, active, State::Ready),
            Step::Scatter(targets) => {
                lanes(active).for_each(|lane| add(targets[lane], 1 << lane, State::Ready))
            }
            Step::Wait => add(at, active, State::ForLanes),
            Step::Exit => {
                self.live &= !active;
                // Who waited for the lanes that are gone finds out.
                for group in self.groups.iter_mut().filter(|group| group.state == State::ForLanes) {
                    group.state = State::Ready;
                }
            }
            Step::Next | Step::Arrive(_) => {}
        }
    }

    /// The error of a warp whose groups all wait for lanes.
    fn stuck(&self, context: &Context) -> EmulatorError {
        let program = context.launch.program;
        let describe = |group: &Group| {
            let instruction = &program.instructions[group.at];
            let opcode = &program.opcodes[instruction.opcode as usize];
            format!("lanes {:#010x} at line {} ({opcode})", group.mask, instruction.line)
        };
        let all: Vec<String> = self.groups.iter().map(describe).collect();
        let first = &self.groups[0];
        let problem =
            format!("lanes of the warp wait for each other at different instructions: {}", all.join("; "));
        context.fault(
            self.index,
            first.mask.trailing_zeros() as usize,
            &program.instructions[first.at],
            problem,
        )
    }

    fn execute(
        &mut self,
        operation: &Operation,
        active: Mask,
        at: usize,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<Step, EmulatorError> {
        match operation {
            Operation::Compute(compute) => compute(&mut self.registers, active),
            Operation::Branch(target) => return Ok(Step::Jump(*target)),
            Operation::BranchTable { index, targets } => {
                return self.branch_table(*index, targets, active, instruction, context);
            }
            Operation::Exit => return Ok(Step::Exit),
            Operation::Nothing => {}
            Operation::Load { access, targets } => {
                self.load(access, targets, active, instruction, context)?
            }
            Operation::Store { access, values } => {
                self.store(access, values, active, instruction, context)?
            }
            Operation::Atomic(atomic) => self.atomic(atomic, active, instruction, context)?,
            Operation::CopyAsync { shared, global, bytes, source_bytes } => {
                self.copy_async([shared, global], *bytes, *source_bytes, active, instruction, context)?;
            }
            Operation::CopyCommit => self.copies.commit(active),
            Operation::CopyWait(wait) => self.wait_for_copies(*wait, active, instruction, context),
            Operation::Barrier(barrier) => return self.barrier(barrier, active, at, instruction, context),
            Operation::Trap => {
                let lane = active.trailing_zeros() as usize;
                return Err(context.fault(self.index, lane, instruction, "the kernel trapped".to_owned()));
            }
            Operation::AssertFail { arguments } => {
                return Err(self.assert_fail(arguments, active, instruction, context));
            }
            Operation::Print { format, arguments, target } => {
                self.print(*format, *arguments, *target, active, instruction, context)?;
            }
            together => return self.exchange(together, active, instruction, context),
        }
        Ok(Step::Next)
    }

    fn branch_table(
        &self,
        index: Source,
        targets: &[usize],
        active: Mask,
        instruction: &Instruction,
        context: &Context,
    ) -> Result<Step, EmulatorError> {
        let indices = self.registers.read::<u32>(index);
        let mut places = Box::new([0; LANES]);
        for lane in lanes(active) {
            let target = targets.get(indices[lane] as usize);
            places[lane] = *target.ok_or_else(|| {
                let problem = format!("branch {} of {}", indices[lane], targets.len());
                context.fault(self.index, lane, instruction, problem)
            })?;
        }
        Ok(Step::Scatter(places))
    }

    /// `bar` is aligned: all lanes of the warp that have not exited come together.
    fn barrier(
        &mut self,
        barrier: &Barrier,
        active: Mask,
        at: usize,
        instruction: &Instruction,
        context: &Context,
    ) -> Result<Step, EmulatorError> {
        if active != self.live {
            return Ok(Step::Wait);
        }
        let lane = active.trailing_zeros() as usize;
        let uniform = |source| {
            let values = self.registers.read::<u32>(source);
            let same = lanes(active).all(|other| values[other] == values[lane]);
            same.then_some(values[lane]).ok_or_else(|| {
                let problem = "lanes of the warp name different barriers or counts".to_owned();
                context.fault(self.index, lane, instruction, problem)
            })
        };
        let count = barrier.count.map(uniform).transpose()?;
        if count.is_some_and(|count| count == 0 || !(count as usize).is_multiple_of(LANES)) {
            let problem = format!("a barrier for {count:?} threads: a multiple of 32 is needed");
            return Err(context.fault(self.index, lane, instruction, problem));
        }
        let votes = barrier.reduction.as_ref().map_or(0, |(_, _, predicate)| {
            let values = self.registers.read::<bool>(*predicate);
            lanes(active).fold(0, |votes, lane| votes | Mask::from(values[lane]) << lane)
        });
        Ok(Step::Arrive(Arrival {
            number: uniform(barrier.number)?,
            count,
            waits: barrier.waits,
            instruction: at,
            lanes: active,
            votes,
            reduction: barrier.reduction.as_ref().map(|(kind, target, _)| (*kind, *target)),
        }))
    }
}

impl Special {
    /// The value for one lane of a warp.
    fn value(self, warp: usize, lane: usize, context: &Context) -> u32 {
        let launch = context.launch;
        let [width, height, _] = launch.block;
        let thread = (warp * LANES + lane) as u32;
        let bit: Mask = 1 << lane;
        match self {
            Self::Thread(axis) => [thread % width, thread / width % height, thread / width / height][axis],
            Self::BlockSize(axis) => launch.block[axis],
            Self::Block(axis) => context.block[axis],
            Self::GridSize(axis) => launch.grid[axis],
            Self::Lane => lane as u32,
            Self::Warp => warp as u32,
            Self::WarpCount => launch.threads().div_ceil(LANES as u32),
            Self::LanesEqual => bit,
            Self::LanesLess => bit - 1,
            Self::LanesLessEqual => bit | (bit - 1),
            Self::LanesGreater => !(bit | (bit - 1)),
            Self::LanesGreaterEqual => !(bit - 1),
            Self::DynamicShared => launch.dynamic_shared as u32,
            Self::TotalShared => (context.dynamic_start + launch.dynamic_shared) as u32,
            Self::DynamicStart => context.dynamic_start as u32,
            Self::Zero => 0,
            Self::One => 1,
        }
    }
}
