//! A block's shared memory.

use super::byte_set::ByteSet;
use super::race::Races;

#[derive(Debug)]
pub(super) struct SharedMemory {
    pub bytes: Vec<u8>,
    pub written: ByteSet,
    pub races: Races,
    /// Destinations of asynchronous copies that were not waited for.
    pub in_flight: ByteSet,
    pub copies_in_flight: usize,
}

impl SharedMemory {
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes: vec![0xff; bytes],
            written: ByteSet::new(bytes),
            races: Races::new(bytes),
            in_flight: ByteSet::new(bytes),
            copies_in_flight: 0,
        }
    }

    /// As a new block finds it: nothing of the last one's is there.
    pub fn reset(&mut self) {
        self.bytes.fill(0xff);
        self.written.clear();
        self.in_flight.clear();
        self.copies_in_flight = 0;
    }
}
