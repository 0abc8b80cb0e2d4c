//! Rows that are picked, put back, and added up.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::{Queue, embedding};

use crate::device::{Kernels, Launch, input, output, unsigned, with_seed};
use crate::support::{Values, Variant, assert_close, extent, indices, unwritten, view, view_mut};

fn rows_move<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("rows");
    for _ in 0..8 {
        let (rows, width) = (extent(random, 9), extent(random, 300));
        let x = Values::<V>::random(random, rows * width).rounded;
        // Each row at most once, as a scatter needs it.
        let mut index: Vec<u32> = (0..rows as u32).collect();
        random.shuffle(&mut index);
        index.truncate(rows.div_ceil(2));
        let mut picked = unwritten::<V>(index.len() * width);
        kernels.run(
            &format!("rows_gather_{}", V::SUFFIX),
            Launch::blocks(index.len()),
            &mut [input(&x), input(&index), output(&mut picked), unsigned(width)],
        );
        for (picked, &row) in picked.chunks_exact(width).zip(&index) {
            assert_eq!(picked, &x[row as usize * width..][..width]);
        }
        let mut put_back = vec![V::round(0.0); x.len()];
        kernels.run(
            &format!("rows_scatter_{}", V::SUFFIX),
            Launch::blocks(index.len()),
            &mut [input(&picked), input(&index), output(&mut put_back), unsigned(width)],
        );
        for (row, put_back) in put_back.chunks_exact(width).enumerate() {
            let expected = if index.contains(&(row as u32)) {
                &x[row * width..][..width]
            } else {
                &vec![V::round(0.0); width]
            };
            assert_eq!(put_back, expected);
        }
    }
}

#[test]
pub fn rows_are_picked_and_put_back() {
    rows_move::<f32>(&mut Random::new(1));
    rows_move::<bf16>(&mut Random::new(2));
}

/// Sorts the tokens and adds their rows of `dx` to `dweight`.
fn backward<V: Variant>(kernels: &mut Kernels, tokens: &[u32], dx: &[V], dweight: &[f32]) -> Vec<f32> {
    let (count, width) = (tokens.len(), dx.len() / tokens.len());
    let mut order = vec![u32::MAX; count];
    kernels.run(
        "embedding_sort",
        Launch::blocks(count.div_ceil(256)),
        &mut [input(tokens), output(&mut order), unsigned(count)],
    );
    let mut sorted: Vec<u32> = (0..count as u32).collect();
    sorted.sort_by_key(|&position| tokens[position as usize]);
    assert_eq!(order, sorted, "a stable order");
    let mut found = dweight.to_vec();
    kernels.run(
        &format!("embedding_backward_{}", V::SUFFIX),
        Launch::blocks(count),
        &mut [input(tokens), input(&order), input(dx), output(&mut found), unsigned(count), unsigned(width)],
    );
    found
}

fn embedding_follows<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("embedding");
    for vocabulary in [1, 3, 40, 1000] {
        let (count, width) = (extent(random, 300), extent(random, 90));
        let tokens = indices(random, count, vocabulary);
        let dx = Values::<V>::random(random, count * width);
        let dweight = Values::<f32>::random(random, vocabulary * width);
        let found = backward(&mut kernels, &tokens, &dx.rounded, &dweight.rounded);
        let mut expected = dweight.exact.clone();
        let (tokens, dx) = (view(&tokens, [count]), view(&dx.exact, [count, width]));
        embedding::backward(&Queue::cpu(), tokens, dx, view_mut(&mut expected, [vocabulary, width])).unwrap();
        assert_close("dweight", &found, &expected);
    }
}

#[test]
fn embedding_gradients_follow_the_cpu() {
    embedding_follows::<f32>(&mut Random::new(3));
    embedding_follows::<bf16>(&mut Random::new(4));
}

/// The order in which blocks and warps come moves no bit of a token's sum.
#[test]
fn embedding_gradients_are_deterministic() {
    let (count, width, vocabulary) = (600, 40, 5);
    let mut random = Random::new(5);
    let tokens = indices(&mut random, count, vocabulary);
    let dx = Values::<f32>::random(&mut random, count * width).rounded;
    let gradient = |seed| {
        with_seed(seed, || {
            backward(&mut Kernels::load("embedding"), &tokens, &dx, &vec![0.0; vocabulary * width])
        })
    };
    for seed in 1..5 {
        assert!(gradient(seed) == gradient(0), "seed {seed}");
    }
}
