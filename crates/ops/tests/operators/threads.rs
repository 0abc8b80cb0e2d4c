//! The same bits for any number of threads.

use rayon::ThreadPoolBuilder;
use tessera_ops::{Float, Queue, bias, cross_entropy, embedding, linear, rms_norm, squared_norm, swiglu};

use crate::attention::{Layer, heads};
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
