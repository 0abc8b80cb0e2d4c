//! Heads dealt out to the ranks that share a sequence.

use half::bf16;
use tessera_ops::Queue;
use tessera_ops::attention::Heads;
use tessera_ops::attention::split::{self, Columns};

use crate::support::{
    Random, Values, Variant, assert_on_gpu, download, on, on_mut, stream, unwritten_on, upload, view,
    view_mut, widened,
};

fn split_follows<V: Variant>(random: &mut Random, columns: Columns) {
    let (queue, cpu, width, ranks) = (stream(), Queue::cpu(), columns.width(), columns.ranks());
    let tokens = random.below(7);
    let block_rows = tokens + random.below(3);
    let (shape, blocks_shape) = ([tokens, width], [ranks, block_rows, columns.share_width()]);
    let x = Values::<V>::random(random, tokens * width);
    let blocks = Values::<V>::random(random, ranks * block_rows * columns.share_width());

    let [x_on, blocks_on, mut packed] =
        [&x.rounded, &blocks.rounded, &blocks.rounded].map(|values| upload(&queue, values));
    let mut unpacked = unwritten_on::<V>(&queue, tokens * width);
    split::pack(&queue, columns, on::<V>(&x_on, shape), on_mut::<V>(&mut packed, blocks_shape)).unwrap();
    let blocks_view = on::<V>(&blocks_on, blocks_shape);
    split::unpack(&queue, columns, blocks_view, on_mut::<V>(&mut unpacked, shape)).unwrap();

    let (mut expected, mut expected_y) = (blocks.exact.clone(), vec![0.0; tokens * width]);
    split::pack(&cpu, columns, view(&x.exact, shape), view_mut(&mut expected, blocks_shape)).unwrap();
    let blocks_view = view(&blocks.exact, blocks_shape);
    split::unpack(&cpu, columns, blocks_view, view_mut(&mut expected_y, shape)).unwrap();
    assert_eq!(widened(&download::<V>(&queue, &packed)), expected);
    assert_on_gpu::<V>(&queue, "unpacked", &unpacked, &expected_y);
}

#[test]
fn heads_are_dealt_out_as_on_the_cpu() {
    let mut random = Random::new(7);
    for (query, key_value, ranks) in [(4, 4, 2), (4, 2, 4), (8, 1, 4), (3, 3, 1)] {
        for _ in 0..2 {
            let heads = Heads { query, key_value, size: random.extent(24), window: None };
            for columns in [Columns::of_qkv(heads, ranks), Columns::of_output(heads, ranks)] {
                let columns = columns.unwrap();
                split_follows::<f32>(&mut random, columns);
                split_follows::<bf16>(&mut random, columns);
            }
        }
    }
}
