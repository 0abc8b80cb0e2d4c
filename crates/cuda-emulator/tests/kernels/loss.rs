//! The load-balancing loss.

use tessera_cuda_emulator::Random;
use tessera_ops::{Queue, load_balance};

use crate::device::{Kernels, Launch, double, input, output, unsigned};
use crate::support::{Values, assert_close, below, indices, unwritten, view, view_mut};

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
