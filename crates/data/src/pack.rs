//! Examples into rows of limited length.
//!
//! Best-fit-decreasing: the longest example first, each into the row with the least room that holds it. It
//! runs over windows of 65,536 examples in a seeded order, so that memory is bounded and no row is made of
//! neighbours of the file alone; within a window it takes O(n log n). Rows and the examples in them are then put in the
//! order of the file, which costs nothing and makes `shuffle: false` mean what it says.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::order::Permutation;

/// Examples that are packed together.
pub const WINDOW: usize = 65_536;

/// Sets the permutation of packing apart from those of epochs.
const STREAM: u64 = u64::MAX;

/// Which examples each row has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRows {
    members: Vec<usize>,
    starts: Vec<usize>,
}

impl PackedRows {
    fn new(examples: usize) -> Self {
        Self { members: Vec::with_capacity(examples), starts: vec![0] }
    }

    fn push(&mut self, members: &[usize]) {
        self.members.extend_from_slice(members);
        self.starts.push(self.members.len());
    }

    /// The same rows by the places of their first members.
    fn in_file_order(&self) -> Self {
        let mut rows: Vec<_> = self.iter().collect();
        rows.sort_unstable_by_key(|members| members.first());
        let mut sorted = Self::new(self.members.len());
        rows.into_iter().for_each(|members| sorted.push(members));
        sorted
    }

    /// The rows in order, each the numbers of its examples.
    pub fn iter(&self) -> impl Iterator<Item = &[usize]> {
        self.starts.windows(2).filter_map(|bounds| match bounds {
            [start, end] => self.members.get(*start..*end),
            _ => None,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Packs examples of the given lengths into rows of `capacity` tokens. No length may be above `capacity`; one
/// that is gets a row of its own.
pub fn best_fit(lengths: &[u32], capacity: u32, seed: u64) -> PackedRows {
    let order = Permutation::new(seed, STREAM, lengths.len());
    let mut rows = PackedRows::new(lengths.len());
    for start in (0..lengths.len()).step_by(WINDOW) {
        let window = start..lengths.len().min(start + WINDOW);
        let examples = window.map(|place| order.at(place));
        pack_window(
            examples.map(|example| (example, lengths.get(example).copied().unwrap_or(0))).collect(),
            capacity,
            &mut rows,
        );
    }
    rows.in_file_order()
}

/// One example a row.
pub fn one_each(examples: usize) -> PackedRows {
    PackedRows { members: (0..examples).collect(), starts: (0..=examples).collect() }
}

/// Packs one window of (example, length) and appends its rows.
fn pack_window(mut window: Vec<(usize, u32)>, capacity: u32, rows: &mut PackedRows) {
    window.sort_by_key(|&(_, length)| Reverse(length));
    let mut with_room: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut packed: Vec<Vec<usize>> = Vec::new();
    for (example, length) in window {
        let (row, room) = take_fullest(&mut with_room, length).unwrap_or_else(|| {
            packed.push(Vec::new());
            (packed.len() - 1, capacity)
        });
        if let Some(members) = packed.get_mut(row) {
            members.push(example);
        }
        match room.saturating_sub(length) {
            0 => {}
            rest => with_room.entry(rest).or_default().push(row),
        }
    }
    packed.iter_mut().for_each(|members| members.sort_unstable());
    packed.iter().for_each(|members| rows.push(members));
}

/// Takes out a row with the least room that holds `length`: the row and its room.
fn take_fullest(with_room: &mut BTreeMap<u32, Vec<usize>>, length: u32) -> Option<(usize, u32)> {
    let (&room, candidates) = with_room.range_mut(length..).next()?;
    let row = candidates.pop()?;
    if candidates.is_empty() {
        with_room.remove(&room);
    }
    Some((row, room))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Lengths with many short and few long ones, as conversations have.
    fn lengths(seed: u64, count: usize, capacity: u32) -> Vec<u32> {
        let random = Permutation::new(seed, 0, 1 << 20);
        let share = |index| random.at(index % (1 << 20)) as f64 / f64::from(1 << 20);
        (0..count).map(|index| 1 + (share(index).powi(3) * f64::from(capacity - 1)) as u32).collect()
    }

    /// The rows that first-fit in the order of arrival needs.
    fn first_fit(lengths: &[u32], capacity: u32) -> usize {
        let mut rooms: Vec<u32> = Vec::new();
        for &length in lengths {
            match rooms.iter_mut().find(|room| **room >= length) {
                Some(room) => *room -= length,
                None => rooms.push(capacity - length),
            }
        }
        rooms.len()
    }

    #[test]
    fn every_example_is_in_one_row_that_holds_it() {
        for seed in 0..20 {
            let capacity = 64 + 37 * seed as u32;
            let lengths = lengths(seed, 500 + 61 * seed as usize, capacity);
            let rows = best_fit(&lengths, capacity, seed);
            assert!(
                rows.iter().all(|row| row.iter().map(|&example| lengths[example]).sum::<u32>() <= capacity)
            );
            let mut members: Vec<_> = rows.iter().flatten().copied().collect();
            members.sort();
            assert_eq!(members, (0..lengths.len()).collect::<Vec<_>>());
            assert!(rows.len() <= first_fit(&lengths, capacity), "seed {seed}");
        }
    }

    #[test]
    fn an_exact_fit_is_found() {
        let rows = best_fit(&[5, 2, 7, 3, 1, 6], 8, 0);
        assert_eq!(rows.iter().map(<[_]>::to_vec).collect::<Vec<_>>(), [vec![0, 3], vec![1, 5], vec![2, 4]]);
    }

    #[test]
    fn the_seed_decides_who_meets_beyond_one_window() {
        let lengths = lengths(3, WINDOW + 5000, 512);
        let rows = best_fit(&lengths, 512, 1);
        assert_eq!(rows, best_fit(&lengths, 512, 1));
        assert_ne!(rows, best_fit(&lengths, 512, 2));
        assert_eq!(rows.iter().map(<[_]>::len).sum::<usize>(), lengths.len());
    }

    #[test]
    fn rows_follow_the_file_in_one_window_and_in_several() {
        for examples in [1000, WINDOW + 5000] {
            let rows = best_fit(&lengths(9, examples, 128), 128, 4);
            let firsts: Vec<_> = rows.iter().map(|row| row[0]).collect();
            assert!(firsts.is_sorted(), "{examples} examples");
        }
    }
}
