//! Operators whose elements do not depend on one another, but for a pair or a row's angles.

use half::bf16;
use tessera_ops::{Buffer, DType, Queue, cast, clamp, fill, rope, swiglu};

use crate::support::{
    Random, Values, Variant, assert_on_gpu, download, download_last, on, on_mut, scattered, stream,
    unwritten, upload, view, view_mut,
};

fn fuzz(seed: u64, check: fn(&Queue, &mut Random)) {
    let (queue, mut random) = (stream(), Random::new(seed));
    for _ in 0..12 {
        check(&queue, &mut random);
    }
}

#[test]
fn what_is_copied_there_and_back_is_the_same() {
    let (queue, values) = (stream(), (0..1000_u32).collect::<Vec<_>>());
    let there = upload(&queue, &values);
    let mut beside = Buffer::on(&queue, there.len()).unwrap();
    assert!(download::<u32>(&queue, &beside).iter().all(|&value| value == 0));
    fill::copy(&queue, there.view(DType::U32), beside.view_mut(DType::U32)).unwrap();
    assert_eq!(download::<u32>(&queue, &beside), values);
    fill::zero(&queue, beside.view_mut(DType::U32).range(10, 20).unwrap()).unwrap();
    let zeros = download::<u32>(&queue, &beside).iter().filter(|&&value| value == 0).count();
    assert_eq!(zeros, 21);
}

fn sum_case<V: Variant>(queue: &Queue, random: &mut Random) {
    let length = random.rows(5003);
    let (from, to) = (Values::<V>::random(random, length), Values::<V>::random(random, length));
    let (from_on, mut to_on) =
        (scattered(queue, random, &from.rounded), scattered(queue, random, &to.rounded));
    fill::add(queue, on::<V>(&from_on, [length]), on_mut::<V>(&mut to_on, [length])).unwrap();
    let expected: Vec<V> = from.exact.iter().zip(&to.exact).map(|(a, b)| V::round(a + b)).collect();
    assert_eq!(download_last::<V>(queue, &to_on, length), expected);
}

fn widening_sum_case(queue: &Queue, random: &mut Random) {
    let length = random.rows(5003);
    let (from, to) = (Values::<bf16>::random(random, length), Values::<f32>::random(random, length));
    let (from_on, mut to_on) =
        (scattered(queue, random, &from.rounded), scattered(queue, random, &to.rounded));
    fill::add(queue, on::<bf16>(&from_on, [length]), on_mut::<f32>(&mut to_on, [length])).unwrap();
    let expected: Vec<f32> = from.rounded.iter().zip(&to.rounded).map(|(a, b)| a.to_f32() + b).collect();
    assert_eq!(download_last::<f32>(queue, &to_on, length), expected);
    let (mut sums, values) = (to.rounded.clone(), view(&from.rounded, [length]));
    fill::add(&Queue::cpu(), values, view_mut(&mut sums, [length])).unwrap();
    assert_eq!(sums, expected);
}

#[test]
fn sums_of_bf16_in_fp32_are_exact() {
    fuzz(12, widening_sum_case);
}

#[test]
fn sums_are_rounded_once() {
    fuzz(1, sum_case::<f32>);
    fuzz(2, sum_case::<bf16>);
}

fn cast_case(queue: &Queue, random: &mut Random) {
    let count = random.rows(3000);
    let mut values = Values::<f32>::random(random, count).rounded;
    // Ties go to the even neighbour; the largest finite fp32 becomes infinite.
    values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, f32::MIN_POSITIVE, -0.0, f32::INFINITY]);
    let shape = [values.len()];
    let (wide, mut narrow, mut again) = (
        scattered(queue, random, &values),
        scattered(queue, random, &unwritten::<bf16>(values.len())),
        scattered(queue, random, &unwritten::<f32>(values.len())),
    );
    cast::forward(queue, on::<f32>(&wide, shape), on_mut::<bf16>(&mut narrow, shape)).unwrap();
    cast::forward(queue, on::<bf16>(&narrow, shape), on_mut::<f32>(&mut again, shape)).unwrap();
    let expected: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
    assert_eq!(download_last::<bf16>(queue, &narrow, values.len()), expected);
    let widened: Vec<f32> = expected.iter().map(|&value| value.to_f32()).collect();
    assert_eq!(download_last::<f32>(queue, &again, values.len()), widened);
}

#[test]
fn casts_round_to_the_nearest_and_widen_exactly() {
    fuzz(3, cast_case);
}

fn swiglu_case<V: Variant>(queue: &Queue, random: &mut Random) {
    let (rows, width) = (random.rows(5), random.extent(700));
    let (shape, of_both) = ([rows, width], [rows, 2 * width]);
    let gate_up =
        Values::<V>::of(Values::<V>::random(random, rows * 2 * width).exact.iter().map(|x| x * 9.0));
    let da = Values::<V>::random(random, rows * width);
    let mut place = |values: &[V]| scattered(queue, random, values);
    let (mut gate_up_on, da_on) = (place(&gate_up.rounded), place(&da.rounded));
    let mut a_on = place(&unwritten(rows * width));
    swiglu::forward(queue, on::<V>(&gate_up_on, of_both), on_mut::<V>(&mut a_on, shape)).unwrap();
    swiglu::backward(queue, on::<V>(&da_on, shape), on_mut::<V>(&mut gate_up_on, of_both)).unwrap();

    let (cpu, mut a, mut gradient) = (Queue::cpu(), vec![0.0; rows * width], gate_up.exact.clone());
    swiglu::forward(&cpu, view(&gate_up.exact, of_both), view_mut(&mut a, shape)).unwrap();
    swiglu::backward(&cpu, view(&da.exact, shape), view_mut(&mut gradient, of_both)).unwrap();
    assert_on_gpu::<V>(queue, "a", &a_on, &a);
    assert_on_gpu::<V>(queue, "gradient", &gate_up_on, &gradient);
}

#[test]
fn swiglu_follows_the_cpu() {
    fuzz(4, swiglu_case::<f32>);
    fuzz(5, swiglu_case::<bf16>);
}

fn rope_case<V: Variant>(queue: &Queue, random: &mut Random) {
    let (rows, heads, head_size) = (random.rows(5), random.extent(6), 2 * random.extent(64));
    let (width, known) = ((heads + random.below(3)) * head_size, 50);
    let (shape, table_shape) = ([rows, width], [known, head_size]);
    let x = Values::<V>::random(random, rows * width);
    let positions = random.indices(rows, known);
    let table = Values::<f32>::random(random, known * head_size);
    let (positions_on, table_on) =
        (scattered(queue, random, &positions), scattered(queue, random, &table.rounded));
    for turn in [rope::forward, rope::backward] {
        let mut x_on = scattered(queue, random, &x.rounded);
        let (x_view, positions_view) = (on_mut::<V>(&mut x_on, shape), on::<u32>(&positions_on, [rows]));
        turn(queue, x_view, heads, positions_view, on::<f32>(&table_on, table_shape)).unwrap();
        let mut expected = x.exact.clone();
        let (x_view, positions_view) = (view_mut(&mut expected, shape), view(&positions, [rows]));
        turn(&Queue::cpu(), x_view, heads, positions_view, view(&table.exact, table_shape)).unwrap();
        assert_on_gpu::<V>(queue, "x", &x_on, &expected);
    }
}

#[test]
fn rope_follows_the_cpu() {
    fuzz(6, rope_case::<f32>);
    fuzz(7, rope_case::<bf16>);
}

fn clamp_case<V: Variant>(queue: &Queue, random: &mut Random) {
    let (rows, width, bound) = (random.rows(5), random.extent(700), 0.5);
    let (words, shape) = (clamp::words(width), [rows, width]);
    let [mut x, dx] = [(); 2].map(|()| Values::<V>::random(random, rows * width));
    if rows > 0 {
        // A value on the bound is inside.
        (x.rounded[0], x.exact[0]) = (V::round(bound), bound);
    }
    let mut place = |values: &Values<V>| scattered(queue, random, &values.rounded);
    let (mut x_on, mut dx_on) = (place(&x), place(&dx));
    let mut inside_on = scattered(queue, random, &vec![u32::MAX; rows * words]);
    let inside_view = on_mut::<u32>(&mut inside_on, [rows, words]);
    clamp::forward(queue, on_mut::<V>(&mut x_on, shape), bound, inside_view).unwrap();
    let inside_view = on::<u32>(&inside_on, [rows, words]);
    clamp::backward(queue, on_mut::<V>(&mut dx_on, shape), inside_view).unwrap();

    let (cpu, mut x, mut dx, mut inside) = (Queue::cpu(), x.exact, dx.exact, vec![0_u32; rows * words]);
    let inside_view = view_mut(&mut inside, [rows, words]);
    clamp::forward(&cpu, view_mut(&mut x, shape), bound, inside_view).unwrap();
    clamp::backward(&cpu, view_mut(&mut dx, shape), view(&inside, [rows, words])).unwrap();
    assert_on_gpu::<V>(queue, "x", &x_on, &x);
    assert_eq!(download_last::<u32>(queue, &inside_on, rows * words), inside);
    assert_on_gpu::<V>(queue, "dx", &dx_on, &dx);
}

#[test]
fn clamp_follows_the_cpu() {
    fuzz(8, clamp_case::<f32>);
    fuzz(9, clamp_case::<bf16>);
}

#[test]
fn a_clamped_nan_stays() {
    let queue = stream();
    let (mut x, mut inside) = (upload(&queue, &[f32::NAN, 9.0, -9.0, 0.25]), upload(&queue, &[u32::MAX]));
    let inside_view = on_mut::<u32>(&mut inside, [1, 1]);
    clamp::forward(&queue, on_mut::<f32>(&mut x, [1, 4]), 0.5, inside_view).unwrap();
    let x = download::<f32>(&queue, &x);
    assert!(x[0].is_nan());
    assert_eq!((&x[1..], download(&queue, &inside)), (&[0.5, -0.5, 0.25][..], vec![0b1000_u32]));
}
