//! Whether ranks that read different copies of the first weights read the same.
//!
//! Each rank reads its own slices only, so that nothing tells whether a rank's copy, on its node's own disk, is that of the
//! others. Where all see the same files there is nothing to find out. Else the slices of each rank are read once more by a rank
//! that has another copy, and what both have read is held against one another. A byte that differs where no rank that uses it
//! looks at it is not found, and does no harm.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tessera_checkpoint::WeightSource;
use tessera_files::{Digest, IoContext, Sha256, sha256_hex};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::launch::boot;
use crate::state::exchange;
use crate::state::first_weights::spelled_as;

/// Fails, naming both ranks and the tensor, if what a rank has loaded is not what another has in its place. All ranks call it,
/// after they have loaded.
pub(super) fn same_weights(
    engine: &Engine,
    weights: &dyn WeightSource,
    place: &str,
) -> Result<(), TrainError> {
    let mesh = engine.units().mesh();
    let world = mesh.world();
    if world.world_size() == 1 {
        return Ok(());
    }
    let copies = exchange(world, "where the weights lie", &copy(weights)?)?;
    if copies.iter().all(|other| *other == copies[0]) {
        return Ok(());
    }
    let loaded = exchange(world, "what the weights add up to", &engine.weight_sums()?)?;
    let model = spelled_as(engine.model().config(), weights, place)?;
    let mut difference = None;
    for looked_at in (0..copies.len()).filter(|&rank| onlooker(rank, &copies) == Some(world.rank())) {
        let rank = looked_at % mesh.shard().world_size();
        let sums = engine.weight_sums_in(weights, model.units(), rank)?;
        let differs = sums.iter().zip(&loaded[looked_at]).find(|((_, sum), loaded)| sum != *loaded);
        difference = difference.or_else(|| differs.map(|((name, _), _)| (looked_at, name.clone())));
    }
    let differences = exchange(world, "whether the weights are the same", &difference)?;
    for (rank, difference) in differences.into_iter().enumerate() {
        if let Some((other, name)) = difference {
            return Err(TrainError::OtherWeights { ranks: [rank.min(other), rank.max(other)], name });
        }
    }
    Ok(())
}

/// What tells this rank's copy of the weights from those of others: the machine, and its files.
fn copy(weights: &dyn WeightSource) -> Result<String, TrainError> {
    let mut hash = Sha256::new_with_prefix(boot());
    for path in weights.files() {
        let file = fs::metadata(&path).context("open", &path)?;
        let written = (file.mtime(), file.mtime_nsec());
        hash.update(format!("{} {} {} {written:?}", file.dev(), file.ino(), file.len()));
    }
    Ok(sha256_hex(hash))
}

/// The rank that looks at the slices of `rank`: one that has another copy, each of them one in turn.
fn onlooker(rank: usize, copies: &[String]) -> Option<usize> {
    let ranks = copies.len();
    let number = copies[..rank].iter().filter(|copy| **copy == copies[rank]).count();
    let after = (1..ranks).map(|step| (rank + step) % ranks);
    let others: Vec<_> = after.filter(|&other| copies[other] != copies[rank]).collect();
    others.get(number % others.len().max(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_is_looked_at_by_one_with_another_copy() {
        let onlookers = |copies: &str| {
            let copies: Vec<_> = copies.chars().map(String::from).collect();
            (0..copies.len()).map(|rank| onlooker(rank, &copies)).collect::<Vec<_>>()
        };
        assert_eq!(onlookers("ab"), [1, 0].map(Some));
        assert_eq!(onlookers("abc"), [1, 2, 0].map(Some));
        assert_eq!(onlookers("aabb"), [2, 3, 0, 1].map(Some), "no node looks at more than its share");
        assert_eq!(onlookers("aaab"), [3, 3, 3, 0].map(Some));
        assert_eq!(onlookers("aa"), [None, None]);
    }
}
