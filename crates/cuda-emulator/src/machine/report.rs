//! What a launch did and what looked wrong.

use std::collections::BTreeMap;
use std::fmt;

use super::race::Kind;
use crate::error::Place;

/// Counters and findings of one launch.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Instructions issued by opcode as written: one for a warp, however many of its lanes take part.
    pub instructions: BTreeMap<String, u64>,
    /// The same by lane.
    pub lane_instructions: u64,
    /// Bytes that lanes asked for.
    pub global_read_bytes: u64,
    /// Bytes that lanes stored.
    pub global_written_bytes: u64,
    /// Sectors of 32 bytes that warps touched: more than bytes / 32 where accesses are not coalesced.
    pub global_read_sectors: u64,
    /// As for reads.
    pub global_written_sectors: u64,
    /// Bytes that lanes asked for.
    pub shared_read_bytes: u64,
    /// Bytes that lanes stored, asynchronous copies included.
    pub shared_written_bytes: u64,
    /// Passes over shared memory beyond the first that accesses took because banks collided.
    pub bank_conflicts: u64,
    /// `mma` instructions.
    pub matrix_multiplies: u64,
    /// Floating-point operations, those of `mma` included; a fused multiply-add is two.
    pub flops: u64,
    /// What is wrong though the launch went on. Each kind once for a line of PTX.
    pub hazards: Vec<Hazard>,
    /// What device code printed.
    pub printed: String,
}

/// A finding: memory used in a way that another schedule, or the hardware, answers otherwise.
#[derive(Debug, Clone)]
pub struct Hazard {
    /// What was found.
    pub kind: HazardKind,
    /// Where it was seen first.
    pub place: Place,
    /// The details of the first.
    pub detail: String,
    /// How often it was seen there.
    pub count: u64,
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HazardKind {
    /// Two warps of a block, at least one of which writes, with no barrier between them.
    SharedRace,
    /// The same in global memory, or two blocks.
    GlobalRace,
    /// Bytes read that nothing wrote.
    Uninitialised,
    /// Bytes used while a `cp.async` to them may be under way.
    CopyInFlight,
    /// Threads that had exited when others came to a barrier.
    BarrierAfterExit,
}

impl fmt::Display for HazardKind {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::SharedRace => "race in shared memory",
            Self::GlobalRace => "race in global memory",
            Self::Uninitialised => "uninitialised read",
            Self::CopyInFlight => "asynchronous copy in flight",
            Self::BarrierAfterExit => "divergent barrier",
        })
    }
}

impl fmt::Display for Hazard {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}: {}: {}", self.place, self.kind, self.detail)?;
        if self.count > 1 {
            write!(formatter, " (and {} more there)", self.count - 1)?;
        }
        Ok(())
    }
}

impl Report {
    /// Adds another launch's counts and findings to this one's.
    pub fn add(&mut self, other: &Self) {
        for (opcode, count) in &other.instructions {
            *self.instructions.entry(opcode.clone()).or_default() += count;
        }
        self.lane_instructions += other.lane_instructions;
        self.global_read_bytes += other.global_read_bytes;
        self.global_written_bytes += other.global_written_bytes;
        self.global_read_sectors += other.global_read_sectors;
        self.global_written_sectors += other.global_written_sectors;
        self.shared_read_bytes += other.shared_read_bytes;
        self.shared_written_bytes += other.shared_written_bytes;
        self.bank_conflicts += other.bank_conflicts;
        self.matrix_multiplies += other.matrix_multiplies;
        self.flops += other.flops;
        self.hazards.extend(other.hazards.iter().cloned());
        self.printed.push_str(&other.printed);
    }

    /// All instructions issued.
    pub fn issued(&self) -> u64 {
        self.instructions.values().sum()
    }

    /// Notes a finding: once for each kind and line.
    pub(super) fn find(
        &mut self,
        kind: HazardKind,
        place: impl FnOnce() -> Place,
        line: u32,
        detail: String,
    ) {
        let known = self.hazards.iter_mut().find(|hazard| hazard.kind == kind && hazard.place.line == line);
        match known {
            Some(hazard) => hazard.count += 1,
            None => self.hazards.push(Hazard { kind, place: place(), detail, count: 1 }),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic",
        })
    }
}
