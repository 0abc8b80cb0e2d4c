//! Attention against the S×S matrix that it never makes, and documents that must not see one another.

use candle_core::{D, Tensor, WithDType};
use tessera_ops::attention::{self, Heads};
use tessera_ops::{Float, Queue};

use crate::oracle;
use crate::support::{
    Seeded, assert_close, assert_gradient, bits, inner_product, scaled, unwritten, view, view_mut,
};

/// A layer and the documents in its rows.
pub struct Layer {
    pub heads: Heads,
    pub documents: Vec<usize>,
}

/// What the forward writes.
pub struct Kept<T> {
    pub output: Vec<T>,
    pub log_sum_exp: Vec<T>,
}

impl Layer {
    pub fn rows(&self) -> usize {
        self.documents.iter().sum()
    }

    /// The first row of each document, then the number of rows.
    pub fn cu_seqlens(&self) -> Vec<u32> {
        let ends = self.documents.iter().scan(0, |end, &length| {
            *end += length as u32;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    pub fn forward<T: Float>(&self, qkv: &[T]) -> Kept<T> {
        let (rows, heads, cu_seqlens) = (self.rows(), self.heads, self.cu_seqlens());
        let (mut output, mut log_sum_exp) =
            (unwritten(rows * heads.output_width()), unwritten(rows * heads.query));
        attention::forward(
            &Queue::cpu(),
            view(qkv, [rows, heads.row_width()]),
            view(&cu_seqlens, [cu_seqlens.len()]),
            heads,
            view_mut(&mut output, [rows, heads.output_width()]),
            view_mut(&mut log_sum_exp, [rows, heads.query]),
        )
        .unwrap();
        Kept { output, log_sum_exp }
    }

    pub fn backward<T: Float>(&self, qkv: &[T], kept: &Kept<T>, doutput: &[T]) -> Vec<T> {
        let (rows, heads, cu_seqlens) = (self.rows(), self.heads, self.cu_seqlens());
        let elements = attention::backward_scratch(tessera_ops::Home::Host, heads, rows);
        let (mut dqkv, mut scratch) = (unwritten(qkv.len()), unwritten::<T>(elements));
        attention::backward(
            &Queue::cpu(),
            view(doutput, [rows, heads.output_width()]),
            view(qkv, [rows, heads.row_width()]),
            view(&kept.output, [rows, heads.output_width()]),
            view(&kept.log_sum_exp, [rows, heads.query]),
            view(&cu_seqlens, [cu_seqlens.len()]),
            heads,
            view_mut(&mut dqkv, [rows, heads.row_width()]),
            view_mut(&mut scratch, [elements]),
        )
        .unwrap();
        dqkv
    }

    /// 0 where a row sees another, far below every score where it does not.
    fn mask<T: Float + WithDType>(&self) -> Tensor {
        let rows = self.rows();
        let mut mask = scaled(&vec![T::ONE; rows * rows], -1e30);
        for bounds in self.cu_seqlens().windows(2) {
            for query in bounds[0] as usize..bounds[1] as usize {
                let window = self.heads.window.unwrap_or(rows);
                for key in (bounds[0] as usize..=query).filter(|key| query - key < window) {
                    mask[query * rows + key] = T::ZERO;
                }
            }
        }
        oracle::constant(&mask, (rows, rows))
    }

    /// The output with an explicit matrix of scores for each head, from `qkv` `[rows, width]`.
    fn naive<T: Float + WithDType>(&self, qkv: &Tensor) -> Tensor {
        let Heads { query, key_value, size, .. } = self.heads;
        let head = |index: usize| qkv.narrow(1, index * size, size).unwrap().contiguous().unwrap();
        let mask = self.mask::<T>();
        let outputs: Vec<Tensor> = (0..query)
            .map(|index| {
                let shared = index / (query / key_value);
                let (q, k, v) = (head(index), head(query + shared), head(query + key_value + shared));
                let scores = (q.matmul(&k.t().unwrap()).unwrap() / (size as f64).sqrt()).unwrap();
                let p = candle_nn::ops::softmax(&(scores + &mask).unwrap(), D::Minus1).unwrap();
                p.matmul(&v).unwrap()
            })
            .collect();
        Tensor::cat(&outputs, 1).unwrap()
    }
}

pub fn heads(query: usize, key_value: usize, size: usize, window: Option<usize>) -> Heads {
    Heads { query, key_value, size, window }
}

/// Documents of one token and none, at the edges of a block of 128 and over two blocks; grouped heads; windows of one
/// token, of a block, and between.
fn layers() -> Vec<Layer> {
    let mut layers: Vec<Layer> = [
        (heads(1, 1, 1, None), vec![1]),
        (heads(4, 2, 8, None), vec![1, 5, 1, 3]),
        (heads(2, 1, 16, None), vec![300, 7]),
        (heads(3, 3, 5, None), vec![0, 127, 0, 128, 129, 0]),
        (heads(2, 1, 4, Some(1)), vec![3, 140]),
        (heads(2, 2, 4, Some(5)), vec![300, 2]),
        (heads(4, 1, 8, Some(128)), vec![290, 40]),
        (heads(2, 1, 8, Some(129)), vec![1, 389]),
        (heads(2, 1, 8, Some(200)), vec![400]),
    ]
    .into_iter()
    .map(|(heads, documents)| Layer { heads, documents })
    .collect();
    let mut seeded = Seeded::new(7);
    for _ in 0..12 {
        let key_value = seeded.extent(3);
        let window = (seeded.below(2) == 0).then(|| seeded.extent(90));
        let heads = heads(key_value * seeded.extent(3), key_value, seeded.extent(20), window);
        let documents = (0..seeded.extent(5)).map(|_| seeded.extent(70)).collect();
        layers.push(Layer { heads, documents });
    }
    layers
}

/// Values large enough for the softmax to choose.
fn inputs<T: Float>(layer: &Layer, seeded: &mut Seeded) -> (Vec<T>, Vec<T>) {
    let qkv = seeded.values::<T>(layer.rows() * layer.heads.row_width());
    let doutput = seeded.values(layer.rows() * layer.heads.output_width());
    (scaled(&qkv, 2.0), doutput)
}

#[test]
fn backward_is_the_derivative() {
    let mut seeded = Seeded::new(1);
    for layer in layers() {
        let (qkv, doutput) = inputs::<f64>(&layer, &mut seeded);
        let gradient = layer.backward(&qkv, &layer.forward(&qkv), &doutput);
        let what = format!("{:?} {:?}", layer.heads, layer.documents);
        assert_gradient(&what, &qkv, &gradient, |qkv| inner_product(&layer.forward(qkv).output, &doutput));
    }
}

fn agrees_with_the_score_matrix<T: Float + WithDType>(tolerance: f64) {
    let mut seeded = Seeded::new(2);
    for layer in layers() {
        let (qkv, doutput) = inputs::<T>(&layer, &mut seeded);
        let variable = oracle::variable(&qkv, (layer.rows(), layer.heads.row_width()));
        let expected = layer.naive::<T>(&variable);
        let kept = layer.forward(&qkv);
        let what = format!("{:?} {:?}", layer.heads, layer.documents);
        assert_close(&what, &kept.output, &oracle::elements(&expected), tolerance);
        let gradient = layer.backward(&qkv, &kept, &doutput);
        assert_close(&what, &gradient, &oracle::gradients(&expected, &doutput, &[&variable])[0], tolerance);
    }
}

#[test]
fn agrees_with_the_score_matrix_in_fp32() {
    agrees_with_the_score_matrix::<f32>(2e-6);
}

#[test]
fn agrees_with_the_score_matrix_in_fp64() {
    agrees_with_the_score_matrix::<f64>(1e-13);
}

/// Large scores of both signs: the running maximum rises from block to block, and no exponential overflows.
#[test]
fn large_scores_do_not_overflow() {
    let layer = Layer { heads: heads(1, 1, 4, None), documents: vec![400] };
    let mut qkv = Seeded::new(3).values::<f32>(400 * 12);
    for (row, values) in qkv.chunks_exact_mut(12).enumerate() {
        values[..8].iter_mut().for_each(|value| *value *= row as f32 / 4.0);
    }
    let exact: Vec<f64> = qkv.iter().map(|&value| f64::from(value)).collect();
    let expected: Vec<f32> = layer.forward(&exact).output.iter().map(|&value| value as f32).collect();
    assert_close("output", &layer.forward(&qkv).output, &expected, 1e-3);
}

fn documents_are_apart<T: Float>(replacement: impl Fn(&mut Seeded, usize) -> Vec<T>) {
    for window in [None, Some(30)] {
        let layer = Layer { heads: heads(4, 2, 8, window), documents: vec![1, 150, 300, 17, 1, 129] };
        let mut seeded = Seeded::new(4);
        let (qkv, doutput) = inputs::<T>(&layer, &mut seeded);
        let kept = layer.forward(&qkv);
        let dqkv = layer.backward(&qkv, &kept, &doutput);
        for bounds in layer.cu_seqlens().windows(2) {
            let rows = bounds[0] as usize..bounds[1] as usize;
            let (mut other_qkv, mut other_doutput) = (qkv.clone(), doutput.clone());
            let widths = (layer.heads.row_width(), layer.heads.output_width());
            for (values, width) in [(&mut other_qkv, widths.0), (&mut other_doutput, widths.1)] {
                let document = rows.start * width..rows.end * width;
                let replaced = replacement(&mut seeded, document.len());
                values[document].copy_from_slice(&replaced);
            }
            let other_kept = layer.forward(&other_qkv);
            let other_dqkv = layer.backward(&other_qkv, &other_kept, &other_doutput);
            for (before, after, width) in [
                (&kept.output, &other_kept.output, widths.1),
                (&kept.log_sum_exp, &other_kept.log_sum_exp, layer.heads.query),
                (&dqkv, &other_dqkv, widths.0),
            ] {
                let (before, after) = (bits(before), bits(after));
                let document = rows.start * width..rows.end * width;
                assert_eq!(before[..document.start], after[..document.start]);
                assert_eq!(before[document.end..], after[document.end..]);
                assert_ne!(before[document.clone()], after[document]);
            }
        }
    }
}

#[test]
fn changing_a_document_moves_no_bit_of_another() {
    documents_are_apart::<f32>(|seeded, count| seeded.values(count));
    documents_are_apart::<f64>(|seeded, count| seeded.values(count));
}

#[test]
fn not_even_a_document_of_nan_moves_a_bit_of_another() {
    documents_are_apart::<f32>(|_, count| vec![f32::NAN; count]);
}
