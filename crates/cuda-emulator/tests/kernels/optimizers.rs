//! What ends a step: the norm, the decision, and the update of a flat shard.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::{Queue, adamw, lion, squared_norm, step};

use crate::device::{Kernels, Launch, double, input, long, null, output, unsigned};
use crate::support::{Values, assert_close, unwritten, view, view_mut};

/// Clip factor, apply, updates, skipped in a row, skipped.
const DECISION: [f64; 5] = [0.25, 1.0, 3.0, 0.0, 0.0];
/// Lengths around the 16-byte accesses, and boundaries of decay inside and outside of them.
const SHARDS: [(usize, usize); 5] = [(1, 0), (64, 33), (4096, 4096), (5003, 1234), (7, 100)];

#[test]
fn adamw_follows_the_cpu() {
    let (mut kernels, mut random) = (Kernels::load("adamw"), Random::new(1));
    let hyperparameters =
        adamw::Hyperparameters { learning_rate: 1e-2, betas: (0.9, 0.95), epsilon: 1e-8, decay: 0.1 };
    for (length, decayed) in SHARDS {
        let [p, g, m] = std::array::from_fn(|_| Values::<f32>::random(&mut random, length));
        let v = Values::<f32>::of((0..length).map(|_| random.uniform()).collect::<Vec<_>>());
        let (mut found_p, mut found_m, mut found_v) =
            (p.rounded.clone(), m.rounded.clone(), v.rounded.clone());
        let mut copy = unwritten::<bf16>(length);
        kernels.run(
            "adamw",
            Launch::blocks(3),
            &mut [
                output(&mut found_p),
                input(&g.rounded),
                output(&mut found_m),
                output(&mut found_v),
                output(&mut copy),
                input(&DECISION),
                double(hyperparameters.learning_rate),
                double(hyperparameters.betas.0),
                double(hyperparameters.betas.1),
                double(hyperparameters.epsilon),
                double(hyperparameters.decay),
                long(decayed),
                long(length),
            ],
        );
        let (mut expected_p, mut expected_m, mut expected_v) =
            (p.exact.clone(), m.exact.clone(), v.exact.clone());
        adamw::update(
            &Queue::cpu(),
            view_mut(&mut expected_p, [length]),
            view(&g.exact, [length]),
            view_mut(&mut expected_m, [length]),
            view_mut(&mut expected_v, [length]),
            decayed,
            hyperparameters,
            view(&DECISION, [5]),
        )
        .unwrap();
        assert_close("p", &found_p, &expected_p);
        assert_close("m", &found_m, &expected_m);
        assert_close("v", &found_v, &expected_v);
        assert_eq!(copy, found_p.iter().map(|&p| bf16::from_f32(p)).collect::<Vec<_>>());
    }
}

#[test]
fn lion_follows_the_cpu() {
    let (mut kernels, mut random) = (Kernels::load("lion"), Random::new(2));
    let hyperparameters = lion::Hyperparameters { learning_rate: 1e-2, betas: (0.9, 0.99), decay: 0.1 };
    for (length, decayed) in SHARDS {
        let [p, mut g, mut m] = std::array::from_fn(|_| Values::<f32>::random(&mut random, length));
        // The sign of zero is zero.
        (g.rounded[0], g.exact[0], m.rounded[0], m.exact[0]) = (0.0, 0.0, 0.0, 0.0);
        let (mut found_p, mut found_m) = (p.rounded.clone(), m.rounded.clone());
        kernels.run(
            "lion",
            Launch::blocks(3),
            &mut [
                output(&mut found_p),
                input(&g.rounded),
                output(&mut found_m),
                null(),
                input(&DECISION),
                double(hyperparameters.learning_rate),
                double(hyperparameters.betas.0),
                double(hyperparameters.betas.1),
                double(hyperparameters.decay),
                long(decayed),
                long(length),
            ],
        );
        let (mut expected_p, mut expected_m) = (p.exact.clone(), m.exact.clone());
        lion::update(
            &Queue::cpu(),
            view_mut(&mut expected_p, [length]),
            view(&g.exact, [length]),
            view_mut(&mut expected_m, [length]),
            decayed,
            hyperparameters,
            view(&DECISION, [5]),
        )
        .unwrap();
        assert_close("p", &found_p, &expected_p);
        assert_close("m", &found_m, &expected_m);
    }
}

#[test]
fn a_skipped_step_moves_nothing() {
    let decision = [1.0, 0.0, 3.0, 1.0, 1.0];
    let (mut p, mut m, mut v, g) = ([1.0_f32; 9], [2.0_f32; 9], [3.0_f32; 9], [4.0_f32; 9]);
    let rates = || [double(0.1), double(0.9), double(0.95)];
    let [rate, beta1, beta2] = rates();
    Kernels::load("adamw").run(
        "adamw",
        Launch::blocks(1),
        &mut [
            output(&mut p),
            input(&g),
            output(&mut m),
            output(&mut v),
            null(),
            input(&decision),
            rate,
            beta1,
            beta2,
            double(1e-8),
            double(0.5),
            long(9),
            long(9),
        ],
    );
    let [rate, beta1, beta2] = rates();
    Kernels::load("lion").run(
        "lion",
        Launch::blocks(1),
        &mut [
            output(&mut p),
            input(&g),
            output(&mut m),
            null(),
            input(&decision),
            rate,
            beta1,
            beta2,
            double(0.5),
            long(9),
            long(9),
        ],
    );
    assert_eq!((p, m, v), ([1.0; 9], [2.0; 9], [3.0; 9]));
}

#[test]
fn squared_norms_follow_the_cpu() {
    let (mut kernels, mut random) = (Kernels::load("squared_norm"), Random::new(3));
    for length in [1, 1000, 1 << 16, (1 << 16) + 5] {
        let x = Values::<f32>::random(&mut random, length);
        let pieces = length.div_ceil(1 << 16);
        let (mut partial, mut total) = (vec![f64::NAN; pieces], [0.5_f64]);
        kernels.run(
            "squared_norm_pieces",
            Launch::blocks(pieces),
            &mut [input(&x.rounded), output(&mut partial), long(length)],
        );
        kernels.run(
            "squared_norm_total",
            Launch::blocks(1),
            &mut [input(&partial), output(&mut total), unsigned(pieces)],
        );
        let mut expected = [0.5_f64];
        squared_norm::add(&Queue::cpu(), view(&x.rounded, [length]), view_mut(&mut expected, [1])).unwrap();
        assert!((total[0] - expected[0]).abs() <= 1e-13 * expected[0], "{} {}", total[0], expected[0]);
    }
}

#[test]
fn decisions_are_the_cpus() {
    let mut kernels = Kernels::load("step");
    let (nan, infinite) = (f64::NAN, f64::INFINITY);
    for (statistics, max_norm) in [
        ([2.0, 0.0, 16.0, 0.0, 0.0, 0.0], 1.0),
        ([2.0, 0.0, 0.25, 0.0, 0.0, 0.0], 1.0),
        ([2.0, 0.0, nan, 0.0, 0.0, 0.0], 1.0),
        ([infinite, 0.0, 1.0, 0.0, 0.0, 0.0], 1.0),
        ([2.0, 0.0, 1.0, 0.0, infinite, 0.0], 1.0),
        ([2.0, 0.0, 9.0, 0.0, 0.0, 0.0], 0.0),
        ([2.0, 0.0, 9.0, 0.0, 0.0, 0.0], infinite),
    ] {
        let before = [0.0, 0.0, 7.0, 2.0, 3.0];
        let (mut found, mut expected) = (before, before);
        kernels.run(
            "step_decide",
            Launch::blocks(1).threads(1),
            &mut [input(&statistics), double(max_norm), output(&mut found)],
        );
        step::decide(&Queue::cpu(), view(&statistics, [6]), max_norm, view_mut(&mut expected, [5])).unwrap();
        // A factor that is NaN on the CPU multiplies nothing: the step is skipped.
        assert_eq!(found[1..], expected[1..]);
        assert!(expected[1] == 0.0 || found[0] == expected[0], "{} {}", found[0], expected[0]);
    }
}
