//! Rows that are picked, put back, and added up.

use half::bf16;
use tessera_ops::{Queue, embedding, rows};

use crate::support::{
    Random, Values, Variant, assert_on_gpu, download_last, on, on_mut, scattered, stream, unwritten, view,
    view_mut,
};

/// The first `count` of the numbers below `bound`, shuffled.
fn different(random: &mut Random, count: usize, bound: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..bound as u32).collect();
    for place in (1..bound).rev() {
        all.swap(place, random.below(place + 1));
    }
    all.truncate(count);
    all
}

fn rows_move<V: Variant>(queue: &Queue, random: &mut Random) {
    let (all, width) = (random.extent(9), random.extent(300));
    let count = random.rows(all);
    let index = different(random, count, all);
    let (x, before) = (Values::<V>::random(random, all * width), Values::<V>::random(random, all * width));
    let mut place = |values: &[V]| scattered(queue, random, values);
    let (x_on, mut picked, mut put_back) =
        (place(&x.rounded), place(&unwritten(count * width)), place(&before.rounded));
    let index_on = scattered(queue, random, &index);
    let (shape, few, chosen) = ([all, width], [count, width], on::<u32>(&index_on, [count]));
    rows::gather(queue, on::<V>(&x_on, shape), chosen, on_mut::<V>(&mut picked, few)).unwrap();
    rows::scatter(queue, on::<V>(&picked, few), chosen, on_mut::<V>(&mut put_back, shape)).unwrap();

    let row = |of: &[V], row: usize| of[row * width..][..width].to_vec();
    let expected: Vec<V> = index.iter().flat_map(|&index| row(&x.rounded, index as usize)).collect();
    assert_eq!(download_last::<V>(queue, &picked, count * width), expected);
    let from = |place: usize| if index.contains(&(place as u32)) { &x } else { &before };
    let expected: Vec<V> = (0..all).flat_map(|place| row(&from(place).rounded, place)).collect();
    assert_eq!(download_last::<V>(queue, &put_back, all * width), expected);
}

#[test]
fn rows_are_picked_and_put_back() {
    let (queue, mut random) = (stream(), Random::new(1));
    for _ in 0..10 {
        rows_move::<f32>(&queue, &mut random);
        rows_move::<bf16>(&queue, &mut random);
    }
}

fn embedding_case<V: Variant>(queue: &Queue, random: &mut Random, vocabulary: usize) {
    let (count, width) = (random.rows(600), random.extent(90));
    let tokens = random.indices(count, vocabulary);
    let [weight, dx] = [vocabulary, count].map(|rows| Values::<V>::random(random, rows * width));
    let dweight = Values::<f32>::random(random, vocabulary * width);
    let tokens_on = scattered(queue, random, &tokens);
    let mut place = |values: &[V]| scattered(queue, random, values);
    let (weight_on, dx_on, mut x_on) =
        (place(&weight.rounded), place(&dx.rounded), place(&unwritten(count * width)));
    let mut dweight_on = scattered(queue, random, &dweight.rounded);
    let (chosen, table, shape) = (on::<u32>(&tokens_on, [count]), [vocabulary, width], [count, width]);
    let x_view = on_mut::<V>(&mut x_on, shape);
    embedding::forward(queue, chosen, on::<V>(&weight_on, table), x_view).unwrap();
    let dweight_view = on_mut::<f32>(&mut dweight_on, table);
    embedding::backward(queue, chosen, on::<V>(&dx_on, shape), dweight_view).unwrap();

    let (cpu, tokens) = (Queue::cpu(), view(&tokens, [count]));
    let (mut x, mut dweight) = (vec![0.0; count * width], dweight.exact);
    embedding::forward(&cpu, tokens, view(&weight.exact, table), view_mut(&mut x, shape)).unwrap();
    embedding::backward(&cpu, tokens, view(&dx.exact, shape), view_mut(&mut dweight, table)).unwrap();
    assert_on_gpu::<V>(queue, "x", &x_on, &x);
    assert_on_gpu::<f32>(queue, "dweight", &dweight_on, &dweight);
}

#[test]
fn embedding_follows_the_cpu() {
    let (queue, mut random) = (stream(), Random::new(2));
    for vocabulary in [1, 3, 40, 1000, 1000] {
        embedding_case::<f32>(&queue, &mut random, vocabulary);
        embedding_case::<bf16>(&queue, &mut random, vocabulary);
    }
}

/// A token's rows are added one by one in their order, as on the CPU: whatever order blocks and warps come in, not a bit
/// differs.
#[test]
fn sums_of_a_tokens_rows_have_one_order() {
    let (queue, mut random) = (stream(), Random::new(3));
    let (count, width, vocabulary) = (600, 40, 5);
    let tokens = random.indices(count, vocabulary);
    let dx = Values::<f32>::random(&mut random, count * width).rounded;
    let (tokens_on, dx_on) = (scattered(&queue, &mut random, &tokens), scattered(&queue, &mut random, &dx));
    let mut expected = vec![0.0_f32; vocabulary * width];
    let dweight = view_mut(&mut expected, [vocabulary, width]);
    embedding::backward(&Queue::cpu(), view(&tokens, [count]), view(&dx, [count, width]), dweight).unwrap();
    for _ in 0..4 {
        let mut found = scattered(&queue, &mut random, &vec![0.0_f32; vocabulary * width]);
        let dweight = on_mut::<f32>(&mut found, [vocabulary, width]);
        let (tokens, dx) = (on::<u32>(&tokens_on, [count]), on::<f32>(&dx_on, [count, width]));
        embedding::backward(&queue, tokens, dx, dweight).unwrap();
        assert_eq!(download_last::<f32>(&queue, &found, vocabulary * width), expected);
    }
}
