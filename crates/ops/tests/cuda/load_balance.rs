//! The load-balancing loss: its sums, its value and its gradient.

use tessera_ops::{DType, Queue, View, ViewMut, load_balance};

use crate::support::{
    Random, Values, assert_on_gpu, download, on, on_mut, starts, stream, unwritten_on, upload, view, view_mut,
};

const LAYERS: usize = 3;
const SCALE: f64 = 0.01;

/// Rows of tokens, of which some are empty; a part of them; experts and choices.
fn load_balance_follows(random: &mut Random, experts: usize) {
    let (queue, cpu) = (stream(), Queue::cpu());
    let lengths: Vec<usize> = (0..4).map(|_| random.below(30)).chain([0, 7]).collect();
    let (rows, all) = (lengths.len(), lengths.iter().sum::<usize>());
    let (row_starts, part) = (starts(&lengths), 3..all - 2);
    let (tokens, choices) = (part.len(), 2.min(experts));
    let (shape, chosen_shape, pooled) = ([tokens, experts], [tokens, choices], [rows, experts]);
    let probabilities =
        Values::<f32>::of((0..tokens * experts).map(|_| random.uniform()).collect::<Vec<_>>());
    let chosen = random.indices(tokens * choices, experts);
    let before = Values::<f32>::random(random, rows * experts).exact;

    let probabilities_on = upload(&queue, &probabilities.rounded);
    let [chosen_on, starts_on] = [&chosen, &row_starts].map(|values| upload(&queue, values));
    let [mut counts_on, mut sums_on] = [&before; 2].map(|values| upload(&queue, values));
    let (mut total_on, mut gradient) =
        (upload(&queue, &[1.0]), unwritten_on::<f32>(&queue, tokens * experts));
    let (on_gpu, starts_view) = (on::<f32>(&probabilities_on, shape), starts_on.view(DType::U32));
    let chosen_view = on::<u32>(&chosen_on, chosen_shape);
    let (counts_view, sums_view) =
        (on_mut::<f64>(&mut counts_on, pooled), on_mut::<f64>(&mut sums_on, pooled));
    load_balance::add(&queue, on_gpu, chosen_view, starts_view, part.clone(), counts_view, sums_view)
        .unwrap();
    let (counts_view, sums_view) = (on::<f64>(&counts_on, pooled), on::<f64>(&sums_on, pooled));
    let total_view = on_mut::<f64>(&mut total_on, [1]);
    load_balance::loss(&queue, counts_view, sums_view, starts_view, LAYERS, SCALE, total_view).unwrap();
    let gradient_view = on_mut::<f32>(&mut gradient, shape);
    load_balance::backward(&queue, counts_view, starts_view, part.clone(), LAYERS, SCALE, gradient_view)
        .unwrap();

    let (mut counts, mut sums, mut total) = (before.clone(), before, [1.0]);
    let (probabilities, starts) = (view(&probabilities.exact, shape), View::of(&row_starts));
    let chosen = view(&chosen, chosen_shape);
    let (counts_view, sums_view) = (view_mut(&mut counts, pooled), view_mut(&mut sums, pooled));
    load_balance::add(&cpu, probabilities, chosen, starts, part.clone(), counts_view, sums_view).unwrap();
    let (counts_view, sums_view) = (view(&counts, pooled), view(&sums, pooled));
    load_balance::loss(&cpu, counts_view, sums_view, starts, LAYERS, SCALE, ViewMut::of(&mut total)).unwrap();
    let mut expected = vec![0.0; tokens * experts];
    let gradient_view = view_mut(&mut expected, shape);
    load_balance::backward(&cpu, counts_view, starts, part, LAYERS, SCALE, gradient_view).unwrap();

    for (found, expected) in [(&counts_on, &counts[..]), (&sums_on, &sums), (&total_on, &total)] {
        for (found, expected) in download::<f64>(&queue, found).iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-12 * (1.0 + expected.abs()), "{found} {expected}");
        }
    }
    assert_on_gpu::<f32>(&queue, "dprobabilities", &gradient, &expected);
}

#[test]
fn load_balance_follows_the_cpu() {
    let mut random = Random::new(3);
    for experts in [1, 5, 8, 300] {
        load_balance_follows(&mut random, experts);
    }
}
