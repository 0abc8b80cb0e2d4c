//! Attention on tensor cores: what faults.rs plants its faults in. All else of attention is in the tests of the operators.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::attention::{self, Heads};
use tessera_ops::{Queue, View};

use crate::device::{Argument, Kernels, Launch, input, long, output, unsigned};
use crate::support::{Values, assert_close, unwritten, view, view_mut, widened};

/// A layer and the documents in its rows.
struct Layer {
    heads: Heads,
    documents: Vec<usize>,
}

impl Layer {
    fn new(
        (query, key_value, size, window): (usize, usize, usize, Option<usize>),
        documents: &[usize],
    ) -> Self {
        Self { heads: Heads { query, key_value, size, window }, documents: documents.to_vec() }
    }

    fn rows(&self) -> usize {
        self.documents.iter().sum()
    }

    fn cu_seqlens(&self) -> Vec<u32> {
        let ends = self.documents.iter().scan(0, |end, &length| {
            *end += length as u32;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// What all kernels take last.
    fn extents(&self) -> [Argument<'static>; 5] {
        let Heads { query, key_value, window, .. } = self.heads;
        [self.rows(), self.documents.len(), query, key_value, window.unwrap_or(0)].map(unsigned)
    }

    fn forward(&self, qkv: &[bf16]) -> (Vec<bf16>, Vec<f32>) {
        let (rows, heads, cu_seqlens) = (self.rows(), self.heads, self.cu_seqlens());
        let mut out = unwritten::<bf16>(rows * heads.output_width());
        let mut log_sum_exp = unwritten::<f32>(rows * heads.query);
        let shared = (128 + 2 * keys(heads.size)) * heads.size * 2;
        let mut arguments = vec![input(qkv), input(&cu_seqlens), output(&mut out), output(&mut log_sum_exp)];
        arguments.extend(self.extents());
        Kernels::load("attention_forward").run(
            &format!("attention_forward_{}", heads.size),
            Launch::grid([rows.div_ceil(128), heads.query, 1]).threads(128).shared(shared),
            &mut arguments,
        );
        (out, log_sum_exp)
    }

    fn backward(&self, qkv: &[bf16], (out, log_sum_exp): (&[bf16], &[f32]), dout: &[bf16]) -> Vec<bf16> {
        let (rows, heads, cu_seqlens) = (self.rows(), self.heads, self.cu_seqlens());
        let count = rows * heads.query;
        let mut delta = unwritten::<f32>(count);
        Kernels::load("attention_plain").run(
            "attention_delta_bf16",
            Launch::blocks(count.div_ceil(4)).threads(128),
            &mut [input(dout), input(out), output(&mut delta), long(count), unsigned(heads.size)],
        );
        let mut kernels = Kernels::load("attention_backward");
        let mut dqkv = unwritten::<bf16>(qkv.len());
        let shared = (2 * 64 + 4 * keys(heads.size)) * heads.size * 2 + 4 * keys(heads.size) * 4;
        for (side, side_heads) in [("keys", heads.key_value), ("queries", heads.query)] {
            let mut arguments = vec![
                input(dout),
                input(qkv),
                input(log_sum_exp),
                input(&delta),
                input(&cu_seqlens),
                output(&mut dqkv),
            ];
            arguments.extend(self.extents());
            kernels.run(
                &format!("attention_backward_{side}_{}", heads.size),
                Launch::grid([rows.div_ceil(64), side_heads, 1]).threads(128).shared(shared),
                &mut arguments,
            );
        }
        dqkv
    }

    /// Both against the CPU in fp64.
    fn check(&self, random: &mut Random) {
        let (rows, heads, cu_seqlens) = (self.rows(), self.heads, self.cu_seqlens());
        let qkv = Values::<bf16>::of(
            (0..rows * heads.row_width()).map(|_| random.normals()[0]).collect::<Vec<_>>(),
        );
        let dout = Values::<bf16>::random(random, rows * heads.output_width());
        let (out, log_sum_exp) = self.forward(&qkv.rounded);
        let dqkv = self.backward(&qkv.rounded, (&out, &log_sum_exp), &dout.rounded);

        let queue = Queue::cpu();
        let (row, out_shape) = ([rows, heads.row_width()], [rows, heads.output_width()]);
        let (mut expected, mut expected_sums) = (vec![0.0; out.len()], vec![0.0; log_sum_exp.len()]);
        let documents = View::of(&cu_seqlens);
        let (out_view, sums_view) =
            (view_mut(&mut expected, out_shape), view_mut(&mut expected_sums, [rows, heads.query]));
        attention::forward(&queue, view(&qkv.exact, row), documents, heads, out_view, sums_view).unwrap();
        let mut scratch = vec![0.0; attention::backward_scratch(tessera_ops::Home::Host, heads, rows)];
        let (mut expected_dqkv, scratch_length) = (vec![0.0; dqkv.len()], scratch.len());
        attention::backward(
            &queue,
            view(&dout.exact, out_shape),
            view(&qkv.exact, row),
            view(&expected, out_shape),
            view(&expected_sums, [rows, heads.query]),
            documents,
            heads,
            view_mut(&mut expected_dqkv, row),
            view_mut(&mut scratch, [scratch_length]),
        )
        .unwrap();
        let what = format!("{heads:?} over {:?}", self.documents);
        assert_close(&format!("output of {what}"), &out, &expected);
        assert_close(&format!("log-sum-exp of {what}"), &log_sum_exp, &expected_sums);
        for (part, range) in self.parts() {
            let of = |values: &[f64]| -> Vec<f64> {
                values.chunks_exact(heads.row_width()).flat_map(|row| row[range.clone()].to_vec()).collect()
            };
            let found = Values::<bf16>::of(of(&widened(&dqkv)));
            assert_close(&format!("d{part} of {what}"), &found.rounded, &of(&expected_dqkv));
        }
    }

    /// The columns of queries, keys and values: an error in a small part must not hide behind a large one.
    fn parts(&self) -> [(&'static str, std::ops::Range<usize>); 3] {
        let (queries, keys) = (self.heads.output_width(), self.heads.key_value * self.heads.size);
        [("q", 0..queries), ("k", queries..queries + keys), ("v", queries + keys..queries + 2 * keys)]
    }
}

/// Keys, or queries, that the kernels on tensor cores work on at once.
fn keys(head_size: usize) -> usize {
    if head_size == 64 { 64 } else { 32 }
}

/// Documents inside a tile and over two, both head sizes, and a window.
#[test]
pub fn tensor_core_attention_follows_the_cpu() {
    let mut random = Random::new(1);
    for (heads, documents) in
        [((2, 1, 64, None), &[70, 1, 9][..]), ((1, 1, 128, None), &[150]), ((4, 2, 64, Some(5)), &[40, 90])]
    {
        Layer::new(heads, documents).check(&mut random);
    }
}
