//! Σ xᵢ².

use tessera_ops::{Queue, squared_norm};

use crate::support::{Seeded, view, view_mut};

#[test]
fn adds_the_sum_of_squares_in_fp64() {
    for count in [0, 1, 15, 16, 17, 1000, 65_536, 65_537, 300_001] {
        let x = Seeded::new(count as u64).values::<f32>(count);
        let expected: f64 = 0.5 + x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        let mut total = [0.5];
        squared_norm::add(&Queue::cpu(), view(&x, [count]), view_mut(&mut total, [1])).unwrap();
        assert!((total[0] - expected).abs() <= 1e-12 * expected, "{} {expected}", total[0]);
    }
}

#[test]
fn does_not_overflow_where_fp32_would() {
    let mut total = [0.0];
    squared_norm::add(&Queue::cpu(), view(&[1e30_f32, 1e-30], [2]), view_mut(&mut total, [1])).unwrap();
    assert!((total[0] / f64::from(1e30_f32).powi(2) - 1.0).abs() < 1e-15);
}
