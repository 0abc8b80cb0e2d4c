//! Kernels whose elements do not depend on one another, but for a pair or a row's angles.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::{Queue, clamp, rope, swiglu};

use crate::device::{Kernels, Launch, float, input, long, output, shifted, unsigned};
use crate::support::{Values, Variant, assert_close, below, extent, indices, unwritten, view, view_mut};

fn swiglu_follows<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("swiglu");
    for _ in 0..10 {
        let (rows, width) = (extent(random, 5), extent(random, 700));
        let gate_up =
            Values::<V>::of(Values::<V>::random(random, rows * 2 * width).exact.iter().map(|x| x * 9.0));
        let da = Values::<V>::random(random, rows * width);
        let mut a = unwritten::<V>(rows * width);
        kernels.run(
            &format!("swiglu_forward_{}", V::SUFFIX),
            Launch::blocks(rows),
            &mut [input(&gate_up.rounded), output(&mut a), unsigned(width)],
        );
        let mut gradient = gate_up.rounded.clone();
        kernels.run(
            &format!("swiglu_backward_{}", V::SUFFIX),
            Launch::blocks(rows),
            &mut [input(&da.rounded), output(&mut gradient), unsigned(width)],
        );
        let (queue, shape) = (Queue::cpu(), [rows, 2 * width]);
        let (mut expected, mut expected_gradient) = (vec![0.0; rows * width], gate_up.exact.clone());
        swiglu::forward(&queue, view(&gate_up.exact, shape), view_mut(&mut expected, [rows, width])).unwrap();
        let da = view(&da.exact, [rows, width]);
        swiglu::backward(&queue, da, view_mut(&mut expected_gradient, shape)).unwrap();
        assert_close("a", &a, &expected);
        assert_close("gradient", &gradient, &expected_gradient);
    }
}

#[test]
fn swiglu_follows_the_cpu() {
    swiglu_follows::<f32>(&mut Random::new(1));
    swiglu_follows::<bf16>(&mut Random::new(2));
}

fn rope_follows<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("rope");
    for _ in 0..10 {
        let (rows, heads, head_size) = (extent(random, 5), extent(random, 6), 2 * extent(random, 64));
        let (width, known) = ((heads + below(random, 3)) * head_size, 50);
        let x = Values::<V>::random(random, rows * width);
        let positions = indices(random, rows, known);
        let table = Values::<f32>::random(random, known * head_size);
        for direction in [1.0, -1.0] {
            let mut found = x.rounded.clone();
            kernels.run(
                &format!("rope_{}", V::SUFFIX),
                Launch::blocks(rows).shared(head_size * size_of::<f32>()),
                &mut [
                    output(&mut found),
                    unsigned(heads),
                    input(&positions),
                    input(&table.rounded),
                    unsigned(width),
                    unsigned(head_size),
                    float(direction),
                ],
            );
            let mut expected = x.exact.clone();
            let turn = if direction > 0.0 { rope::forward } else { rope::backward };
            let table = view(&table.exact, [known, head_size]);
            turn(
                &Queue::cpu(),
                view_mut(&mut expected, [rows, width]),
                heads,
                view(&positions, [rows]),
                table,
            )
            .unwrap();
            assert_close("x", &found, &expected);
        }
    }
}

#[test]
pub fn rope_follows_the_cpu() {
    rope_follows::<f32>(&mut Random::new(3));
    rope_follows::<bf16>(&mut Random::new(4));
}

fn clamp_follows<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("clamp");
    for _ in 0..10 {
        let (rows, width) = (extent(random, 5), extent(random, 700));
        let (bound, words) = (0.5, clamp::words(width));
        let mut x = Values::<V>::random(random, rows * width);
        // A value on the bound is inside; a NaN is not, and stays.
        (x.rounded[0], x.exact[0]) = (V::round(bound), bound);
        let dx = Values::<V>::random(random, rows * width);
        let (mut found, mut inside) = (x.rounded.clone(), vec![u32::MAX; rows * words]);
        kernels.run(
            &format!("clamp_forward_{}", V::SUFFIX),
            Launch::blocks(rows),
            &mut [output(&mut found), float(bound), output(&mut inside), unsigned(width)],
        );
        let mut gradient = dx.rounded.clone();
        kernels.run(
            &format!("clamp_backward_{}", V::SUFFIX),
            Launch::blocks(rows),
            &mut [output(&mut gradient), input(&inside), unsigned(width)],
        );
        let (queue, shape) = (Queue::cpu(), [rows, width]);
        let (mut expected, mut expected_inside) = (x.exact.clone(), vec![0_u32; rows * words]);
        let mut expected_gradient = dx.exact.clone();
        let words_view = view_mut(&mut expected_inside, [rows, words]);
        clamp::forward(&queue, view_mut(&mut expected, shape), bound, words_view).unwrap();
        let words_view = view(&expected_inside, [rows, words]);
        clamp::backward(&queue, view_mut(&mut expected_gradient, shape), words_view).unwrap();
        assert_close("x", &found, &expected);
        assert_eq!(inside, expected_inside);
        assert_close("dx", &gradient, &expected_gradient);
    }
}

#[test]
fn clamp_follows_the_cpu() {
    clamp_follows::<f32>(&mut Random::new(5));
    clamp_follows::<bf16>(&mut Random::new(6));
}

#[test]
fn a_clamped_nan_stays() {
    let (mut x, mut inside) = (vec![f32::NAN, 9.0, -9.0, 0.25], vec![u32::MAX]);
    let arguments = &mut [output(&mut x), float(0.5), output(&mut inside), unsigned(4)];
    Kernels::load("clamp").run("clamp_forward_f32", Launch::blocks(1), arguments);
    assert!(x[0].is_nan());
    assert_eq!((&x[1..], inside), (&[0.5, -0.5, 0.25][..], vec![0b1000]));
}

fn sums_follow<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("fill");
    for length in [1, 7, 8, 255, 4096, 5003] {
        let (from, to) = (Values::<V>::random(random, length), Values::<V>::random(random, length));
        let mut found = to.rounded.clone();
        kernels.run(
            &format!("fill_add_{}", V::SUFFIX),
            Launch::blocks(3),
            &mut [input(&from.rounded), output(&mut found), long(length)],
        );
        let expected: Vec<V> = from.exact.iter().zip(&to.exact).map(|(a, b)| V::round(a + b)).collect();
        assert_eq!(found, expected);
        // A view may begin anywhere: no wide access then.
        found.copy_from_slice(&to.rounded);
        kernels.run(
            &format!("fill_add_{}", V::SUFFIX),
            Launch::blocks(3),
            &mut [shifted(&from.rounded), output(&mut found), long(length)],
        );
        assert_eq!(found, expected);
    }
}

#[test]
fn sums_are_rounded_once() {
    sums_follow::<f32>(&mut Random::new(7));
    sums_follow::<bf16>(&mut Random::new(8));
}

#[test]
fn casts_round_to_the_nearest_and_widen_exactly() {
    let mut kernels = Kernels::load("cast");
    let mut values = Values::<f32>::random(&mut Random::new(9), 3001).rounded;
    // Ties go to the even neighbour; the largest finite fp32 becomes infinite.
    values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, f32::MIN_POSITIVE, -0.0, f32::INFINITY]);
    let mut narrow = unwritten::<bf16>(values.len());
    kernels.run(
        "cast_f32_bf16",
        Launch::blocks(2),
        &mut [input(&values), output(&mut narrow), long(values.len())],
    );
    assert_eq!(narrow, values.iter().map(|&value| bf16::from_f32(value)).collect::<Vec<_>>());
    let mut wide = unwritten::<f32>(values.len());
    kernels.run(
        "cast_bf16_f32",
        Launch::blocks(2),
        &mut [input(&narrow), output(&mut wide), long(values.len())],
    );
    assert_eq!(wide, narrow.iter().map(|value| value.to_f32()).collect::<Vec<_>>());
}
