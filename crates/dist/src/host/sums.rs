//! Sums over ranks, whose order is that of the ranks, so that their bits depend on nothing but the number of ranks.

use std::ops::{AddAssign, Range};

/// Elements summed at a time: the sums stay in the first-level cache while the ranks' pieces stream through.
const PIECE: usize = 2048;

/// into += value(pieces[0]) + value(pieces[1]) + …, the sum first, element by element. All have equal lengths.
pub(crate) fn add_in_order<S: Copy, T: Copy + Default + AddAssign>(
    pieces: &[&[S]],
    into: &mut [T],
    value: impl Fn(S) -> T,
) {
    let mut sums = [T::default(); PIECE];
    for (index, into) in into.chunks_mut(PIECE).enumerate() {
        let sums = &mut sums[..into.len()];
        sums.fill(T::default());
        for piece in pieces {
            let piece = &piece[index * PIECE..][..into.len()];
            sums.iter_mut().zip(piece).for_each(|(sum, &given)| *sum += value(given));
        }
        into.iter_mut().zip(&*sums).for_each(|(into, &sum)| *into += sum);
    }
}

/// The `index`-th of `count` nearly equal shares of some elements: what one rank sums for all.
pub(crate) fn share(elements: usize, index: usize, count: usize) -> Range<usize> {
    let length = elements.div_ceil(count);
    (index * length).min(elements)..((index + 1) * length).min(elements)
}

/// A range in parts of some `length`, of which the last may be shorter.
pub(crate) fn parts_of(range: Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(length).map(move |start| start..(start + length).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_summed_before_they_are_added() {
        let pieces: Vec<Vec<f32>> =
            (0..3).map(|rank| (0..5000).map(|at| (at + rank) as f32).collect()).collect();
        let mut into: Vec<f32> = vec![1.0; 5000];
        add_in_order(&pieces.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut into, |value| value);
        assert!(into.iter().enumerate().all(|(at, &sum)| sum == (3 * at + 4) as f32));
        // 1e8 + 1 - 1e8 is 0 in fp32 in the order of the ranks; added to `into` one by one it would be 0 or 8.
        let mut into = [1.0_f32];
        add_in_order(&[&[1e8], &[1.0], &[-1e8]], &mut into, |value| value);
        assert_eq!(into, [1.0]);
    }
}
