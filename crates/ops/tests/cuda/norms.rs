//! Norms, whose rows are read once and whose weight's gradient is summed block by block, and the bias, whose backward
//! adds those sums up.

use half::bf16;
use tessera_ops::{Queue, bias, layer_norm, rms_norm};

use crate::support::{
    Random, Values, Variant, assert_close, assert_on_gpu, distance, download, on, on_mut, scattered, stream,
    unwritten, upload, view, view_mut,
};

const EPSILON: f64 = 1e-5;

/// One layer's tensors. Gradients are added to what is there.
struct Case<V> {
    rows: usize,
    width: usize,
    x: Values<V>,
    weight: Values<V>,
    dy: Values<V>,
    dx: Values<V>,
    dweight: Values<f32>,
}

impl<V: Variant> Case<V> {
    fn random(random: &mut Random) -> Self {
        let (rows, width) = (random.rows(40), random.extent(600));
        Self {
            rows,
            width,
            x: Values::random(random, rows * width),
            weight: Values::random(random, width),
            dy: Values::random(random, rows * width),
            dx: Values::random(random, rows * width),
            dweight: Values::random(random, width),
        }
    }

    fn shape(&self) -> [usize; 2] {
        [self.rows, self.width]
    }
}

fn rms_norm_case<V: Variant>(queue: &Queue, random: &mut Random) {
    let case = Case::<V>::random(random);
    let (shape, rows, width) = (case.shape(), case.rows, case.width);
    let mut place = |values: &[V]| scattered(queue, random, values);
    let [x, weight, dy] = [&case.x, &case.weight, &case.dy].map(|values| place(&values.rounded));
    let (mut y, mut dx) = (place(&unwritten(rows * width)), place(&case.dx.rounded));
    let mut rms = scattered(queue, random, &unwritten::<f32>(rows));
    let mut dweight = scattered(queue, random, &case.dweight.rounded);
    let (x, weight) = (on::<V>(&x, shape), on::<V>(&weight, [width]));
    let (y_view, rms_view) = (on_mut::<V>(&mut y, shape), on_mut::<f32>(&mut rms, [rows]));
    rms_norm::forward(queue, x, weight, EPSILON, y_view, rms_view).unwrap();
    let (dy, rms_view) = (on::<V>(&dy, shape), on::<f32>(&rms, [rows]));
    let (dx_view, dweight_view) = (on_mut::<V>(&mut dx, shape), on_mut::<f32>(&mut dweight, [width]));
    rms_norm::backward(queue, dy, x, weight, rms_view, dx_view, dweight_view).unwrap();

    let cpu = Queue::cpu();
    let (mut expected_y, mut expected_rms) = (vec![0.0; rows * width], vec![0.0; rows]);
    let (x, weight) = (view(&case.x.exact, shape), view(&case.weight.exact, [width]));
    let (y_view, rms_view) = (view_mut(&mut expected_y, shape), view_mut(&mut expected_rms, [rows]));
    rms_norm::forward(&cpu, x, weight, EPSILON, y_view, rms_view).unwrap();
    let (mut expected_dx, mut expected_dweight) = (case.dx.exact.clone(), case.dweight.exact.clone());
    let (dy, rms_view) = (view(&case.dy.exact, shape), view(&expected_rms, [rows]));
    let (dx_view, dweight_view) =
        (view_mut(&mut expected_dx, shape), view_mut(&mut expected_dweight, [width]));
    rms_norm::backward(&cpu, dy, x, weight, rms_view, dx_view, dweight_view).unwrap();

    assert_on_gpu::<V>(queue, "y", &y, &expected_y);
    assert_on_gpu::<f32>(queue, "inverse rms", &rms, &expected_rms);
    assert_on_gpu::<V>(queue, "dx", &dx, &expected_dx);
    assert_on_gpu::<f32>(queue, "dweight", &dweight, &expected_dweight);
}

fn layer_norm_case<V: Variant>(queue: &Queue, random: &mut Random) {
    let case = Case::<V>::random(random);
    let (shape, rows, width) = (case.shape(), case.rows, case.width);
    let mut place = |values: &[V]| scattered(queue, random, values);
    let [x, weight, dy] = [&case.x, &case.weight, &case.dy].map(|values| place(&values.rounded));
    let (mut y, mut dx) = (place(&unwritten(rows * width)), place(&case.dx.rounded));
    let [mut mean, mut deviation] = [(); 2].map(|()| scattered(queue, random, &unwritten::<f32>(rows)));
    let mut dweight = scattered(queue, random, &case.dweight.rounded);
    let (x, weight) = (on::<V>(&x, shape), on::<V>(&weight, [width]));
    let (mean_view, deviation_view) =
        (on_mut::<f32>(&mut mean, [rows]), on_mut::<f32>(&mut deviation, [rows]));
    layer_norm::forward(queue, x, weight, EPSILON, on_mut::<V>(&mut y, shape), mean_view, deviation_view)
        .unwrap();
    let (mean_view, deviation_view) = (on::<f32>(&mean, [rows]), on::<f32>(&deviation, [rows]));
    let (dy, dx_view) = (on::<V>(&dy, shape), on_mut::<V>(&mut dx, shape));
    let dweight_view = on_mut::<f32>(&mut dweight, [width]);
    layer_norm::backward(queue, dy, x, weight, mean_view, deviation_view, dx_view, dweight_view).unwrap();

    let cpu = Queue::cpu();
    let (mut expected_y, mut expected_mean) = (vec![0.0; rows * width], vec![0.0; rows]);
    let mut expected_deviation = vec![0.0; rows];
    let (x, weight) = (view(&case.x.exact, shape), view(&case.weight.exact, [width]));
    let (y_view, mean_view) = (view_mut(&mut expected_y, shape), view_mut(&mut expected_mean, [rows]));
    let deviation_view = view_mut(&mut expected_deviation, [rows]);
    layer_norm::forward(&cpu, x, weight, EPSILON, y_view, mean_view, deviation_view).unwrap();
    let (mut expected_dx, mut expected_dweight) = (case.dx.exact.clone(), case.dweight.exact.clone());
    let (mean_view, deviation_view) = (view(&expected_mean, [rows]), view(&expected_deviation, [rows]));
    let (dy, dx_view) = (view(&case.dy.exact, shape), view_mut(&mut expected_dx, shape));
    let dweight_view = view_mut(&mut expected_dweight, [width]);
    layer_norm::backward(&cpu, dy, x, weight, mean_view, deviation_view, dx_view, dweight_view).unwrap();

    assert_on_gpu::<V>(queue, "y", &y, &expected_y);
    assert_on_gpu::<f32>(queue, "mean", &mean, &expected_mean);
    assert_on_gpu::<f32>(queue, "inverse deviation", &deviation, &expected_deviation);
    assert_on_gpu::<V>(queue, "dx", &dx, &expected_dx);
    assert_on_gpu::<f32>(queue, "dweight", &dweight, &expected_dweight);
}

fn bias_case<V: Variant>(queue: &Queue, random: &mut Random) {
    let case = Case::<V>::random(random);
    let (shape, width) = (case.shape(), case.width);
    let mut place = |values: &Values<V>| scattered(queue, random, &values.rounded);
    let (bias, mut y, dy) = (place(&case.weight), place(&case.x), place(&case.dy));
    let mut dbias = scattered(queue, random, &case.dweight.rounded);
    bias::forward(queue, on::<V>(&bias, [width]), on_mut::<V>(&mut y, shape)).unwrap();
    bias::backward(queue, on::<V>(&dy, shape), on_mut::<f32>(&mut dbias, [width])).unwrap();

    let cpu = Queue::cpu();
    let (mut expected_y, mut expected_dbias) = (case.x.exact.clone(), case.dweight.exact.clone());
    bias::forward(&cpu, view(&case.weight.exact, [width]), view_mut(&mut expected_y, shape)).unwrap();
    bias::backward(&cpu, view(&case.dy.exact, shape), view_mut(&mut expected_dbias, [width])).unwrap();
    assert_on_gpu::<V>(queue, "y", &y, &expected_y);
    assert_on_gpu::<f32>(queue, "dbias", &dbias, &expected_dbias);
}

fn fuzz(seed: u64, check: fn(&Queue, &mut Random)) {
    let (queue, mut random) = (stream(), Random::new(seed));
    for _ in 0..16 {
        check(&queue, &mut random);
    }
}

#[test]
fn rms_norm_follows_the_cpu() {
    fuzz(1, rms_norm_case::<f32>);
    fuzz(2, rms_norm_case::<bf16>);
}

#[test]
fn layer_norm_follows_the_cpu() {
    fuzz(3, layer_norm_case::<f32>);
    fuzz(4, layer_norm_case::<bf16>);
}

#[test]
fn bias_follows_the_cpu() {
    fuzz(5, bias_case::<f32>);
    fuzz(6, bias_case::<bf16>);
}

/// A mean far larger than the deviation: the mean of squares less the square of the mean would be noise.
#[test]
fn the_variance_of_a_large_mean_does_not_cancel() {
    let (queue, mut random, width) = (stream(), Random::new(7), 512);
    let x = Values::<f32>::of((0..width).map(|_| 1000.0 + random.uniform()).collect::<Vec<_>>());
    let (x_on, weight_on) = (upload(&queue, &x.rounded), upload(&queue, &vec![1.0_f32; width]));
    let mut y = upload(&queue, &unwritten::<f32>(width));
    let [mut mean, mut deviation] = [(); 2].map(|()| upload(&queue, &unwritten::<f32>(1)));
    layer_norm::forward(
        &queue,
        on::<f32>(&x_on, [1, width]),
        on::<f32>(&weight_on, [width]),
        EPSILON,
        on_mut::<f32>(&mut y, [1, width]),
        on_mut::<f32>(&mut mean, [1]),
        on_mut::<f32>(&mut deviation, [1]),
    )
    .unwrap();
    let count = width as f64;
    let exact_mean = x.exact.iter().sum::<f64>() / count;
    let variance = x.exact.iter().map(|x| (x - exact_mean).powi(2)).sum::<f64>() / count;
    let expected: Vec<f64> = x.exact.iter().map(|x| (x - exact_mean) / (variance + EPSILON).sqrt()).collect();
    let distance = distance(&download::<f32>(&queue, &y), &expected);
    // The mean itself is known to 1e-7 of 1000, which is 3e-4 of the deviation.
    assert!(distance < 5e-4, "{distance:e}");
    assert_close("mean", &download::<f32>(&queue, &mean), &[exact_mean]);
}
