//! Which rows a batch has: a function of (seed, epoch, position), so that a run resumed at batch 10⁶ reads
//! nothing to get there, and no answer depends on the number of ranks.

/// A permutation of `0..length` that is evaluated one place at a time: a Feistel network on the next even
/// number of bits, walked until it lands below `length` (Black and Rogaway, "Ciphers with arbitrary finite
/// domains", 2002). The network's domain is at most four times as large, so a walk takes less than four
/// steps on average.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    length: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

/// Four rounds already make a pseudorandom permutation of good round functions; a few more cost nothing and
/// mend the weakness of narrow halves.
const ROUNDS: usize = 8;

impl Permutation {
    /// The permutation of `0..length` named by `seed` and `stream`.
    pub fn new(seed: u64, stream: u64, length: usize) -> Self {
        let length = length as u64;
        let bits = u64::BITS - length.saturating_sub(1).leading_zeros();
        let start = mix(mix(seed).wrapping_add(stream));
        let keys = std::array::from_fn(|round| mix(start.wrapping_add(round as u64)));
        Self { length, half_bits: bits.div_ceil(2), keys }
    }

    /// What stands at `place`. From `length` on, `place` itself.
    pub fn at(&self, place: usize) -> usize {
        let mut value = place as u64;
        if value >= self.length {
            return place;
        }
        loop {
            value = self.network(value);
            if value < self.length {
                return value as usize;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// SplitMix64's output function (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The order in which batches take the rows of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Names the permutations; each epoch has its own.
    pub seed: u64,
    /// Rows of the data set.
    pub rows: usize,
    /// `false`: rows come as they lie.
    pub shuffle: bool,
    /// `global_train_batch_size`; at least 1.
    pub rows_per_batch: usize,
}

impl Order {
    /// Batches in an epoch; the last may be partly empty.
    pub fn batches_per_epoch(&self) -> usize {
        self.rows.div_ceil(self.rows_per_batch.max(1))
    }

    /// The rows of batch `batch` of `epoch`, always `rows_per_batch` of them. `None` is an empty row, which
    /// fills the last batch of an epoch.
    pub fn rows_of(&self, epoch: u64, batch: usize) -> Vec<Option<usize>> {
        let permutation = Permutation::new(self.seed, epoch, self.rows);
        let row = |place: usize| match place {
            place if place >= self.rows => None,
            place if self.shuffle => Some(permutation.at(place)),
            place => Some(place),
        };
        let start = batch.saturating_mul(self.rows_per_batch);
        (start..start.saturating_add(self.rows_per_batch)).map(row).collect()
    }
}

/// The part of a batch that `rank` of `world` ranks takes: rows rank, rank + world, …. Every rank gets equally
/// many; where the batch does not divide, the last is empty.
pub fn split(rows: &[Option<usize>], rank: usize, world: usize) -> Vec<Option<usize>> {
    let world = world.max(1);
    let share = (0..rows.len().div_ceil(world)).map(|turn| rank + turn * world);
    share.map(|place| rows.get(place).copied().flatten()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_size_is_permuted_without_loss() {
        for length in (0..300).chain([1023, 1024, 1025, 4097, 65_536, 100_003]) {
            let permutation = Permutation::new(17, 3, length);
            let mut seen = vec![false; length];
            for place in 0..length {
                let value = permutation.at(place);
                assert!(!std::mem::replace(&mut seen[value], true), "{value} twice of {length}");
            }
        }
    }

    #[test]
    fn places_are_spread_evenly() {
        let length = 1000;
        let mut sums = vec![0; length];
        for epoch in 0..200 {
            let permutation = Permutation::new(5, epoch, length);
            (0..length).for_each(|place| sums[place] += permutation.at(place));
        }
        // 200 draws with standard deviation 289 each: 4.5 sigma of the sum is 18 400.
        assert!(sums.iter().all(|sum| sum.abs_diff(200 * 999 / 2) < 18_400));
    }

    #[test]
    fn an_epoch_has_each_row_once_and_is_filled_up() {
        let order = Order { seed: 1, rows: 10, shuffle: true, rows_per_batch: 4 };
        assert_eq!(order.batches_per_epoch(), 3);
        let epoch = |number| (0..3).flat_map(|batch| order.rows_of(number, batch)).collect::<Vec<_>>();
        let mut rows: Vec<_> = epoch(0).into_iter().flatten().collect();
        rows.sort();
        assert_eq!(rows, (0..10).collect::<Vec<_>>());
        assert_eq!(epoch(0).iter().filter(|row| row.is_none()).count(), 2);
        assert_eq!(epoch(0), epoch(0));
        assert_ne!(epoch(0), epoch(1));
        assert_ne!(epoch(0), Order { seed: 2, ..order }.rows_of(0, 0));
        let still = Order { shuffle: false, ..order };
        assert_eq!(still.rows_of(7, 2), [Some(8), Some(9), None, None]);
    }

    #[test]
    fn ranks_share_a_batch_evenly() {
        let rows = [Some(4), Some(7), Some(1), Some(0), None];
        assert_eq!(split(&rows, 0, 2), [Some(4), Some(1), None]);
        assert_eq!(split(&rows, 1, 2), [Some(7), Some(0), None]);
        assert_eq!(split(&rows, 3, 4), [Some(0), None]);
        assert_eq!(split(&rows, 0, 1), rows);
    }
}
