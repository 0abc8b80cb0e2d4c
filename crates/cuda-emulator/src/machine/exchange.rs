//! What lanes of a warp do together: shuffles, votes, matches, reductions, matrix loads and products.

use super::atomic::{combine, combine_signed};
use super::launch::Context;
use super::registers::{ALL_LANES, LANES, Mask, Source, Target, lanes};
use super::warp::{Step, Warp};
use crate::EmulatorError;
use crate::program::{AtomicKind, Instruction, Operation, Shuffle, ShuffleKind, Vote};

impl Warp {
    /// Runs an instruction that needs several lanes, or says that they have not come.
    pub fn exchange(
        &mut self,
        operation: &Operation,
        active: Mask,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<Step, EmulatorError> {
        let members = match operation {
            Operation::Shuffle(shuffle) => shuffle.members,
            Operation::Vote { members, .. }
            | Operation::Match { members, .. }
            | Operation::Reduce { members, .. }
            | Operation::WarpBarrier { members } => *members,
            Operation::ActiveMask(_) => Source::Constant(0),
            _ => Source::Constant(u64::from(ALL_LANES)),
        };
        let alone = matches!(operation, Operation::ActiveMask(_));
        if !alone && !self.have_come(members, active, instruction, context)? {
            return Ok(Step::Wait);
        }
        match operation {
            Operation::Shuffle(shuffle) => self.shuffle(shuffle, active, instruction, context)?,
            Operation::Vote { kind, target, predicate, members } => {
                self.vote(*kind, *target, [*predicate, *members], active);
            }
            Operation::Match { all, wide, target, predicate, value, members } => {
                self.match_lanes((*all, *wide), [*target, *predicate], [*value, *members], active);
            }
            Operation::Reduce { kind, signed, target, value, members } => {
                self.reduce((*kind, *signed), *target, [*value, *members], active);
            }
            Operation::ActiveMask(target) => self.registers.write(*target, active, &[active; LANES]),
            Operation::LoadMatrix { address, targets, transposed } => {
                self.require_whole_warp(active, instruction, context)?;
                self.load_matrix(address, targets, *transposed, instruction, context)?;
            }
            Operation::Multiply(multiply) => {
                self.require_whole_warp(active, instruction, context)?;
                self.multiply(multiply, context);
            }
            Operation::GroupMultiply(multiply) => {
                self.require_whole_warp(active, instruction, context)?;
                self.multiply_group(multiply, instruction, context)?;
            }
            _ => {}
        }
        Ok(Step::Next)
    }

    /// Whether all lanes that the member masks name are here. A lane that the block has no thread for is not missed.
    fn have_come(
        &self,
        members: Source,
        active: Mask,
        instruction: &Instruction,
        context: &Context,
    ) -> Result<bool, EmulatorError> {
        let masks = self.registers.read::<u32>(members);
        for lane in lanes(active) {
            let mask = masks[lane];
            if mask >> lane & 1 == 0 {
                let problem = format!("lane {lane} is not in its own member mask {mask:#010x}");
                return Err(context.fault(self.index, lane, instruction, problem));
            }
            let exited = mask & self.exists & !self.live;
            if exited != 0 {
                let problem =
                    format!("the member mask {mask:#010x} names lanes that have exited: {exited:#010x}");
                return Err(context.fault(self.index, lane, instruction, problem));
            }
            if mask & self.exists & !active != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn require_whole_warp(
        &self,
        active: Mask,
        instruction: &Instruction,
        context: &Context,
    ) -> Result<(), EmulatorError> {
        if active == ALL_LANES {
            return Ok(());
        }
        let problem = format!("all 32 lanes of a warp are needed, {active:#010x} are there");
        Err(context.fault(self.index, active.trailing_zeros() as usize, instruction, problem))
    }

    fn shuffle(
        &mut self,
        shuffle: &Shuffle,
        active: Mask,
        instruction: &Instruction,
        context: &Context,
    ) -> Result<(), EmulatorError> {
        let read = |source| self.registers.read::<u32>(source);
        let (values, by, clamps) = (read(shuffle.value), read(shuffle.lane), read(shuffle.clamp));
        let (mut result, mut in_range) = ([0_u32; LANES], [false; LANES]);
        for lane in lanes(active) {
            let source = shuffle.kind.source(lane as u32, by[lane], clamps[lane]);
            in_range[lane] = source.is_some();
            let source = source.unwrap_or(lane as u32);
            if active >> source & 1 == 0 {
                let problem = format!("reads from lane {source}, which does not take part");
                return Err(context.fault(self.index, lane, instruction, problem));
            }
            result[lane] = values[source as usize];
        }
        self.registers.write(shuffle.target, active, &result);
        self.registers.write(shuffle.in_range, active, &in_range);
        Ok(())
    }

    fn vote(&mut self, kind: Vote, target: Target, [predicate, members]: [Source; 2], active: Mask) {
        let holds = self.registers.read::<bool>(predicate);
        let votes = lanes(active).fold(0, |votes, lane| votes | Mask::from(holds[lane]) << lane);
        let members = self.registers.read::<u32>(members);
        let decide = |lane: usize| {
            let (yes, all) = (votes & members[lane], members[lane] & active);
            match kind {
                Vote::All => yes == all,
                Vote::Any => yes != 0,
                Vote::Uniform => yes == 0 || yes == all,
                Vote::Ballot => false,
            }
        };
        match kind {
            Vote::Ballot => self.registers.write(target, active, &members.map(|members| votes & members)),
            _ => self.registers.write(target, active, &std::array::from_fn::<bool, LANES, _>(decide)),
        }
    }

    fn match_lanes(
        &mut self,
        (all, wide): (bool, bool),
        [target, predicate]: [Target; 2],
        [value, members]: [Source; 2],
        active: Mask,
    ) {
        let values: [u64; LANES] =
            if wide { self.registers.read(value) } else { self.registers.read::<u32>(value).map(u64::from) };
        let members = self.registers.read::<u32>(members);
        let same = |lane: usize| {
            let others = lanes(members[lane] & active).filter(|other| values[*other] == values[lane]);
            others.fold(0, |mask: Mask, other| mask | 1 << other)
        };
        let complete = |lane: usize| same(lane) == members[lane] & active;
        let result: [Mask; LANES] =
            std::array::from_fn(|lane| if all && !complete(lane) { 0 } else { same(lane) });
        let agrees: [bool; LANES] = std::array::from_fn(complete);
        self.registers.write(target, active, &result);
        self.registers.write(predicate, active, &agrees);
    }

    fn reduce(
        &mut self,
        (kind, signed): (AtomicKind, bool),
        target: Target,
        [value, members]: [Source; 2],
        active: Mask,
    ) {
        let values = self.registers.read::<u32>(value);
        let members = self.registers.read::<u32>(members);
        let join = |a: u32, b: u32| {
            if signed {
                combine_signed(kind, a as i32, b as i32) as u32
            } else {
                combine(kind, u64::from(a), u64::from(b), u64::from(u32::MAX)) as u32
            }
        };
        let result: [u32; LANES] = std::array::from_fn(|lane| {
            lanes(members[lane] & active).map(|other| values[other]).reduce(join).unwrap_or(0)
        });
        self.registers.write(target, active, &result);
    }
}

impl ShuffleKind {
    /// The lane that `lane` reads from, or none out of its segment. The clamp's low bits bound the lane, its bits 8
    /// to 12 are the segment's mask.
    fn source(self, lane: u32, by: u32, clamp: u32) -> Option<u32> {
        let (by, segment) = (by & 31, clamp >> 8 & 31);
        let first = lane & segment;
        let bound = first | clamp & 31 & !segment;
        match self {
            Self::Up => lane.checked_sub(by).filter(|source| *source >= bound),
            Self::Down => Some(lane + by).filter(|source| *source <= bound),
            Self::Butterfly => Some(lane ^ by).filter(|source| *source <= bound),
            Self::Index => Some(first | by & !segment).filter(|source| *source <= bound),
        }
    }
}
