//! Token by token over a cache: the same as the whole sequence at once.

use tessera_ops::attention::{self, Heads};
use tessera_ops::{Float, Queue};

use crate::attention::{Layer, heads};
use crate::support::{Seeded, assert_close, scaled, unwritten, view, view_mut};

/// The output of the last `steps` tokens of each sequence, decoded after a cache of what is before them.
fn decoded<T: Float>(layer: &Layer, qkv: &[T], steps: usize, capacity: usize) -> Vec<Vec<T>> {
    let heads = layer.heads;
    let (width, cached_width) = (heads.row_width(), heads.row_width() - heads.output_width());
    let sequences = layer.documents.len();
    let row = |sequence: usize, token: usize| {
        &qkv[(layer.cu_seqlens()[sequence] as usize + token) * width..][..width]
    };
    // What is not a key or value yet must not be read: it is NaN.
    let mut cache = unwritten::<T>(sequences * capacity * cached_width);
    let prompts = Layer { heads, documents: layer.documents.iter().map(|&length| length - steps).collect() };
    let prompt_rows: Vec<T> = prompts
        .documents
        .iter()
        .enumerate()
        .flat_map(|(sequence, &length)| (0..length).flat_map(move |token| row(sequence, token).to_vec()))
        .collect();
    let (cu_seqlens, cache_shape) = (prompts.cu_seqlens(), [sequences, capacity, cached_width]);
    attention::fill_cache(
        &Queue::cpu(),
        view(&prompt_rows, [prompts.rows(), width]),
        view(&cu_seqlens, [cu_seqlens.len()]),
        heads,
        view_mut(&mut cache, cache_shape),
    )
    .unwrap();
    let mut outputs = vec![Vec::new(); sequences];
    for step in 0..steps {
        let lengths: Vec<u32> =
            layer.documents.iter().map(|&length| (length - steps + step) as u32).collect();
        let rows: Vec<T> = lengths
            .iter()
            .enumerate()
            .flat_map(|(sequence, &length)| row(sequence, length as usize).to_vec())
            .collect();
        let mut output = unwritten::<T>(sequences * heads.output_width());
        attention::decode(
            &Queue::cpu(),
            view(&rows, [sequences, width]),
            view_mut(&mut cache, cache_shape),
            view(&lengths, [sequences]),
            heads,
            view_mut(&mut output, [sequences, heads.output_width()]),
        )
        .unwrap();
        for (collected, output) in outputs.iter_mut().zip(output.chunks_exact(heads.output_width())) {
            collected.extend_from_slice(output);
        }
    }
    outputs
}

fn decoding_is_the_forward<T: Float>(heads: Heads, documents: Vec<usize>, steps: usize, tolerance: f64) {
    let layer = Layer { heads, documents };
    let qkv = Seeded::new(1).values::<T>(layer.rows() * heads.row_width());
    compare(&layer, &qkv, steps, tolerance);
}

fn compare<T: Float>(layer: &Layer, qkv: &[T], steps: usize, tolerance: f64) {
    let heads = layer.heads;
    let output = layer.forward(qkv).output;
    let capacity = layer.documents.iter().max().unwrap() + 3;
    let width = heads.output_width();
    for (sequence, decoded) in decoded(layer, qkv, steps, capacity).iter().enumerate() {
        let end = layer.cu_seqlens()[sequence + 1] as usize;
        let what = format!("{heads:?}, sequence {sequence}");
        assert_close(&what, decoded, &output[(end - steps) * width..end * width], tolerance);
    }
}

#[test]
fn decoding_from_nothing_is_the_forward() {
    for window in [None, Some(1), Some(7)] {
        decoding_is_the_forward::<f64>(heads(4, 2, 8, window), vec![40, 40], 40, 1e-14);
        decoding_is_the_forward::<f32>(heads(3, 1, 5, window), vec![40], 40, 1e-6);
    }
}

#[test]
fn decoding_after_long_prompts_is_the_forward() {
    for window in [None, Some(3), Some(128), Some(1000)] {
        decoding_is_the_forward::<f64>(heads(4, 2, 16, window), vec![3, 300, 129, 131, 57], 3, 1e-14);
        decoding_is_the_forward::<f32>(heads(4, 4, 64, window), vec![300, 4], 3, 1e-6);
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let layer = Layer { heads: heads(2, 1, 8, None), documents: vec![150] };
    let qkv = scaled(&Seeded::new(2).values::<f64>(150 * layer.heads.row_width()), 60.0);
    compare(&layer, &qkv, 10, 1e-10);
}
