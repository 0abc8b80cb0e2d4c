//! The norms, and the bias, whose backward ends theirs.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::{Queue, bias, layer_norm, rms_norm};

use crate::device::{Kernels, Launch, float, input, output, unsigned};
use crate::support::{Values, Variant, assert_close, extent, unwritten, view, view_mut, widened};

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
        let (rows, width) = (extent(random, 9), extent(random, 600));
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

    /// Fewer blocks than rows, so that blocks take several.
    fn blocks(&self) -> usize {
        self.rows.min(4)
    }

    /// `rows` rows of T and one more of fp32 where there are partial sums.
    fn launch(&self, rows: usize, sums: usize) -> Launch {
        let row = |size: usize| (self.width * size).next_multiple_of(16);
        Launch::blocks(self.blocks()).shared(rows * row(size_of::<V>()) + sums * row(size_of::<f32>()))
    }

    /// Adds the blocks' sums to the weight's gradient.
    fn add_partial(&self, partial: &[f32]) -> Vec<f32> {
        let mut dweight = self.dweight.rounded.clone();
        Kernels::load("bias").run(
            "bias_backward_f32",
            column_sums::<f32>(self.width),
            &mut [input(partial), output(&mut dweight), unsigned(self.blocks()), unsigned(self.width)],
        );
        dweight
    }
}

/// Enough blocks for the columns, whether the accesses are wide or not.
fn column_sums<V: Variant>(width: usize) -> Launch {
    let pack = if width.is_multiple_of(16 / size_of::<V>()) { 16 / size_of::<V>() } else { 1 };
    Launch::blocks(width.div_ceil(8 * pack))
}

fn rms_norm_case<V: Variant>(kernels: &mut Kernels, case: &Case<V>) {
    let Case { x, weight, dy, dx, .. } = case;
    let (rows, width) = (unsigned(case.rows), unsigned(case.width));
    let (mut y, mut inverse_rms) = (unwritten::<V>(x.rounded.len()), unwritten::<f32>(case.rows));
    kernels.run(
        &format!("rms_norm_forward_{}", V::SUFFIX),
        case.launch(2, 0),
        &mut [
            input(&x.rounded),
            input(&weight.rounded),
            float(EPSILON),
            output(&mut y),
            output(&mut inverse_rms),
            rows,
            width,
        ],
    );
    let (rows, width) = (unsigned(case.rows), unsigned(case.width));
    let (mut found, mut partial) = (dx.rounded.clone(), unwritten::<f32>(case.blocks() * case.width));
    kernels.run(
        &format!("rms_norm_backward_{}", V::SUFFIX),
        case.launch(3, 1),
        &mut [
            input(&dy.rounded),
            input(&x.rounded),
            input(&weight.rounded),
            input(&inverse_rms),
            output(&mut found),
            output(&mut partial),
            rows,
            width,
        ],
    );
    let dweight = case.add_partial(&partial);

    let queue = Queue::cpu();
    let (mut expected_y, mut expected_rms) = (vec![0.0; y.len()], vec![0.0; case.rows]);
    let (x, weight) = (view(&x.exact, case.shape()), view(&weight.exact, [case.width]));
    let (y_view, rms_view) =
        (view_mut(&mut expected_y, case.shape()), view_mut(&mut expected_rms, [case.rows]));
    rms_norm::forward(&queue, x, weight, EPSILON, y_view, rms_view).unwrap();
    let (mut expected_dx, mut expected_dweight) = (dx.exact.clone(), case.dweight.exact.clone());
    let (dy, rms) = (view(&dy.exact, case.shape()), view(&expected_rms, [case.rows]));
    let (dx_view, dweight_view) =
        (view_mut(&mut expected_dx, case.shape()), view_mut(&mut expected_dweight, [case.width]));
    rms_norm::backward(&queue, dy, x, weight, rms, dx_view, dweight_view).unwrap();

    assert_close("y", &y, &expected_y);
    assert_close("inverse rms", &inverse_rms, &expected_rms);
    assert_close("dx", &found, &expected_dx);
    assert_close("dweight", &dweight, &expected_dweight);
}

fn layer_norm_case<V: Variant>(kernels: &mut Kernels, case: &Case<V>) {
    let Case { x, weight, dy, dx, .. } = case;
    let mut y = unwritten::<V>(x.rounded.len());
    let (mut means, mut deviations) = (unwritten::<f32>(case.rows), unwritten::<f32>(case.rows));
    let (rows, width) = (unsigned(case.rows), unsigned(case.width));
    kernels.run(
        &format!("layer_norm_forward_{}", V::SUFFIX),
        case.launch(2, 0),
        &mut [
            input(&x.rounded),
            input(&weight.rounded),
            float(EPSILON),
            output(&mut y),
            output(&mut means),
            output(&mut deviations),
            rows,
            width,
        ],
    );
    let (rows, width) = (unsigned(case.rows), unsigned(case.width));
    let (mut found, mut partial) = (dx.rounded.clone(), unwritten::<f32>(case.blocks() * case.width));
    kernels.run(
        &format!("layer_norm_backward_{}", V::SUFFIX),
        case.launch(3, 1),
        &mut [
            input(&dy.rounded),
            input(&x.rounded),
            input(&weight.rounded),
            input(&means),
            input(&deviations),
            output(&mut found),
            output(&mut partial),
            rows,
            width,
        ],
    );
    let dweight = case.add_partial(&partial);

    let queue = Queue::cpu();
    let mut expected_y = vec![0.0; y.len()];
    let (mut expected_means, mut expected_deviations) = (vec![0.0; case.rows], vec![0.0; case.rows]);
    let (x, weight) = (view(&x.exact, case.shape()), view(&weight.exact, [case.width]));
    layer_norm::forward(
        &queue,
        x,
        weight,
        EPSILON,
        view_mut(&mut expected_y, case.shape()),
        view_mut(&mut expected_means, [case.rows]),
        view_mut(&mut expected_deviations, [case.rows]),
    )
    .unwrap();
    let (mut expected_dx, mut expected_dweight) = (dx.exact.clone(), case.dweight.exact.clone());
    layer_norm::backward(
        &queue,
        view(&dy.exact, case.shape()),
        x,
        weight,
        view(&expected_means, [case.rows]),
        view(&expected_deviations, [case.rows]),
        view_mut(&mut expected_dx, case.shape()),
        view_mut(&mut expected_dweight, [case.width]),
    )
    .unwrap();

    assert_close("y", &y, &expected_y);
    assert_close("mean", &means, &expected_means);
    assert_close("dx", &found, &expected_dx);
    assert_close("dweight", &dweight, &expected_dweight);
}

fn bias_case<V: Variant>(kernels: &mut Kernels, case: &Case<V>) {
    let mut y = case.x.rounded.clone();
    kernels.run(
        &format!("bias_forward_{}", V::SUFFIX),
        Launch::blocks(case.rows),
        &mut [input(&case.weight.rounded), output(&mut y), unsigned(case.width)],
    );
    let mut dbias = case.dweight.rounded.clone();
    kernels.run(
        &format!("bias_backward_{}", V::SUFFIX),
        column_sums::<V>(case.width),
        &mut [input(&case.dy.rounded), output(&mut dbias), unsigned(case.rows), unsigned(case.width)],
    );

    let queue = Queue::cpu();
    let mut expected_y = case.x.exact.clone();
    let bias = view(&case.weight.exact, [case.width]);
    bias::forward(&queue, bias, view_mut(&mut expected_y, case.shape())).unwrap();
    let mut expected = case.dweight.exact.clone();
    bias::backward(&queue, view(&case.dy.exact, case.shape()), view_mut(&mut expected, [case.width]))
        .unwrap();
    assert_close("y", &y, &expected_y);
    assert_close("dbias", &dbias, &expected);
}

fn fuzz<V: Variant>(file: &str, seed: u64, check: fn(&mut Kernels, &Case<V>)) {
    let (mut kernels, mut random) = (Kernels::load(file), Random::new(seed));
    for _ in 0..12 {
        check(&mut kernels, &Case::random(&mut random));
    }
}

#[test]
fn rms_norm_follows_the_cpu() {
    fuzz::<f32>("rms_norm", 1, rms_norm_case);
    fuzz::<bf16>("rms_norm", 2, rms_norm_case);
}

#[test]
fn layer_norm_follows_the_cpu() {
    fuzz::<f32>("layer_norm", 3, layer_norm_case);
    fuzz::<bf16>("layer_norm", 4, layer_norm_case);
}

#[test]
pub fn bias_follows_the_cpu() {
    fuzz::<f32>("bias", 5, bias_case);
    fuzz::<bf16>("bias", 6, bias_case);
}

/// A mean far larger than the deviation: the mean of squares less the square of the mean would be noise.
#[test]
fn the_variance_of_a_large_mean_does_not_cancel() {
    let (mut random, width) = (Random::new(7), 512);
    let x = Values::<f32>::of((0..width).map(|_| 1000.0 + random.uniform()).collect::<Vec<_>>());
    let weight = Values::<f32>::of(vec![1.0; width]);
    let (mut y, mut mean, mut deviation) =
        (unwritten::<f32>(width), unwritten::<f32>(1), unwritten::<f32>(1));
    Kernels::load("layer_norm").run(
        "layer_norm_forward_f32",
        Launch::blocks(1).shared(2 * width * size_of::<f32>()),
        &mut [
            input(&x.rounded),
            input(&weight.rounded),
            float(EPSILON),
            output(&mut y),
            output(&mut mean),
            output(&mut deviation),
            unsigned(1),
            unsigned(width),
        ],
    );
    let count = width as f64;
    let exact_mean = x.exact.iter().sum::<f64>() / count;
    let variance = x.exact.iter().map(|x| (x - exact_mean).powi(2)).sum::<f64>() / count;
    let expected: Vec<f64> = x.exact.iter().map(|x| (x - exact_mean) / (variance + EPSILON).sqrt()).collect();
    let distance = crate::support::distance(&y, &expected);
    // The mean itself is known to 1e-7 of 1000, which is 3e-4 of the deviation.
    assert!(distance < 5e-4, "{distance:e}");
    assert_close("mean", &mean, &[exact_mean]);
    assert!(widened(&deviation)[0].is_finite());
}
