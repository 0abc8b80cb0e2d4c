//! `cp.async`: bytes that are on their way to shared memory until the lane that sent for them waits.
//!
//! The source is read when the copy is issued and the bytes arrive at the wait, the latest moment that the hardware
//! allows: who looks earlier finds the old bytes, and the look is reported.

use super::access::{LaneAccess, count_traffic};
use super::launch::Context;
use super::race::Kind;
use super::registers::{LANES, Mask, Source, lanes};
use super::warp::Warp;
use crate::EmulatorError;
use crate::program::{Address, CopyWait, Instruction};
use crate::ptx::Space;

/// A warp's copies, lane by lane.
#[derive(Default)]
pub(super) struct Copies {
    in_flight: Vec<Copy>,
    /// Groups that each lane has committed.
    committed: [u64; LANES],
}

struct Copy {
    lane: usize,
    start: usize,
    size: usize,
    data: [u8; 16],
    /// The lane's group; it is committed when the lane's count has passed it.
    group: u64,
}

impl Copies {
    pub fn commit(&mut self, active: Mask) {
        for lane in lanes(active) {
            self.committed[lane] += 1;
        }
    }
}

impl Warp {
    pub fn copy_async(
        &mut self,
        [shared, global]: [&Address; 2],
        size: usize,
        source_bytes: Option<Source>,
        active: Mask,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<(), EmulatorError> {
        let (targets, sources) = (self.addresses(shared), self.addresses(global));
        let lengths = source_bytes.map(|source| self.registers.read::<u32>(source));
        let mut reading: Mask = 0;
        for lane in lanes(active) {
            let wanted = lengths.map_or(size, |lengths| (lengths[lane] as usize).min(size));
            let mut data = [0; 16];
            if wanted > 0 {
                data[..wanted].copy_from_slice(self.source_of_copy(
                    lane,
                    sources[lane],
                    size,
                    wanted,
                    instruction,
                    context,
                )?);
                reading |= 1 << lane;
            }
            // Bounds, alignment and races as for a store now; the bytes come later.
            let access =
                LaneAccess { lane, space: Space::Shared, address: targets[lane], size, kind: Kind::Write };
            self.locate(&access, instruction, context)?;
            let start = targets[lane] as usize;
            context.shared.in_flight.insert(start, size);
            context.shared.copies_in_flight += 1;
            let group = self.copies.committed[lane];
            self.copies.in_flight.push(Copy { lane, start, size, data, group });
        }
        if reading != 0 {
            count_traffic(Space::Global, reading, &sources, size, Kind::Read, context);
        }
        count_traffic(Space::Shared, active, &targets, size, Kind::Write, context);
        Ok(())
    }

    /// `wanted` bytes at an address that must be aligned for all `size`.
    fn source_of_copy<'b>(
        &'b mut self,
        lane: usize,
        address: u64,
        size: usize,
        wanted: usize,
        instruction: &Instruction,
        context: &'b mut Context,
    ) -> Result<&'b [u8], EmulatorError> {
        let access = LaneAccess { lane, space: Space::Global, address, size, kind: Kind::Read };
        if wanted == size || !address.is_multiple_of(size as u64) {
            return Ok(self.locate(&access, instruction, context)?);
        }
        // Fewer bytes are read than the copy has: only those must exist.
        let mut scratch = [0; 32];
        for (at, place) in (address..).zip(&mut scratch[..wanted]) {
            let byte = LaneAccess { address: at, size: 1, ..access };
            *place = self.locate(&byte, instruction, context)?[0];
        }
        self.scratch = scratch;
        Ok(&self.scratch[..wanted])
    }

    pub fn wait_for_copies(
        &mut self,
        wait: CopyWait,
        active: Mask,
        instruction: &Instruction,
        context: &mut Context,
    ) {
        let committed = self.copies.committed;
        let arrives = |copy: &Copy| {
            let waits = active >> copy.lane & 1 == 1;
            waits
                && match wait {
                    CopyWait::All => true,
                    CopyWait::Groups(left) => copy.group.saturating_add(left) < committed[copy.lane],
                }
        };
        let (arrived, in_flight): (Vec<Copy>, Vec<Copy>) =
            std::mem::take(&mut self.copies.in_flight).into_iter().partition(arrives);
        self.copies.in_flight = in_flight;
        for copy in &arrived {
            context.shared.in_flight.remove(copy.start, copy.size);
        }
        context.shared.copies_in_flight -= arrived.len();
        for copy in arrived {
            let Copy { lane, start, size, data, .. } = copy;
            let access =
                LaneAccess { lane, space: Space::Shared, address: start as u64, size, kind: Kind::Write };
            // It was in bounds when it was issued.
            if let Ok(place) = self.locate(&access, instruction, context) {
                place.copy_from_slice(&data[..size]);
            }
        }
    }
}
