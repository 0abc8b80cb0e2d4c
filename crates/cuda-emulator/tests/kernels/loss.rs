//! Cross-entropy and the load-balancing loss.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::{Queue, cross_entropy, load_balance};

use crate::device::{Kernels, Launch, double, float, input, output, unsigned};
use crate::support::{Values, Variant, assert_close, below, extent, indices, unwritten, view, view_mut};

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

/// Rows of tokens, of which some are empty; a part of them; experts and choices.
#[test]
fn load_balance_follows_the_cpu() {
    let (mut kernels, mut random) = (Kernels::load("load_balance"), Random::new(3));
    for experts in [1, 5, 8, 300] {
        let lengths: Vec<u32> = (0..4).map(|_| below(&mut random, 30) as u32).chain([0, 7]).collect();
        let row_starts: Vec<u32> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        let (rows, all) = (lengths.len(), row_starts[lengths.len()] as usize);
        let part = 3..all - 2;
        let (tokens, choices, layers, scale) = (part.len(), 2.min(experts), 3, 0.01);
        let probabilities =
            Values::<f32>::of((0..tokens * experts).map(|_| random.uniform()).collect::<Vec<_>>());
        let chosen = indices(&mut random, tokens * choices, experts);
        let before = Values::<f32>::random(&mut random, rows * experts).exact;

        let (mut counts, mut sums) = (before.clone(), before.clone());
        kernels.run(
            "load_balance_add",
            Launch::blocks(rows),
            &mut [
                input(&probabilities.rounded),
                input(&chosen),
                input(&row_starts),
                unsigned(part.start),
                unsigned(tokens),
                output(&mut counts),
                output(&mut sums),
                unsigned(experts),
                unsigned(choices),
            ],
        );
        let (mut expected_counts, mut expected_sums) = (before.clone(), before.clone());
        let queue = Queue::cpu();
        let starts = view(&row_starts, [rows + 1]);
        load_balance::add(
            &queue,
            view(&probabilities.exact, [tokens, experts]),
            view(&chosen, [tokens, choices]),
            starts,
            part.clone(),
            view_mut(&mut expected_counts, [rows, experts]),
            view_mut(&mut expected_sums, [rows, experts]),
        )
        .unwrap();
        assert_doubles(&counts, &expected_counts);
        assert_doubles(&sums, &expected_sums);

        let (mut total, mut expected_total) = ([1.0], [1.0]);
        kernels.run(
            "load_balance_loss",
            Launch::blocks(1).threads(1),
            &mut [
                input(&counts),
                input(&sums),
                input(&row_starts),
                unsigned(layers),
                double(scale),
                output(&mut total),
                unsigned(rows),
                unsigned(experts),
            ],
        );
        let (counts_view, sums_view) = (view(&counts, [rows, experts]), view(&sums, [rows, experts]));
        let total_view = view_mut(&mut expected_total, [1]);
        load_balance::loss(&queue, counts_view, sums_view, starts, layers, scale, total_view).unwrap();
        assert_doubles(&total, &expected_total);

        let mut gradient = unwritten::<f32>(tokens * experts);
        kernels.run(
            "load_balance_backward",
            Launch::blocks(tokens).threads(32),
            &mut [
                input(&counts),
                input(&row_starts),
                unsigned(part.start),
                unsigned(layers),
                double(scale),
                output(&mut gradient),
                unsigned(rows),
                unsigned(experts),
            ],
        );
        let mut expected = vec![0.0; tokens * experts];
        let gradient_view = view_mut(&mut expected, [tokens, experts]);
        load_balance::backward(&queue, counts_view, starts, part, layers, scale, gradient_view).unwrap();
        assert_close("dprobabilities", &gradient, &expected);
    }
}

fn assert_doubles(found: &[f64], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-12 * (1.0 + expected.abs()), "{found} {expected}");
    }
}
