//! Initial weights.

use tessera_ops::random;

use crate::support::view_mut;

fn normal(seed: u64, first: u64, count: usize) -> Vec<f64> {
    let mut x = vec![f64::NAN; count];
    random::normal(seed, first, 1.0, view_mut(&mut x, [count])).unwrap();
    x
}

#[test]
fn samples_are_standard_normal() {
    let count = 200_000;
    let mut x = normal(17, 0, count);
    let moment = |power: i32| x.iter().map(|x| x.powi(power)).sum::<f64>() / count as f64;
    // Five standard errors of each moment of the standard normal distribution.
    for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        let error = 5.0 * f64::sqrt(variance / count as f64);
        assert!((moment(power) - expected).abs() < error, "moment {power}: {}", moment(power));
    }
    let neighbours = x.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / count as f64;
    assert!(neighbours.abs() < 5.0 / f64::sqrt(count as f64), "{neighbours}");
    x.sort_by(f64::total_cmp);
    x.dedup();
    assert_eq!(x.len(), count, "samples repeat");
}

#[test]
fn streams_of_different_seeds_are_unrelated() {
    let count = 100_000;
    let (a, b) = (normal(17, 0, count), normal(18, 0, count));
    let product = a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>() / count as f64;
    assert!(product.abs() < 5.0 / f64::sqrt(count as f64), "{product}");
    assert_eq!(normal(17, u64::MAX, 2)[1], a[0], "the stream wraps around");
}
