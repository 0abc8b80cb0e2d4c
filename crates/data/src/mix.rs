//! Examples of several sources in one order, each source by its share.
//!
//! The mix is as long as it must be for every source to be used whole at least once: one that is short for its share
//! comes round again, up to a bound, and none is cut. Examples of a source keep their order and are spread evenly among the others.

/// How often a source may come round: a share that asks for more is a mistake, whose mix would fill the memory.
const MOST_ROUNDS: f64 = 1000.0;

/// A source that would come round too often.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TooOften {
    pub(crate) source: usize,
    pub(crate) rounds: f64,
}

/// For each place of the mix the source and the number of its example. `examples` says how many each source has,
/// `weights` its share, relative to the others; sources without any example have none.
///
/// # Errors
/// When the shares ask for too many rounds of a source.
pub(crate) fn interleave(examples: &[usize], weights: &[f64]) -> Result<Vec<(usize, usize)>, TooOften> {
    let quotas = quotas(examples, weights)?;
    let total: usize = quotas.iter().sum();
    let mut taken = vec![0_usize; quotas.len()];
    // Example j of n stands in the middle of the j-th of n equal parts: at (2j + 1) / 2n of the mix.
    let is_before = |left: (usize, usize), right: (usize, usize)| {
        let place = |(taken, _): (usize, usize)| 2 * taken as u128 + 1;
        place(left) * (right.1 as u128) < place(right) * (left.1 as u128)
    };
    let mut mix = Vec::with_capacity(total);
    for _ in 0..total {
        let mut next: Option<usize> = None;
        for source in (0..quotas.len()).filter(|&source| taken[source] < quotas[source]) {
            let at = |source: usize| (taken[source], quotas[source]);
            if next.is_none_or(|first| is_before(at(source), at(first))) {
                next = Some(source);
            }
        }
        let Some(source) = next else { break };
        mix.push((source, taken[source] % examples[source]));
        taken[source] += 1;
    }
    Ok(mix)
}

/// How many examples of each source the mix has.
fn quotas(examples: &[usize], weights: &[f64]) -> Result<Vec<usize>, TooOften> {
    let used = || examples.iter().zip(weights).filter(|(examples, _)| **examples > 0);
    // Examples for each unit of weight.
    let density = used().map(|(&examples, weight)| examples as f64 / weight).fold(0.0, f64::max);
    let quota = |(source, (&examples, &weight)): (usize, (&usize, &f64))| {
        if examples == 0 {
            return Ok(0);
        }
        let wanted = density * weight;
        let rounds = wanted / examples as f64;
        // Infinite, or not a number, where shares are farther apart than numbers can be.
        if rounds.is_nan() || rounds > MOST_ROUNDS {
            return Err(TooOften { source, rounds });
        }
        Ok((wanted.round() as usize).max(examples))
    };
    examples.iter().zip(weights).enumerate().map(quota).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_source_is_as_it_is() {
        assert_eq!(interleave(&[3], &[0.2]), Ok(vec![(0, 0), (0, 1), (0, 2)]));
    }

    #[test]
    fn a_short_source_comes_round_again() {
        let mix = interleave(&[6, 2], &[0.6, 0.4]);
        let expected = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3), (1, 0), (0, 4), (1, 1), (0, 5)];
        assert_eq!(mix, Ok(expected.to_vec()));
    }

    #[test]
    fn shares_that_no_memory_could_hold_are_refused() {
        assert_eq!(interleave(&[2000, 2], &[0.5, 0.5]).map(|mix| mix.len()), Ok(4000));
        let error = interleave(&[50, 50], &[1e-9, 1.0]).unwrap_err();
        assert!(error.source == 1 && (error.rounds / 1e9 - 1.0).abs() < 1e-9, "{error:?}");
        for weights in [[1e-300, 1e300], [f64::MIN_POSITIVE, f64::MAX]] {
            assert!(interleave(&[50, 50], &weights).is_err());
        }
    }

    #[test]
    fn shares_hold_at_every_place_and_no_example_is_left_out() {
        let (examples, weights) = ([1000, 37, 0, 250], [0.5, 0.2, 0.4, 0.3]);
        let mix = interleave(&examples, &weights).unwrap();
        let mut taken = [0_usize; 4];
        for (place, &(source, _)) in mix.iter().enumerate() {
            taken[source] += 1;
            for source in [0, 1, 3] {
                let share = weights[source] * (place + 1) as f64;
                assert!((taken[source] as f64 - share).abs() < 2.0, "{place}: {taken:?}");
            }
        }
        assert_eq!(taken, [1000, 400, 0, 600]);
        for (source, &examples) in examples.iter().enumerate() {
            assert!((0..examples).all(|example| mix.contains(&(source, example))));
        }
    }
}
