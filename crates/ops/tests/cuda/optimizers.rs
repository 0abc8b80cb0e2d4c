//! What ends a step: the norm, the decision, and the update of a flat shard.

use half::bf16;
use tessera_ops::{Queue, adamw, lion, squared_norm, step};

use crate::support::{
    Random, Values, assert_on_gpu, download, download_last, on, on_mut, scattered, stream, upload, view,
    view_mut,
};

/// Clip factor, apply, updates, skipped in a row, skipped.
const DECISION: [f64; 5] = [0.25, 1.0, 3.0, 0.0, 0.0];

/// Lengths around the 16-byte accesses, and boundaries of decay inside and outside of them.
const SHARDS: [(usize, usize); 6] = [(0, 0), (1, 0), (64, 33), (4096, 4096), (5003, 1234), (7, 100)];

const ADAMW: adamw::Hyperparameters =
    adamw::Hyperparameters { learning_rate: 1e-2, betas: (0.9, 0.95), epsilon: 1e-8, decay: 0.1 };

const LION: lion::Hyperparameters =
    lion::Hyperparameters { learning_rate: 1e-2, betas: (0.9, 0.99), decay: 0.1 };

fn adamw_case(queue: &Queue, random: &mut Random, (length, decayed): (usize, usize), rounds: bool) {
    let [p, g, m] = [(); 3].map(|()| Values::<f32>::random(random, length));
    let v = Values::<f32>::of((0..length).map(|_| random.uniform()).collect::<Vec<_>>());
    let [mut p_on, g_on, mut m_on, mut v_on] =
        [&p, &g, &m, &v].map(|values| scattered(queue, random, &values.rounded));
    let mut rounded_on = scattered(queue, random, &vec![bf16::ZERO; length]);
    let decision_on = scattered(queue, random, &DECISION);
    let (g_view, decision_view) = (on::<f32>(&g_on, [length]), on::<f64>(&decision_on, [5]));
    let state = adamw::State {
        parameters: on_mut::<f32>(&mut p_on, [length]),
        first_moment: on_mut::<f32>(&mut m_on, [length]),
        second_moment: on_mut::<f32>(&mut v_on, [length]),
        rounded: rounds.then(|| on_mut::<bf16>(&mut rounded_on, [length])),
    };
    adamw::update(queue, state, g_view, decayed, ADAMW, decision_view).unwrap();

    let (mut p, mut m, mut v) = (p.exact, m.exact, v.exact);
    let state = adamw::State {
        parameters: view_mut(&mut p, [length]),
        first_moment: view_mut(&mut m, [length]),
        second_moment: view_mut(&mut v, [length]),
        rounded: None,
    };
    let g_view = view(&g.exact, [length]);
    adamw::update(&Queue::cpu(), state, g_view, decayed, ADAMW, view(&DECISION, [5])).unwrap();
    let updated = download_last::<f32>(queue, &p_on, length);
    assert_on_gpu::<f32>(queue, "p", &p_on, &p);
    assert_on_gpu::<f32>(queue, "m", &m_on, &m);
    assert_on_gpu::<f32>(queue, "v", &v_on, &v);
    let expected = updated.into_iter().map(|p| if rounds { bf16::from_f32(p) } else { bf16::ZERO });
    assert_eq!(download_last::<bf16>(queue, &rounded_on, length), expected.collect::<Vec<_>>());
}

#[test]
fn adamw_follows_the_cpu() {
    let (queue, mut random) = (stream(), Random::new(1));
    for rounds in [false, true] {
        for shard in SHARDS.into_iter().chain(SHARDS) {
            adamw_case(&queue, &mut random, shard, rounds);
        }
    }
}

fn lion_case(queue: &Queue, random: &mut Random, (length, decayed): (usize, usize), decision: [f64; 5]) {
    let [p, mut g, mut m] = [(); 3].map(|()| Values::<f32>::random(random, length));
    if length > 0 {
        // The sign of zero is zero.
        (g.rounded[0], g.exact[0], m.rounded[0], m.exact[0]) = (0.0, 0.0, 0.0, 0.0);
    }
    let [mut p_on, g_on, mut m_on] = [&p, &g, &m].map(|values| scattered(queue, random, &values.rounded));
    let decision_on = scattered(queue, random, &decision);
    let (g_view, decision_view) = (on::<f32>(&g_on, [length]), on::<f64>(&decision_on, [5]));
    let (p_view, m_view) = (on_mut::<f32>(&mut p_on, [length]), on_mut::<f32>(&mut m_on, [length]));
    lion::update(queue, p_view, g_view, m_view, decayed, LION, decision_view).unwrap();

    let (mut p, mut m) = (p.exact, m.exact);
    let (p_view, g_view) = (view_mut(&mut p, [length]), view(&g.exact, [length]));
    let m_view = view_mut(&mut m, [length]);
    lion::update(&Queue::cpu(), p_view, g_view, m_view, decayed, LION, view(&decision, [5])).unwrap();
    assert_on_gpu::<f32>(queue, "p", &p_on, &p);
    assert_on_gpu::<f32>(queue, "m", &m_on, &m);
}

#[test]
fn lion_follows_the_cpu() {
    let (queue, mut random) = (stream(), Random::new(2));
    for shard in SHARDS.into_iter().chain(SHARDS) {
        lion_case(&queue, &mut random, shard, DECISION);
    }
}

#[test]
fn a_skipped_step_moves_nothing() {
    let queue = stream();
    let [mut p, mut m, mut v, g] = [1.0_f32, 2.0, 3.0, 4.0].map(|value| upload(&queue, &[value; 9]));
    let decision = upload(&queue, &[1.0, 0.0, 3.0, 1.0, 1.0]);
    let (g, decision) = (on::<f32>(&g, [9]), on::<f64>(&decision, [5]));
    let mut rounded = upload(&queue, &[bf16::ONE; 9]);
    let state = adamw::State {
        parameters: on_mut::<f32>(&mut p, [9]),
        first_moment: on_mut::<f32>(&mut m, [9]),
        second_moment: on_mut::<f32>(&mut v, [9]),
        rounded: Some(on_mut::<bf16>(&mut rounded, [9])),
    };
    adamw::update(&queue, state, g, 9, ADAMW, decision).unwrap();
    let (p_view, m_view) = (on_mut::<f32>(&mut p, [9]), on_mut::<f32>(&mut m, [9]));
    lion::update(&queue, p_view, g, m_view, 9, LION, decision).unwrap();
    let found = [p, m, v].map(|buffer| download::<f32>(&queue, &buffer));
    assert_eq!(found, [[1.0; 9], [2.0; 9], [3.0; 9]]);
    assert_eq!(download::<bf16>(&queue, &rounded), [bf16::ONE; 9]);
}

#[test]
fn squared_norms_follow_the_cpu() {
    let (queue, mut random) = (stream(), Random::new(3));
    for length in [0, 1, 1000, 1 << 16, (1 << 16) + 5, 3 << 16] {
        let x = Values::<f32>::random(&mut random, length).rounded;
        let (x_on, mut total) = (scattered(&queue, &mut random, &x), scattered(&queue, &mut random, &[0.5]));
        squared_norm::add(&queue, on::<f32>(&x_on, [length]), on_mut::<f64>(&mut total, [1])).unwrap();
        let (found, mut expected) = (download_last::<f64>(&queue, &total, 1)[0], [0.5_f64]);
        squared_norm::add(&Queue::cpu(), view(&x, [length]), view_mut(&mut expected, [1])).unwrap();
        assert!((found - expected[0]).abs() <= 1e-13 * expected[0], "{found} {}", expected[0]);
    }
}

#[test]
fn decisions_are_the_cpus() {
    let (queue, nan, infinite) = (stream(), f64::NAN, f64::INFINITY);
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
        let (statistics_on, mut decision) = (upload(&queue, &statistics), upload(&queue, &before));
        let decision_view = on_mut::<f64>(&mut decision, [5]);
        step::decide(&queue, on::<f64>(&statistics_on, [6]), max_norm, decision_view).unwrap();
        let (found, mut expected) = (download::<f64>(&queue, &decision), before);
        step::decide(&Queue::cpu(), view(&statistics, [6]), max_norm, view_mut(&mut expected, [5])).unwrap();
        // A factor that is NaN on the CPU multiplies nothing: the step is skipped.
        assert_eq!(found[1..], expected[1..]);
        assert!(expected[1] == 0.0 || found[0] == expected[0], "{} {}", found[0], expected[0]);
    }
}
