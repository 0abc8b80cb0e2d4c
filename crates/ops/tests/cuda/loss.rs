//! Cross-entropy over a chunk of logits.

use half::bf16;
use tessera_ops::{Queue, cross_entropy};

use crate::support::{
    Random, Values, Variant, assert_close, download_last, on, on_mut, scattered, stream, view, view_mut,
};

/// What is in the statistics before.
const BEFORE: [f64; 2] = [0.5, 2.0];

/// The statistics of one chunk, and what is left in its logits: the gradient, where it is asked for by its scale.
fn on_gpu<V: Variant>(
    queue: &Queue,
    random: &mut Random,
    logits: &[V],
    targets: &[u32],
    scale: Option<f64>,
) -> (Vec<f64>, Vec<V>) {
    let (rows, vocabulary) = (targets.len(), logits.len() / targets.len().max(1));
    let shape = [rows, vocabulary.max(1)];
    let (mut logits_on, targets_on) = (scattered(queue, random, logits), scattered(queue, random, targets));
    let mut statistics = scattered(queue, random, &BEFORE);
    let (logits_view, targets) = (on_mut::<V>(&mut logits_on, shape), on::<u32>(&targets_on, [rows]));
    let statistics_view = on_mut::<f64>(&mut statistics, [2]);
    match scale {
        Some(scale) => {
            cross_entropy::forward_backward(queue, logits_view, targets, scale, statistics_view).unwrap();
        }
        None => cross_entropy::forward(queue, logits_view, targets, statistics_view).unwrap(),
    }
    (download_last(queue, &statistics, 2), download_last(queue, &logits_on, logits.len()))
}

fn case<V: Variant>(queue: &Queue, random: &mut Random, size: f64) {
    let (rows, vocabulary, scale) = (random.rows(6), random.extent(5000), 0.125);
    let logits =
        Values::<V>::of(Values::<V>::random(random, rows * vocabulary).exact.iter().map(|z| z * size));
    let targets = random.indices(rows, vocabulary);
    let (statistics, found) = on_gpu(queue, random, &logits.rounded, &targets, Some(scale));

    let (mut expected, mut expected_statistics) = (logits.exact.clone(), BEFORE);
    let (gradient, statistics_view) =
        (view_mut(&mut expected, [rows, vocabulary]), view_mut(&mut expected_statistics, [2]));
    cross_entropy::forward_backward(&Queue::cpu(), gradient, view(&targets, [rows]), scale, statistics_view)
        .unwrap();
    assert_close("gradient", &found, &expected);
    let (alone, _) = on_gpu(queue, random, &logits.rounded, &targets, None);
    for statistics in [statistics, alone] {
        let off = (statistics[0] - expected_statistics[0]).abs();
        assert!(off <= 1e-5 * expected_statistics[0], "{statistics:?} {expected_statistics:?}");
        assert_eq!(statistics[1], expected_statistics[1]);
    }
}

#[test]
fn cross_entropy_follows_the_cpu() {
    let (queue, mut random) = (stream(), Random::new(1));
    for size in [1.0, 30.0] {
        for _ in 0..6 {
            case::<f32>(&queue, &mut random, size);
            case::<bf16>(&queue, &mut random, size);
        }
    }
}

#[test]
fn the_first_of_equal_logits_is_the_hit() {
    let (queue, mut random, mut logits) = (stream(), Random::new(2), vec![0.0_f32; 4000]);
    (logits[17], logits[2100]) = (3.0, 3.0);
    let mut hits = |target| on_gpu(&queue, &mut random, &logits, &[target], Some(1.0)).0[1] - BEFORE[1];
    assert_eq!((hits(17), hits(2100)), (1.0, 0.0));
}

#[test]
fn a_nan_among_the_logits_shows_in_the_loss() {
    let (queue, mut random, mut logits) = (stream(), Random::new(3), vec![0.0_f32; 3000]);
    logits[1234] = f32::NAN;
    let (statistics, _) = on_gpu(&queue, &mut random, &logits, &[5], Some(1.0));
    assert!(statistics[0].is_nan());
}
