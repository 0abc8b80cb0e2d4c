//! The same bits for any number of threads.

use rayon::ThreadPoolBuilder;
use tessera_ops::experts::linear::WeightLayout;
use tessera_ops::{
    Float, Queue, bias, clamp, cross_entropy, embedding, layer_norm, linear, load_balance, rms_norm, router,
    squared_norm, swiglu,
};

use crate::attention::{Layer, heads};
use crate::experts::{Routing, mixture};
use crate::support::{Seeded, bits, unwritten, view, view_mut};

/// Asserts that pools of 1, 2, 3 and 5 threads give the same bits.
fn assert_same_bits(what: &str, results: impl Fn() -> Vec<Vec<u64>> + Sync) {
    let with =
        |threads: usize| ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&results);
    let one = with(1);
    for threads in [2, 3, 5] {
        assert!(one == with(threads), "{what}: other bits with {threads} threads");
    }
}

/// Both forwards and both gradients of a linear layer.
fn linear_results<T: Float>(rows: usize, inputs: usize, outputs: usize) -> Vec<Vec<u64>> {
    let queue = Queue::cpu();
    let mut seeded = Seeded::new((rows * inputs * outputs) as u64);
    let (x, weight) = (seeded.values::<T>(rows * inputs), seeded.values::<T>(outputs * inputs));
    let dy = seeded.values::<T>(rows * outputs);
    let (mut y, mut dx) = (unwritten::<T>(rows * outputs), unwritten::<T>(rows * inputs));
    let (mut sum, mut dweight) = (dy.clone(), weight.clone());
    let (x, weight) = (view(&x, [rows, inputs]), view(&weight, [outputs, inputs]));
    let dy = view(&dy, [rows, outputs]);
    linear::forward(&queue, x, weight, view_mut(&mut y, [rows, outputs])).unwrap();
    linear::forward_add(&queue, x, weight, view_mut(&mut sum, [rows, outputs])).unwrap();
    linear::backward_input(&queue, dy, weight, view_mut(&mut dx, [rows, inputs])).unwrap();
    linear::backward_weight(&queue, dy, x, view_mut(&mut dweight, [outputs, inputs])).unwrap();
    [y, sum, dx, dweight].iter().map(|values| bits(values)).collect()
}

#[test]
fn linear_with_every_number_of_rows() {
    assert_same_bits("linear, 1 to 300 rows", || {
        (1..=300).flat_map(|rows| linear_results::<f32>(rows, 96, 160)).collect()
    });
}

#[test]
fn linear_of_many_shapes() {
    let shapes = [
        (1, 512, 32_000),
        (2, 64, 32_000),
        (37, 48, 32_000),
        (3, 1376, 512),
        (300, 512, 1376),
        (129, 1100, 33),
        (2048, 1, 7),
        (2048, 3, 2),
        (2048, 64, 1),
        (16, 4096, 16),
        (1, 4096, 1),
        (65, 2500, 65),
        (700, 130, 257),
    ];
    for (rows, inputs, outputs) in shapes {
        assert_same_bits(&format!("linear {rows} {inputs} {outputs}"), || {
            linear_results::<f32>(rows, inputs, outputs)
        });
    }
    let mut seeded = Seeded::new(1);
    for _ in 0..40 {
        let (rows, inputs, outputs) = (seeded.extent(300), seeded.extent(700), seeded.extent(300));
        assert_same_bits(&format!("linear {rows} {inputs} {outputs} in fp64"), || {
            linear_results::<f64>(rows, inputs, outputs)
        });
    }
}

#[test]
fn attention() {
    for window in [None, Some(100)] {
        let layer = Layer { heads: heads(4, 2, 32, window), documents: vec![300, 1, 399, 128] };
        let mut seeded = Seeded::new(2);
        let qkv = seeded.values::<f32>(layer.rows() * layer.heads.row_width());
        let doutput = seeded.values::<f32>(layer.rows() * layer.heads.output_width());
        assert_same_bits("attention", || {
            let kept = layer.forward(&qkv);
            let dqkv = layer.backward(&qkv, &kept, &doutput);
            [kept.output, kept.log_sum_exp, dqkv].iter().map(|values| bits(values)).collect()
        });
    }
}

#[test]
fn norm_activation_and_bias() {
    let (rows, width) = (333, 258);
    let mut seeded = Seeded::new(3);
    let (x, weight) = (seeded.values::<f32>(rows * width), seeded.values::<f32>(width));
    let (dy, gate_up) = (seeded.values::<f32>(rows * width), seeded.values::<f32>(2 * rows * width));
    assert_same_bits("row-wise operators", || {
        let queue = Queue::cpu();
        let (mut y, mut inverse_rms) = (unwritten::<f32>(rows * width), unwritten::<f32>(rows));
        let (mut dx, mut dweight) = (dy.clone(), weight.clone());
        let (x, weight) = (view(&x, [rows, width]), view(&weight, [width]));
        let y_view = view_mut(&mut y, [rows, width]);
        rms_norm::forward(&queue, x, weight, 1e-5, y_view, view_mut(&mut inverse_rms, [rows])).unwrap();
        let (dy_view, inverse_rms) = (view(&dy, [rows, width]), view(&inverse_rms, [rows]));
        let (dx_view, dweight_view) = (view_mut(&mut dx, [rows, width]), view_mut(&mut dweight, [width]));
        rms_norm::backward(&queue, dy_view, x, weight, inverse_rms, dx_view, dweight_view).unwrap();
        bias::forward(&queue, weight, view_mut(&mut y, [rows, width])).unwrap();
        bias::backward(&queue, dy_view, view_mut(&mut dweight, [width])).unwrap();
        let mut activation = unwritten::<f32>(rows * width);
        let mut gate_up = gate_up.clone();
        let gate_up_view = view(&gate_up, [rows, 2 * width]);
        swiglu::forward(&queue, gate_up_view, view_mut(&mut activation, [rows, width])).unwrap();
        swiglu::backward(&queue, dy_view, view_mut(&mut gate_up, [rows, 2 * width])).unwrap();
        [y, dx, dweight, activation, gate_up].iter().map(|values| bits(values)).collect()
    });
}

#[test]
fn sums_over_tokens_and_elements() {
    let (rows, width, vocabulary) = (700, 130, 50);
    let mut seeded = Seeded::new(4);
    let (tokens, dx) = (seeded.ids(rows, vocabulary), seeded.values::<f32>(rows * width));
    let (logits, targets) = (seeded.values::<f32>(rows * 1003), seeded.ids(rows, 1003));
    let flat = seeded.values::<f32>(500_000);
    assert_same_bits("sums", || {
        let queue = Queue::cpu();
        let mut dweight = vec![0.0_f32; vocabulary * width];
        let dweight_view = view_mut(&mut dweight, [vocabulary, width]);
        let tokens = view(&tokens, [rows]);
        embedding::backward(&queue, tokens, view(&dx, [rows, width]), dweight_view).unwrap();
        let mut gradient = logits.clone();
        let mut statistics = [0.0, 0.0];
        cross_entropy::forward_backward(
            &queue,
            view_mut(&mut gradient, [rows, 1003]),
            view(&targets, [rows]),
            1e-3,
            view_mut(&mut statistics, [2]),
        )
        .unwrap();
        let mut total = [0.0];
        squared_norm::add(&queue, view(&flat, [flat.len()]), view_mut(&mut total, [1])).unwrap();
        vec![bits(&dweight), bits(&gradient), bits(&statistics), bits(&total)]
    });
}

#[test]
fn layer_norm_and_clamp() {
    let (rows, width) = (333, 258);
    let mut seeded = Seeded::new(5);
    let (x, weight) = (seeded.values::<f32>(rows * width), seeded.values::<f32>(width));
    let dy = seeded.values::<f32>(rows * width);
    assert_same_bits("layer norm and clamp", || {
        let (queue, shape) = (Queue::cpu(), [rows, width]);
        let (mut y, mut mean, mut deviation) =
            (unwritten::<f32>(rows * width), vec![0.0; rows], vec![0.0; rows]);
        let (mut dx, mut dweight) = (dy.clone(), weight.clone());
        let (x, weight) = (view(&x, shape), view(&weight, [width]));
        let statistics = (view_mut(&mut mean, [rows]), view_mut(&mut deviation, [rows]));
        let y_view = view_mut(&mut y, shape);
        layer_norm::forward(&queue, x, weight, 1e-5, y_view, statistics.0, statistics.1).unwrap();
        let statistics = (view(&mean, [rows]), view(&deviation, [rows]));
        let gradients = (view_mut(&mut dx, shape), view_mut(&mut dweight, [width]));
        let dy = view(&dy, shape);
        layer_norm::backward(&queue, dy, x, weight, statistics.0, statistics.1, gradients.0, gradients.1)
            .unwrap();
        let mut inside = vec![0_u32; rows * clamp::words(width)];
        let inside_shape = [rows, clamp::words(width)];
        clamp::forward(&queue, view_mut(&mut y, shape), 0.5, view_mut(&mut inside, inside_shape)).unwrap();
        clamp::backward(&queue, view_mut(&mut dx, shape), view(&inside, inside_shape)).unwrap();
        [y, mean, deviation, dx, dweight].iter().map(|values| bits(values)).collect()
    });
}

#[test]
fn routing() {
    let (tokens, experts, choices) = (700, 8, 2);
    let mut seeded = Seeded::new(6);
    let (logits, dweights) = (seeded.values::<f32>(tokens * experts), seeded.values::<f32>(tokens * choices));
    let row_starts = [0_u32, 300, 700];
    assert_same_bits("routing", || {
        let queue = Queue::cpu();
        let (wide, narrow) = ([tokens, experts], [tokens, choices]);
        let (mut p, mut weights) = (logits.clone(), dweights.clone());
        let mut chosen = vec![0_u32; tokens * choices];
        let (chosen_view, weights_view) = (view_mut(&mut chosen, narrow), view_mut(&mut weights, narrow));
        router::forward(&queue, view_mut(&mut p, wide), Some(1.0), chosen_view, weights_view).unwrap();
        let (p, chosen, row_starts) = (view(&p, wide), view(&chosen, narrow), view(&row_starts, [3]));
        let (mut counts, mut sums, mut total) = (vec![0.0; 2 * experts], vec![0.0; 2 * experts], [0.0]);
        let pooled = [2, experts];
        let (counts_view, sums_view) = (view_mut(&mut counts, pooled), view_mut(&mut sums, pooled));
        load_balance::add(&queue, p, chosen, row_starts, 0..tokens, counts_view, sums_view).unwrap();
        let (counts, sums) = (view(&counts, pooled), view(&sums, pooled));
        load_balance::loss(&queue, counts, sums, row_starts, 1, 0.1, view_mut(&mut total, [1])).unwrap();
        let mut gradient = unwritten::<f32>(tokens * experts);
        load_balance::backward(&queue, counts, row_starts, 0..tokens, 1, 0.1, view_mut(&mut gradient, wide))
            .unwrap();
        let gradient_view = view_mut(&mut gradient, wide);
        router::backward(&queue, view(&dweights, narrow), p, chosen, Some(1.0), gradient_view).unwrap();
        vec![bits(&weights), bits(&total), bits(&gradient)]
    });
}

#[test]
fn experts_small_and_large() {
    let mut seeded = Seeded::new(7);
    let mut compare = |routing: &Routing, width: usize, size: usize| {
        let inputs = mixture::Mixture::<f32>::random(&mut seeded, routing, width, size);
        let dy = seeded.values::<f32>(routing.tokens * width);
        for layout in [WeightLayout::OutputsInputs, WeightLayout::InputsOutputs] {
            assert_same_bits("a mixture of experts", || {
                let groups = [0..1, 1..routing.experts()];
                let (y, gradients) = mixture::run(routing, &groups, (width, size, layout), &inputs, &dy);
                [y, gradients.x, gradients.weights, gradients.gate_up, gradients.down]
                    .iter()
                    .map(|values| bits(values))
                    .collect()
            });
        }
    };
    for seed in 0..20 {
        compare(&Routing::random(&mut Seeded::new(seed)), 48, 33);
    }
    let chosen = (0..1200).map(|slot| u32::from(slot % 3 == 0)).collect();
    compare(&Routing::new(1200, 2, 1, chosen), 512, 660);
}
