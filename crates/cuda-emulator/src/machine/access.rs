//! Loads and stores: each lane's address resolved, checked, and served.

use super::launch::Context;
use super::memory::{space_of, window};
use super::race::Kind;
use super::registers::{LANES, Mask, lanes};
use super::report::HazardKind;
use super::traffic::{bank_conflicts, sectors};
use super::warp::Warp;
use crate::EmulatorError;
use crate::program::{Access, Address, Instruction, LoadTarget};
use crate::ptx::Space;

/// The widest access: four 64-bit numbers.
const WIDEST: usize = 32;

/// One lane's access.
#[derive(Clone, Copy)]
pub(super) struct LaneAccess {
    pub lane: usize,
    pub space: Space,
    /// In its space, or generic.
    pub address: u64,
    pub size: usize,
    pub kind: Kind,
}

impl Warp {
    /// By lane; the lanes that take part have one that counts.
    pub fn addresses(&self, address: &Address) -> [u64; LANES] {
        if address.wide {
            let base = self.registers.read::<u64>(address.base);
            base.map(|base| base.wrapping_add_signed(address.offset))
        } else {
            let base = self.registers.read::<u32>(address.base);
            base.map(|base| u64::from(base.wrapping_add(address.offset as u32)))
        }
    }

    pub fn load(
        &mut self,
        access: &Access,
        targets: &[LoadTarget],
        active: Mask,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<(), EmulatorError> {
        let size = access.width * targets.len();
        let addresses = self.addresses(&access.address);
        let mut bytes = [[0_u8; WIDEST]; LANES];
        for lane in lanes(active) {
            let lane_access = LaneAccess {
                lane,
                space: access.address.space,
                address: addresses[lane],
                size,
                kind: Kind::Read,
            };
            let found = self.locate(&lane_access, instruction, context)?;
            bytes[lane][..size].copy_from_slice(found);
        }
        count_traffic(access.address.space, active, &addresses, size, Kind::Read, context);
        for (at, target) in targets.iter().enumerate() {
            let start = at * access.width;
            let value = |lane: usize| number(&bytes[lane][start..start + access.width], access.signed);
            let values: [u64; LANES] = std::array::from_fn(value);
            if target.wide {
                self.registers.write(target.target, active, &values);
            } else {
                self.registers.write(target.target, active, &values.map(|value| value as u32));
            }
        }
        Ok(())
    }

    pub fn store(
        &mut self,
        access: &Access,
        values: &[crate::machine::registers::Source],
        active: Mask,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<(), EmulatorError> {
        let size = access.width * values.len();
        let addresses = self.addresses(&access.address);
        let mut bytes = [[0_u8; WIDEST]; LANES];
        for (at, source) in values.iter().enumerate() {
            let words: [u64; LANES] = match access.width {
                8 => self.registers.read(*source),
                _ => self.registers.read::<u32>(*source).map(u64::from),
            };
            for lane in 0..LANES {
                let start = at * access.width;
                bytes[lane][start..start + access.width]
                    .copy_from_slice(&words[lane].to_le_bytes()[..access.width]);
            }
        }
        for lane in lanes(active) {
            let lane_access = LaneAccess {
                lane,
                space: access.address.space,
                address: addresses[lane],
                size,
                kind: Kind::Write,
            };
            self.locate(&lane_access, instruction, context)?.copy_from_slice(&bytes[lane][..size]);
        }
        count_traffic(access.address.space, active, &addresses, size, Kind::Write, context);
        Ok(())
    }

    /// The bytes that a lane's access means, after every check of it.
    pub fn locate<'b>(
        &'b mut self,
        access: &LaneAccess,
        instruction: &Instruction,
        context: &'b mut Context,
    ) -> Result<&'b mut [u8], EmulatorError> {
        let &LaneAccess { lane, size, .. } = access;
        if !access.address.is_multiple_of(size as u64) {
            return Err(self.illegal(access, "is not a multiple of its size", instruction, context));
        }
        let generic = access.space == Space::Generic;
        let space = if generic { space_of(access.address) } else { access.space };
        let address = access.address - if generic { window(space) } else { 0 };
        match space {
            Space::Shared => self.locate_shared(access, address, instruction, context),
            Space::Local => {
                let length = self.local.len() / LANES;
                let Some(start) = inside(address, size, length) else {
                    let problem = format!("is outside the thread's {length} bytes of local memory");
                    return Err(self.illegal(access, &problem, instruction, context));
                };
                Ok(&mut self.local[lane * length + start..][..size])
            }
            Space::Param => self.locate_parameter(access, address, instruction, context),
            _ => self.locate_global(access, instruction, context),
        }
    }

    fn illegal(
        &self,
        access: &LaneAccess,
        problem: &str,
        instruction: &Instruction,
        context: &Context,
    ) -> EmulatorError {
        let problem =
            format!("the {} of {} bytes at {:#x} {problem}", access.kind, access.size, access.address);
        context.fault(self.index, access.lane, instruction, problem)
    }

    /// Parameters cannot be written; what is read is a copy.
    fn locate_parameter<'b>(
        &'b mut self,
        access: &LaneAccess,
        address: u64,
        instruction: &Instruction,
        context: &Context,
    ) -> Result<&'b mut [u8], EmulatorError> {
        let parameters = &context.launch.parameters;
        match inside(address, access.size, parameters.len()) {
            Some(start) if access.kind == Kind::Read => {
                let scratch = &mut self.scratch[..access.size];
                scratch.copy_from_slice(&parameters[start..start + access.size]);
                Ok(scratch)
            }
            _ => {
                let problem =
                    format!("is not a read of the kernel's {} bytes of parameters", parameters.len());
                Err(self.illegal(access, &problem, instruction, context))
            }
        }
    }

    fn locate_shared<'b>(
        &self,
        access: &LaneAccess,
        address: u64,
        instruction: &Instruction,
        context: &'b mut Context,
    ) -> Result<&'b mut [u8], EmulatorError> {
        let &LaneAccess { lane, size, kind, .. } = access;
        let length = context.shared.bytes.len();
        let Some(start) = inside(address, size, length) else {
            let problem = format!("is outside the block's {length} bytes of shared memory");
            return Err(self.illegal(access, &problem, instruction, context));
        };
        if context.shared.copies_in_flight > 0 && context.shared.in_flight.contains_any(start, size) {
            let detail = format!(
                "the {kind} of {size} bytes at {start:#x} comes before the wait for a cp.async to them"
            );
            context.hazard(HazardKind::CopyInFlight, self.index, lane, instruction, detail);
        }
        let checks = context.launch.checks;
        if checks.shared_races {
            // Each block has shared memory of its own: its number tells generations apart.
            let who = self.who(context.block_number + 1, 0);
            if let Some(conflict) = context.shared.races.access(start..start + size, &who, kind) {
                let detail = format!(
                    "the {kind} of {size} bytes at {start:#x} and a {} by warp {} have no barrier between them",
                    conflict.earlier, conflict.warp
                );
                context.hazard(HazardKind::SharedRace, self.index, lane, instruction, detail);
            }
        }
        if kind != Kind::Write && checks.uninitialised && !context.shared.written.contains_all(start, size) {
            let detail = format!("of {size} bytes of shared memory at {start:#x} some were never written");
            context.hazard(HazardKind::Uninitialised, self.index, lane, instruction, detail);
        }
        if kind != Kind::Read && checks.uninitialised {
            context.shared.written.insert(start, size);
        }
        Ok(&mut context.shared.bytes[start..start + size])
    }

    fn locate_global<'b>(
        &self,
        access: &LaneAccess,
        instruction: &Instruction,
        context: &'b mut Context,
    ) -> Result<&'b mut [u8], EmulatorError> {
        let &LaneAccess { lane, size, kind, address, .. } = access;
        let Some((index, start)) = context.memory.find(address, size) else {
            let problem = format!("is outside every allocation: {}", context.memory.describe(address));
            return Err(self.illegal(access, &problem, instruction, context));
        };
        let (checks, generation) = (context.launch.checks, context.launch.generation);
        let allocation = context.memory.allocation(index);
        let mut conflict = None;
        if checks.global_races {
            let length = allocation.bytes.len();
            let races = allocation.races.get_or_insert_with(|| super::race::Races::new(length));
            conflict = races.access(start..start + size, &self.who(generation, context.block_number), kind);
        }
        let unwritten =
            kind != Kind::Write && checks.uninitialised && !allocation.written.contains_all(start, size);
        if kind != Kind::Read {
            allocation.written.insert(start, size);
        }
        if let Some(conflict) = conflict {
            let detail = format!(
                "the {kind} of {size} bytes at {address:#x} and a {} by warp {} of block number {} have no order",
                conflict.earlier, conflict.warp, conflict.block
            );
            context.hazard(HazardKind::GlobalRace, self.index, lane, instruction, detail);
        }
        if unwritten {
            let detail = format!("of {size} bytes of global memory at {address:#x} some were never written");
            context.hazard(HazardKind::Uninitialised, self.index, lane, instruction, detail);
        }
        Ok(&mut context.memory.allocation(index).bytes[start..start + size])
    }
}

fn inside(address: u64, size: usize, length: usize) -> Option<usize> {
    let start = usize::try_from(address).ok()?;
    (start <= length.checked_sub(size)?).then_some(start)
}

/// A little-endian number of 1 to 8 bytes.
fn number(bytes: &[u8], signed: bool) -> u64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    let value = u64::from_le_bytes(all);
    let unused = 64 - 8 * bytes.len() as u32;
    if signed { ((value << unused) as i64 >> unused) as u64 } else { value }
}

/// Counts an instruction's accesses; generic addresses count where the first of them lies.
pub(super) fn count_traffic(
    space: Space,
    active: Mask,
    addresses: &[u64; LANES],
    size: usize,
    kind: Kind,
    context: &mut Context,
) {
    let mut touched = [0_u64; LANES];
    let mut count = 0;
    for lane in lanes(active) {
        touched[count] = addresses[lane];
        count += 1;
    }
    let touched = &touched[..count];
    let space = if space == Space::Generic { space_of(touched[0]) } else { space };
    let bytes = (count * size) as u64;
    let report = &mut context.report;
    match (space, kind) {
        (Space::Shared, Kind::Read) => report.shared_read_bytes += bytes,
        (Space::Shared, _) => report.shared_written_bytes += bytes,
        (Space::Global | Space::Const, Kind::Read) => {
            report.global_read_bytes += bytes;
            report.global_read_sectors += sectors(touched, size);
        }
        (Space::Global, _) => {
            report.global_written_bytes += bytes;
            report.global_written_sectors += sectors(touched, size);
        }
        _ => {}
    }
    if space == Space::Shared {
        report.bank_conflicts += bank_conflicts(touched, size);
    }
}
