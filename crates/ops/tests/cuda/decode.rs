//! Attention of one new token over a cache.

use half::bf16;
use tessera_ops::attention::{self, Heads};
use tessera_ops::{DType, Queue, View};

use crate::support::{
    Random, Values, Variant, assert_on_gpu, download, on, on_mut, starts, stream, unwritten_on, upload, view,
    view_mut, widened,
};

/// Prompts fill the cache, then each sequence takes one token.
fn decoding_follows<V: Variant>(random: &mut Random, heads: Heads) {
    let (cache_width, capacity) = (2 * heads.key_value * heads.size, 160);
    let prompts: Vec<usize> = (0..3).map(|_| random.below(5).min(1) * random.extent(150)).collect();
    let (count, rows) = (prompts.len(), prompts.iter().sum::<usize>());
    let lengths: Vec<u32> = prompts.iter().map(|&length| length as u32).collect();
    let cu_seqlens = starts(&prompts);
    let prompt_rows = Values::<V>::random(random, rows * heads.row_width());
    let tokens = Values::<V>::random(random, count * heads.row_width());
    let (prompts_shape, tokens_shape) = ([rows, heads.row_width()], [count, heads.row_width()]);
    let (cache_shape, output_shape) = ([count, capacity, cache_width], [count, heads.output_width()]);

    let queue = stream();
    let [prompts_on, tokens_on] = [&prompt_rows, &tokens].map(|values| upload(&queue, &values.rounded));
    let [documents_on, lengths_on] = [&cu_seqlens, &lengths].map(|values| upload(&queue, values));
    let mut cache_on = upload(&queue, &vec![V::round(0.0); count * capacity * cache_width]);
    let mut output_on = unwritten_on::<V>(&queue, count * heads.output_width());
    let (prompts, documents) = (on::<V>(&prompts_on, prompts_shape), documents_on.view(DType::U32));
    attention::fill_cache(&queue, prompts, documents, heads, on_mut::<V>(&mut cache_on, cache_shape))
        .unwrap();
    let (tokens_view, cache) = (on::<V>(&tokens_on, tokens_shape), on_mut::<V>(&mut cache_on, cache_shape));
    let (lengths_view, output) = (lengths_on.view(DType::U32), on_mut::<V>(&mut output_on, output_shape));
    attention::decode(&queue, tokens_view, cache, lengths_view, heads, output).unwrap();

    let cpu = Queue::cpu();
    let mut cache = vec![0.0; count * capacity * cache_width];
    let mut output = vec![0.0; count * heads.output_width()];
    let (prompts, documents) = (view(&prompt_rows.exact, prompts_shape), View::of(&cu_seqlens));
    attention::fill_cache(&cpu, prompts, documents, heads, view_mut(&mut cache, cache_shape)).unwrap();
    let (tokens, cache_view) = (view(&tokens.exact, tokens_shape), view_mut(&mut cache, cache_shape));
    let output_view = view_mut(&mut output, output_shape);
    attention::decode(&cpu, tokens, cache_view, View::of(&lengths), heads, output_view).unwrap();

    assert_eq!(widened(&download::<V>(&queue, &cache_on)), cache);
    assert_on_gpu::<V>(&queue, "output", &output_on, &output);
}

#[test]
fn decoding_follows_the_cpu() {
    let mut random = Random::new(5);
    for (query, key_value, size, window) in
        [(1, 1, 8, None), (4, 2, 40, None), (2, 1, 64, Some(5)), (3, 3, 5, Some(200)), (2, 2, 128, Some(1))]
    {
        let heads = Heads { query, key_value, size, window };
        decoding_follows::<f32>(&mut random, heads);
        decoding_follows::<bf16>(&mut random, heads);
    }
}
