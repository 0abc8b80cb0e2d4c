//! Fewer points for the same curve: what is drawn of a long run must still show its spikes.

/// A point of a curve, (batch, value).
pub(super) type Point = (f64, f64);

/// At most `limit` (at least 4) of `points`, which are in the order of their first coordinate: the first, the
/// last, and of equally long stretches in between the lowest and the highest.
pub(super) fn thin(points: &[Point], limit: usize) -> Vec<Point> {
    let [first, inner @ .., last] = points else { return points.to_vec() };
    if points.len() <= limit {
        return points.to_vec();
    }
    let stretches = (limit.saturating_sub(2) / 2).max(1);
    let mut kept = vec![*first];
    for stretch in inner.chunks(inner.len().div_ceil(stretches)) {
        let by_value = |a: &Point, b: &Point| a.1.total_cmp(&b.1);
        let lowest = stretch.iter().copied().min_by(by_value);
        let highest = stretch.iter().copied().max_by(by_value);
        if let (Some(lowest), Some(highest)) = (lowest, highest) {
            kept.push(if lowest.0 <= highest.0 { lowest } else { highest });
            if lowest != highest {
                kept.push(if lowest.0 <= highest.0 { highest } else { lowest });
            }
        }
    }
    kept.push(*last);
    kept
}

/// At most `limit` points that show the trend of a noisy curve: means of equally long stretches, each then averaged
/// with its neighbours. As many are taken from before as from after, so that a falling curve is not seen to lag.
pub(super) fn smoothed(points: &[Point], limit: usize) -> Vec<Point> {
    let stretch = points.len().div_ceil(limit).max(1);
    let means: Vec<Point> = points.chunks(stretch).map(mean).collect();
    let widest = (means.len() / 60).max(4);
    let around = |(at, &(batch, _)): (usize, &Point)| {
        let reach = widest.min(at).min(means.len() - 1 - at);
        (batch, mean(&means[at - reach..=at + reach]).1)
    };
    means.iter().enumerate().map(around).collect()
}

/// The mean of both coordinates of at least one point.
fn mean(points: &[Point]) -> Point {
    let (at, value) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    (at / points.len() as f64, value / points.len() as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn extremes_and_ends_survive() {
        let mut points: Vec<Point> = (0..100_000).map(|at| (at as f64, (at as f64 / 500.0).sin())).collect();
        points[31_415].1 = 40.0;
        points[92_653].1 = -40.0;
        let thinned = thin(&points, 1000);
        assert!(thinned.len() <= 1000 && thinned.len() > 900, "{}", thinned.len());
        for kept in [points[0], points[31_415], points[92_653], points[99_999]] {
            assert!(thinned.contains(&kept), "{kept:?}");
        }
        assert!(thinned.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn short_curves_stay_as_they_are() {
        for length in 0..8 {
            let points: Vec<Point> = (0..length).map(|at| (at as f64, 1.0)).collect();
            assert_eq!(thin(&points, 8), points);
        }
        assert_eq!(thin(&[(0.0, 1.0); 9], 4).len(), 3);
    }

    #[test]
    fn smoothing_follows_a_slope_and_takes_out_noise() {
        let noisy = |at: u64| (at as f64, 2.0 * at as f64 + if at.is_multiple_of(2) { 1.0 } else { -1.0 });
        for length in [1, 24, 500, 100_000] {
            let points: Vec<Point> = (0..length).map(noisy).collect();
            let smooth = smoothed(&points, 1000);
            assert!(smooth.len() <= 1000);
            assert!(smooth.iter().all(|&(at, value)| (value - 2.0 * at).abs() <= 1.0), "{length} points");
            let (at, value) = smooth[smooth.len() / 2];
            assert!(length == 1 || (value - 2.0 * at).abs() < 0.2, "{length} points: {value} at {at}");
        }
        assert_eq!(smoothed(&[], 1000), []);
    }
}
