//! Cross-entropy.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::{Queue, cross_entropy};

use crate::device::{Kernels, Launch, float, input, output, unsigned};
use crate::support::{Values, Variant, assert_close, extent, indices, view, view_mut};

/// The statistics and, where asked for, the gradient of one chunk.
fn cross_entropy<V: Variant>(
    kernels: &mut Kernels,
    logits: &[V],
    targets: &[u32],
    scale: f64,
    gradient: bool,
) -> ([f64; 2], Vec<V>) {
    let (rows, vocabulary) = (targets.len(), logits.len() / targets.len());
    let (mut found, mut statistics) = (logits.to_vec(), [0.5, 2.0]);
    let (mut losses, mut hits) = (vec![f64::NAN; rows], vec![f64::NAN; rows]);
    kernels.run(
        &format!("cross_entropy_{}", V::SUFFIX),
        Launch::blocks(rows).threads(512),
        &mut [
            output(&mut found),
            input(targets),
            float(scale),
            unsigned(usize::from(gradient)),
            output(&mut losses),
            output(&mut hits),
            unsigned(vocabulary),
        ],
    );
    kernels.run(
        "cross_entropy_total",
        Launch::blocks(1),
        &mut [input(&losses), input(&hits), output(&mut statistics), unsigned(rows)],
    );
    (statistics, found)
}

fn cross_entropy_follows<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("cross_entropy");
    for size in [1.0, 30.0] {
        for _ in 0..5 {
            let (rows, vocabulary) = (extent(random, 6), extent(random, 5000));
            let logits = Values::<V>::of(
                Values::<V>::random(random, rows * vocabulary).exact.iter().map(|z| z * size),
            );
            let targets = indices(random, rows, vocabulary);
            let (statistics, found) = cross_entropy(&mut kernels, &logits.rounded, &targets, 0.125, true);
            let (mut expected, mut expected_statistics) = (logits.exact.clone(), [0.5, 2.0]);
            cross_entropy::forward_backward(
                &Queue::cpu(),
                view_mut(&mut expected, [rows, vocabulary]),
                view(&targets, [rows]),
                0.125,
                view_mut(&mut expected_statistics, [2]),
            )
            .unwrap();
            let off = (statistics[0] - expected_statistics[0]).abs();
            assert!(off <= 1e-5 * expected_statistics[0], "{statistics:?} {expected_statistics:?}");
            assert_eq!(statistics[1], expected_statistics[1]);
            assert_close("gradient", &found, &expected);
            let (alone, untouched) = cross_entropy(&mut kernels, &logits.rounded, &targets, 0.125, false);
            assert_eq!((alone, untouched), (statistics, logits.rounded));
        }
    }
}

#[test]
fn cross_entropy_follows_the_cpu() {
    cross_entropy_follows::<f32>(&mut Random::new(1));
    cross_entropy_follows::<bf16>(&mut Random::new(2));
}

#[test]
fn the_first_of_equal_logits_is_the_hit() {
    let mut kernels = Kernels::load("cross_entropy");
    let mut logits = vec![0.0_f32; 4000];
    (logits[17], logits[2100]) = (3.0, 3.0);
    let hits = |kernels: &mut Kernels, target| cross_entropy(kernels, &logits, &[target], 1.0, true).0[1];
    assert_eq!(hits(&mut kernels, 17), 3.0);
    assert_eq!(hits(&mut kernels, 2100), 2.0);
}

#[test]
fn a_nan_among_the_logits_shows_in_the_loss() {
    let mut logits = vec![0.0_f32; 3000];
    logits[1234] = f32::NAN;
    let (statistics, _) = cross_entropy(&mut Kernels::load("cross_entropy"), &logits, &[5], 1.0, true);
    assert!(statistics[0].is_nan());
}
