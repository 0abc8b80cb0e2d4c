//! Who read and wrote each word last, and whether an access is ordered after it.
//!
//! Warps of a block are ordered by barriers: each keeps, for every other, how far that one had come when they last
//! met (a vector clock, as in Flanagan and Freund, "FastTrack", 2009). Blocks of a launch are not ordered at all.
//! Lanes of one warp run in lockstep here and are not checked against each other.

use std::ops::Range;

/// The access that a warp makes now.
#[derive(Clone, Copy)]
pub(super) struct Who<'c> {
    /// Different for every launch (global memory) or every block (shared memory): what is older is forgotten.
    pub generation: u32,
    pub block: u32,
    pub warp: u32,
    /// Barriers that this warp has passed.
    pub epoch: u32,
    /// By warp: accesses of epochs below this came before.
    pub clock: &'c [u32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Atomic,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    block: u32,
    warp: u16,
    bytes: u8,
    atomic: bool,
    epoch: u32,
}

impl Mark {
    /// Whether an access to some of `bytes` by `who` may come before or after this one.
    fn conflicts(&self, who: &Who, bytes: u8) -> bool {
        let ordered = self.block == who.block
            && (u32::from(self.warp) == who.warp
                || who.clock.get(usize::from(self.warp)).is_some_and(|clock| self.epoch < *clock));
        self.bytes & bytes != 0 && !ordered
    }
}

/// One word of memory. Two readers are kept: a write must come after all of them, and a missing barrier shows with
/// any.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    generation: u32,
    write: Mark,
    reads: [Mark; 2],
}

/// The two accesses of a race.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conflict {
    pub earlier: Kind,
    pub block: u32,
    pub warp: u32,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Races {
    cells: Vec<Cell>,
}

impl Races {
    pub fn new(bytes: usize) -> Self {
        Self { cells: vec![Cell::default(); bytes.div_ceil(4)] }
    }

    /// Notes an access to the bytes of `range`; the first conflict with an earlier one comes back.
    pub fn access(&mut self, range: Range<usize>, who: &Who, kind: Kind) -> Option<Conflict> {
        let mut found = None;
        for word in range.start / 4..range.end.div_ceil(4) {
            let first = range.start.saturating_sub(word * 4);
            let last = (range.end - word * 4).min(4);
            let bytes = (0xf_u8 >> (4 - (last - first))) << first;
            found = found.or(self.cells[word].access(who, bytes, kind));
        }
        found
    }
}

impl Cell {
    fn access(&mut self, who: &Who, bytes: u8, kind: Kind) -> Option<Conflict> {
        if self.generation != who.generation {
            *self = Self { generation: who.generation, ..Self::default() };
        }
        let conflict = |mark: &Mark, earlier| {
            let conflict = Conflict { earlier, block: mark.block, warp: u32::from(mark.warp) };
            mark.conflicts(who, bytes).then_some(conflict)
        };
        let both_atomic = kind == Kind::Atomic && self.write.atomic;
        let mut found = if both_atomic { None } else { conflict(&self.write, Kind::Write) };
        let mark = Mark {
            block: who.block,
            warp: who.warp as u16,
            bytes,
            atomic: kind == Kind::Atomic,
            epoch: who.epoch,
        };
        let same_access =
            |known: &Mark| known.block == mark.block && known.warp == mark.warp && known.epoch == mark.epoch;
        if kind == Kind::Read {
            let [newest, oldest] = &mut self.reads;
            if same_access(newest) {
                newest.bytes |= bytes;
            } else {
                *oldest = std::mem::replace(newest, mark);
            }
        } else {
            found = found.or(conflict(&self.reads[0], Kind::Read)).or(conflict(&self.reads[1], Kind::Read));
            if same_access(&self.write) && self.write.atomic == mark.atomic {
                self.write.bytes |= bytes;
            } else {
                self.write = mark;
            }
        }
        found
    }
}
