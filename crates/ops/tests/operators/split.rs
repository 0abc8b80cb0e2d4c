//! Heads dealt out to ranks: what each gets, that attention on the shares is attention on the whole, and what is refused.

use tessera_ops::attention::Heads;
use tessera_ops::attention::split::{self, Columns, share};
use tessera_ops::{Float, OpError, Queue};

use crate::attention::{Kept, Layer, heads};
use crate::support::{Seeded, assert_close, bits, inner_product, unwritten, view, view_mut};

/// Query heads, key-value heads and ranks that go together: several key-value heads a rank, one, and one for several ranks.
const CASES: [(usize, usize, usize); 8] =
    [(4, 4, 1), (8, 4, 2), (8, 4, 4), (8, 2, 4), (4, 1, 4), (6, 3, 3), (12, 2, 6), (8, 8, 8)];

/// Rows on each of `ranks` ranks, the last ones with fewer or none.
fn parts(rows: usize, ranks: usize) -> Vec<std::ops::Range<usize>> {
    let share = rows.div_ceil(ranks);
    (0..ranks).map(|rank| (rank * share).min(rows)..((rank + 1) * share).min(rows)).collect()
}

/// The shares `[rows, share_width]` of all ranks, after each has packed its rows of x and the blocks have gone around.
fn scatter<T: Float>(columns: Columns, x: &[T]) -> Vec<Vec<T>> {
    let (width, share_width) = (columns.width(), columns.share_width());
    let parts = parts(x.len() / width, columns.ranks());
    let length = parts[0].len();
    let packed: Vec<Vec<T>> = parts
        .iter()
        .map(|rows| {
            let mut blocks = unwritten::<T>(columns.ranks() * length * share_width);
            let own = &x[rows.start * width..rows.end * width];
            split::pack(
                &Queue::cpu(),
                columns,
                view(own, [rows.len(), width]),
                view_mut(&mut blocks, [columns.ranks(), length, share_width]),
            )
            .unwrap();
            blocks
        })
        .collect();
    let block = length * share_width;
    let received = |rank: usize| packed.iter().flat_map(move |blocks| &blocks[rank * block..][..block]);
    let elements = x.len() / width * share_width;
    (0..columns.ranks()).map(|rank| received(rank).copied().take(elements).collect()).collect()
}

/// The rows of all ranks, after each has given its share and unpacked what it got.
fn gather<T: Float>(columns: Columns, shares: &[Vec<T>]) -> Vec<T> {
    let (width, share_width) = (columns.width(), columns.share_width());
    let parts = parts(shares[0].len() / share_width, columns.ranks());
    let length = parts[0].len();
    let row = |share: &[T], row: usize| match share.get(row * share_width..(row + 1) * share_width) {
        Some(row) => row.to_vec(),
        None => unwritten(share_width),
    };
    parts
        .iter()
        .flat_map(|rows| {
            let places = rows.start..rows.start + length;
            let blocks: Vec<T> =
                shares.iter().flat_map(|share| places.clone().flat_map(|place| row(share, place))).collect();
            let mut own = unwritten::<T>(rows.len() * width);
            split::unpack(
                &Queue::cpu(),
                columns,
                view(&blocks, [columns.ranks(), length, share_width]),
                view_mut(&mut own, [rows.len(), width]),
            )
            .unwrap();
            own
        })
        .collect()
}

#[test]
fn a_rank_gets_its_query_heads_and_the_keys_and_values_they_use() {
    let size = 3;
    for (query, key_value, ranks) in CASES {
        let heads = heads(query, key_value, size, None);
        let columns = Columns::of_qkv(heads, ranks).unwrap();
        for rows in [0, 1, ranks, 2 * ranks + 1, 40] {
            let x = Seeded::new(7).values::<f32>(rows * columns.width());
            for (rank, shared) in scatter(columns, &x).iter().enumerate() {
                let own = rank * query / ranks..(rank + 1) * query / ranks;
                let mut used: Vec<usize> = own.clone().map(|head| head / (query / key_value)).collect();
                used.dedup();
                let keys = used.iter().map(|head| query + head);
                let values = used.iter().map(|head| query + key_value + head);
                let wanted: Vec<usize> = own.chain(keys).chain(values).collect();
                let expected: Vec<f32> = x
                    .chunks_exact(columns.width())
                    .flat_map(|row| wanted.iter().flat_map(|head| row[head * size..][..size].to_vec()))
                    .collect();
                assert_eq!(shared, &expected, "{query} {key_value} heads, rank {rank} of {ranks}");
            }
        }
    }
}

/// ⟨scatter(x), g⟩ = ⟨x, gather(g)⟩: the way back is the gradient of the way there.
#[test]
fn what_ranks_have_of_a_head_is_added() {
    for (query, key_value, ranks) in CASES {
        let columns = Columns::of_qkv(heads(query, key_value, 4, None), ranks).unwrap();
        let rows = 19;
        let mut seeded = Seeded::new(8);
        let x = seeded.values::<f64>(rows * columns.width());
        let gradients: Vec<Vec<f64>> =
            (0..ranks).map(|_| seeded.values(rows * columns.share_width())).collect();
        let shares = scatter(columns, &x);
        let there: f64 = shares.iter().zip(&gradients).map(|(share, g)| inner_product(share, g)).sum();
        let back = inner_product(&x, &gather(columns, &gradients));
        assert!((there - back).abs() < 1e-12 * rows as f64, "{query} {key_value} {ranks}: {there} {back}");
    }
}

#[test]
fn sums_are_taken_in_the_order_of_the_ranks() {
    let columns = Columns::of_qkv(heads(4, 1, 1, None), 4).unwrap();
    let key = [1e8_f32, 1.0, -1e8, 1.0];
    let gradients: Vec<Vec<f32>> = key.iter().map(|&key| vec![0.0, key, key]).collect();
    let sum = ((1e8_f32 + 1.0) - 1e8) + 1.0;
    assert_eq!(gather(columns, &gradients), [0.0, 0.0, 0.0, 0.0, sum, sum]);
}

/// Over documents that begin and end anywhere, with and without a window.
#[test]
fn attention_on_shares_is_attention_on_the_whole() {
    for (query, key_value, ranks) in CASES {
        for window in [None, Some(5)] {
            let whole = Layer { heads: heads(query, key_value, 8, window), documents: vec![21, 1, 0, 34, 7] };
            let mut seeded = Seeded::new(9);
            let qkv = seeded.values::<f32>(whole.rows() * whole.heads.row_width());
            let doutput = seeded.values::<f32>(whole.rows() * whole.heads.output_width());
            let shared =
                Layer { heads: share(whole.heads, ranks).unwrap(), documents: whole.documents.clone() };
            let columns = Columns::of_qkv(whole.heads, ranks).unwrap();
            let output = Columns::of_output(whole.heads, ranks).unwrap();

            let kept = whole.forward(&qkv);
            let shares = scatter(columns, &qkv);
            let kept_shares: Vec<Kept<f32>> = shares.iter().map(|qkv| shared.forward(qkv)).collect();
            let outputs: Vec<Vec<f32>> = kept_shares.iter().map(|kept| kept.output.clone()).collect();
            assert_eq!(bits(&gather(output, &outputs)), bits(&kept.output));

            let dshares: Vec<Vec<f32>> = scatter(output, &doutput)
                .iter()
                .zip(shares.iter().zip(&kept_shares))
                .map(|(doutput, (qkv, kept))| shared.backward(qkv, kept, doutput))
                .collect();
            let what = format!("{query} {key_value} heads over {ranks} ranks, window {window:?}");
            assert_close(&what, &gather(columns, &dshares), &whole.backward(&qkv, &kept, &doutput), 1e-6);
        }
    }
}

#[test]
fn heads_that_do_not_go_together_with_the_ranks_are_refused() {
    for (query, key_value, ranks) in [(4, 4, 0), (4, 4, 3), (4, 2, 8), (12, 4, 6), (6, 2, 3), (12, 6, 4)] {
        let heads = heads(query, key_value, 8, None);
        for refused in [share(heads, ranks).err(), Columns::of_output(heads, ranks).err()] {
            assert!(matches!(refused, Some(OpError::HeadSplit { .. })), "{heads:?} over {ranks}");
        }
    }
    let impossible = Heads { key_value: 3, ..heads(4, 2, 8, None) };
    assert!(matches!(share(impossible, 1), Err(OpError::Heads { .. })));
}

#[test]
fn a_block_must_have_room_for_the_rows() {
    let columns = Columns::of_output(heads(4, 2, 2, None), 2).unwrap();
    let pack = |shape: [usize; 3]| {
        let mut blocks = vec![0.0_f32; shape.iter().product()];
        split::pack(&Queue::cpu(), columns, view(&[0.0_f32; 24], [3, 8]), view_mut(&mut blocks, shape))
    };
    pack([2, 3, 4]).unwrap();
    pack([2, 5, 4]).unwrap();
    for shape in [[2, 2, 4], [3, 3, 4], [2, 3, 5]] {
        assert!(matches!(pack(shape), Err(OpError::Shape { argument: "blocks", .. })), "{shape:?}");
    }
}
