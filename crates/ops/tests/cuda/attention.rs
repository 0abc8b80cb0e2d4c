//! Attention, forward and backward: on tensor cores and without.

use std::ops::Range;
use std::process::Command;

use half::bf16;
use tessera_ops::attention::{self, Heads};
use tessera_ops::{Buffer, DType, Element, Home, Queue, Shape, View, ViewMut};

use crate::support::{
    Random, Values, Variant, assert_close, download, on, on_mut, refused, starts, stream, unwritten_on,
    upload, view, view_mut, widened,
};

/// A layer and the documents in its rows.
struct Layer {
    heads: Heads,
    documents: Vec<usize>,
}

/// What the forward and the backward of a layer give.
#[derive(PartialEq, Debug)]
struct Results<V> {
    output: Vec<V>,
    log_sum_exp: Vec<f32>,
    dqkv: Vec<V>,
}

/// Elements of a buffer from `shift` on, under a shape.
fn shifted<T: Element>(buffer: &Buffer, shift: usize, shape: [usize; 2]) -> View<'_> {
    buffer.view(T::DTYPE).range(shift, Shape::from(shape).elements()).unwrap().reshape(shape).unwrap()
}

fn shifted_mut<T: Element>(buffer: &mut Buffer, shift: usize, shape: [usize; 2]) -> ViewMut<'_> {
    buffer.view_mut(T::DTYPE).range(shift, Shape::from(shape).elements()).unwrap().reshape(shape).unwrap()
}

impl Layer {
    fn new(
        (query, key_value, size, window): (usize, usize, usize, Option<usize>),
        documents: &[usize],
    ) -> Self {
        Self { heads: Heads { query, key_value, size, window }, documents: documents.to_vec() }
    }

    /// Documents, windows and groups of heads as they come.
    fn random(random: &mut Random, size: usize, longest: usize) -> Self {
        let (key_value, group) = (1 + random.below(2), 1 + random.below(2));
        let window = (random.below(2) == 0).then(|| random.extent(longest));
        let documents: Vec<usize> =
            (0..1 + random.below(4)).map(|_| random.below(2) * random.extent(longest)).collect();
        Self::new((key_value * group, key_value, size, window), &documents)
    }

    fn rows(&self) -> usize {
        self.documents.iter().sum()
    }

    fn row_shape(&self) -> [usize; 2] {
        [self.rows(), self.heads.row_width()]
    }

    fn output_shape(&self) -> [usize; 2] {
        [self.rows(), self.heads.output_width()]
    }

    /// Queries, keys and values, and the gradient of the output.
    fn values<V: Variant>(&self, random: &mut Random) -> [Values<V>; 2] {
        let count = |[rows, width]: [usize; 2]| rows * width;
        // Scores of some size, so that a softmax is not flat.
        let qkv = (0..count(self.row_shape())).map(|_| 4.0 * random.uniform() - 2.0).collect::<Vec<_>>();
        [Values::of(qkv), Values::random(random, count(self.output_shape()))]
    }

    /// On the GPU, where matrices begin `shift` elements behind a place that wide accesses can begin at.
    fn on_gpu<V: Variant>(&self, queue: &Queue, [qkv, dout]: [&[V]; 2], shift: usize) -> Results<V> {
        let (heads, rows) = (self.heads, self.rows());
        let padded = |values: &[V]| [&vec![V::round(0.0); shift], values].concat();
        let [qkv, dout] = [qkv, dout].map(|values| upload(queue, &padded(values)));
        let documents = upload(queue, &starts(&self.documents));
        let documents = documents.view(DType::U32);
        let mut output = unwritten_on::<V>(queue, shift + rows * heads.output_width());
        let mut dqkv = unwritten_on::<V>(queue, shift + rows * heads.row_width());
        let mut log_sum_exp = unwritten_on::<f32>(queue, rows * heads.query);
        let mut scratch = unwritten_on::<f32>(queue, attention::backward_scratch(Home::Gpu, heads, rows));

        let qkv = shifted::<V>(&qkv, shift, self.row_shape());
        let out = shifted_mut::<V>(&mut output, shift, self.output_shape());
        let sums = on_mut::<f32>(&mut log_sum_exp, [rows, heads.query]);
        attention::forward(queue, qkv, documents, heads, out, sums).unwrap();
        attention::backward(
            queue,
            shifted::<V>(&dout, shift, self.output_shape()),
            qkv,
            shifted::<V>(&output, shift, self.output_shape()),
            on::<f32>(&log_sum_exp, [rows, heads.query]),
            documents,
            heads,
            shifted_mut::<V>(&mut dqkv, shift, self.row_shape()),
            scratch.view_mut(DType::F32),
        )
        .unwrap();
        Results {
            output: download::<V>(queue, &output).split_off(shift),
            log_sum_exp: download(queue, &log_sum_exp),
            dqkv: download::<V>(queue, &dqkv).split_off(shift),
        }
    }

    fn on_cpu(&self, [qkv, dout]: [&[f64]; 2]) -> [Vec<f64>; 3] {
        let (queue, heads, rows) = (Queue::cpu(), self.heads, self.rows());
        let documents = starts(&self.documents);
        let (qkv, documents) = (view(qkv, self.row_shape()), View::of(&documents));
        let mut output = vec![0.0; rows * heads.output_width()];
        let mut log_sum_exp = vec![0.0; rows * heads.query];
        let mut dqkv = vec![0.0; rows * heads.row_width()];
        let mut scratch = vec![0.0; attention::backward_scratch(Home::Host, heads, rows)];
        let sums = view_mut(&mut log_sum_exp, [rows, heads.query]);
        let out = view_mut(&mut output, self.output_shape());
        attention::forward(&queue, qkv, documents, heads, out, sums).unwrap();
        attention::backward(
            &queue,
            view(dout, self.output_shape()),
            qkv,
            view(&output, self.output_shape()),
            view(&log_sum_exp, [rows, heads.query]),
            documents,
            heads,
            view_mut(&mut dqkv, self.row_shape()),
            ViewMut::of(&mut scratch),
        )
        .unwrap();
        [output, log_sum_exp, dqkv]
    }

    fn check<V: Variant>(&self, random: &mut Random, shift: usize) {
        let [qkv, dout] = self.values::<V>(random);
        let found = self.on_gpu(&stream(), [&qkv.rounded, &dout.rounded], shift);
        let [output, log_sum_exp, dqkv] = self.on_cpu([&qkv.exact, &dout.exact]);
        let what = format!("{:?} over {:?}", self.heads, self.documents);
        assert_close(&format!("output of {what}"), &found.output, &output);
        assert_close(&format!("log-sum-exp of {what}"), &found.log_sum_exp, &log_sum_exp);
        let found = widened(&found.dqkv);
        for (part, range) in self.parts() {
            let of = |values: &[f64]| -> Vec<f64> {
                let rows = values.chunks_exact(self.heads.row_width());
                rows.flat_map(|row| row[range.clone()].to_vec()).collect()
            };
            let found = Values::<V>::of(of(&found));
            assert_close(&format!("d{part} of {what}"), &found.rounded, &of(&dqkv));
        }
    }

    /// The columns of queries, keys and values: an error in a small part must not hide behind a large one.
    fn parts(&self) -> [(&'static str, Range<usize>); 3] {
        let (queries, keys) = (self.heads.output_width(), self.heads.key_value * self.heads.size);
        [("q", 0..queries), ("k", queries..queries + keys), ("v", queries + keys..queries + 2 * keys)]
    }
}

/// Documents of one token, around a tile of 64, over two tiles, empty, none; shared heads; windows.
#[test]
fn attention_on_tensor_cores_follows_the_cpu() {
    let mut random = Random::new(1);
    for (heads, documents) in [
        ((1, 1, 64, None), &[1][..]),
        ((2, 1, 64, None), &[70, 1, 9]),
        ((2, 1, 128, None), &[0, 63, 0, 66, 0]),
        ((1, 1, 128, None), &[150]),
        ((4, 2, 64, Some(5)), &[40, 90]),
        ((1, 1, 128, Some(64)), &[140, 3]),
        ((1, 1, 64, Some(1)), &[67]),
        ((2, 1, 64, None), &[5, 600]),
        ((1, 1, 128, Some(300)), &[500]),
        ((1, 1, 64, None), &[0]),
        ((1, 1, 64, None), &[]),
    ] {
        Layer::new(heads, documents).check::<bf16>(&mut random, 0);
    }
}

#[test]
fn fuzzed_attention_on_tensor_cores_follows_the_cpu() {
    let mut random = Random::new(10);
    for round in 0..8 {
        Layer::random(&mut random, [64, 128][round % 2], 90).check::<bf16>(&mut random, 0);
    }
}

/// An emulated GPU of the kind whose warps form warpgroups has kernels of its own. A GPU is what it is: it runs the same ones
/// again.
#[test]
fn attention_by_warpgroups_follows_the_cpu() {
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["attention::", "--skip", "warpgroups"])
        .env("TESSERA_EMULATOR_CAPABILITY", "90")
        .output()
        .unwrap();
    let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(ran.status.success() && said.contains("6 passed"), "{said}");
}

fn plain_attention_follows<V: Variant>(random: &mut Random) {
    for (heads, documents) in [
        ((1, 1, 1, None), &[1][..]),
        ((4, 2, 80, None), &[7, 1, 40]),
        ((2, 1, 33, Some(3)), &[0, 20, 15, 0]),
        ((2, 2, 8, Some(32)), &[70]),
        ((1, 1, 256, None), &[9]),
    ] {
        Layer::new(heads, documents).check::<V>(random, 0);
    }
    for _ in 0..4 {
        let size = random.extent(70);
        Layer::random(random, size, 50).check::<V>(random, 0);
    }
}

#[test]
fn plain_attention_follows_the_cpu() {
    plain_attention_follows::<f32>(&mut Random::new(2));
    plain_attention_follows::<bf16>(&mut Random::new(3));
}

/// The kernels on tensor cores could not read these.
#[test]
fn matrices_may_begin_anywhere() {
    Layer::new((2, 1, 64, None), &[30, 40]).check::<bf16>(&mut Random::new(4), 1);
}

/// Changing one document moves no bit of another, forward or backward.
fn documents_are_apart<V: Variant>(heads: (usize, usize, usize, Option<usize>)) {
    let (queue, layer) = (stream(), Layer::new(heads, &[37, 50, 20]));
    let [before, dout] = layer.values::<V>(&mut Random::new(5)).map(|values| values.rounded);
    let mut after = before.clone();
    after[37 * layer.heads.row_width()..87 * layer.heads.row_width()].fill(V::round(3.0));
    let [one, other] = [&before, &after].map(|qkv| layer.on_gpu(&queue, [qkv, &dout], 0));
    assert!(one.output != other.output && one.dqkv != other.dqkv);
    for rows in [0..37, 87..107] {
        let of = |values: &[V], width: usize| values[rows.start * width..rows.end * width].to_vec();
        let width = layer.heads.output_width();
        assert_eq!(of(&one.output, width), of(&other.output, width));
        let width = layer.heads.row_width();
        assert_eq!(of(&one.dqkv, width), of(&other.dqkv, width));
    }
}

#[test]
fn documents_do_not_touch() {
    documents_are_apart::<bf16>((2, 1, 64, None));
    documents_are_apart::<bf16>((1, 1, 128, Some(40)));
    documents_are_apart::<f32>((2, 1, 24, None));
}

#[test]
fn rows_without_a_document_are_refused() {
    let (queue, heads) = (stream(), Heads { query: 1, key_value: 1, size: 4, window: None });
    let [qkv, mut output, mut sums] = [24, 8, 2].map(|count| unwritten_on::<f32>(&queue, count));
    let documents = upload(&queue, &[0_u32]);
    let (output, sums) = (on_mut::<f32>(&mut output, [2, 4]), on_mut::<f32>(&mut sums, [2, 1]));
    let qkv = on::<f32>(&qkv, [2, 12]);
    refused(
        attention::forward(&queue, qkv, documents.view(DType::U32), heads, output, sums),
        "a rising list from 0 to 2",
    );
}
