//! Examples of several sources in one order, each source by its share.
//!
//! The mix is as long as it must be for every source to be used whole at least once: one that is short for its share
//! comes round again, and none is cut. Examples of a source keep their order and are spread evenly among the others.

/// For each place of the mix the source and the number of its example. `examples` says how many each source has,
/// `weights` its share, relative to the others; sources without any example have none.
pub(crate) fn interleave(examples: &[usize], weights: &[f64]) -> Vec<(usize, usize)> {
    let quotas = quotas(examples, weights);
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
    mix
}

/// How many examples of each source the mix has.
fn quotas(examples: &[usize], weights: &[f64]) -> Vec<usize> {
    let used = || examples.iter().zip(weights).filter(|(examples, _)| **examples > 0);
    // Examples for each unit of weight.
    let density = used().map(|(&examples, weight)| examples as f64 / weight).fold(0.0, f64::max);
    let quota = |(&examples, &weight): (&usize, &f64)| match examples {
        0 => 0,
        examples => ((density * weight).round() as usize).max(examples),
    };
    examples.iter().zip(weights).map(quota).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_is_as_it_is() {
        assert_eq!(interleave(&[3], &[0.2]), [(0, 0), (0, 1), (0, 2)]);
    }

    #[test]
    fn a_short_source_comes_round_again() {
        let mix = interleave(&[6, 2], &[0.6, 0.4]);
        assert_eq!(mix, [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3), (1, 0), (0, 4), (1, 1), (0, 5)]);
    }

    #[test]
    fn shares_hold_at_every_place_and_no_example_is_left_out() {
        let (examples, weights) = ([1000, 37, 0, 250], [0.5, 0.2, 0.4, 0.3]);
        let mix = interleave(&examples, &weights);
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
