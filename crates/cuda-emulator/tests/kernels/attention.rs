//! Attention on tensor cores and without, its cache, and its heads dealt out to ranks.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::attention::split::{self, Columns};
use tessera_ops::attention::{self, Heads};
use tessera_ops::{Queue, View};

use crate::device::{Argument, Kernels, Launch, input, long, output, unsigned, with_seed};
use crate::support::{Values, Variant, assert_close, below, extent, unwritten, view, view_mut, widened};

/// A layer and the documents in its rows.
struct Layer {
    heads: Heads,
    documents: Vec<usize>,
}

/// How the kernels are built: on tensor cores for one head size, or plain for any.
#[derive(Clone, Copy, PartialEq)]
enum Build {
    TensorCores,
    Plain,
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
    fn extents(&self, build: Build) -> Vec<Argument<'static>> {
        let window = self.heads.window.unwrap_or(0);
        let Heads { query, key_value, size, .. } = self.heads;
        let mut extents = vec![self.rows(), self.documents.len(), query, key_value, window];
        if build == Build::Plain {
            extents.push(size);
        }
        extents.into_iter().map(unsigned).collect()
    }

    /// How a kernel's name ends.
    fn suffix<V: Variant>(&self, build: Build) -> String {
        match build {
            Build::TensorCores => self.heads.size.to_string(),
            Build::Plain => V::SUFFIX.into(),
        }
    }

    fn forward<V: Variant>(&self, build: Build, qkv: &[V]) -> (Vec<V>, Vec<f32>) {
        let (rows, heads, cu_seqlens) = (self.rows(), self.heads, self.cu_seqlens());
        let mut out = unwritten::<V>(rows * heads.output_width());
        let mut log_sum_exp = unwritten::<f32>(rows * heads.query);
        let (file, tile, shared) = match build {
            Build::TensorCores => ("attention_forward", 128, (128 + 2 * keys(heads.size)) * heads.size * 2),
            Build::Plain => ("attention_plain", 8, (2 * 8 + 2 * 32) * (heads.size + 1) * 4),
        };
        let mut arguments = vec![input(qkv), input(&cu_seqlens), output(&mut out), output(&mut log_sum_exp)];
        arguments.extend(self.extents(build));
        Kernels::load(file).run(
            &format!("attention_forward_{}", self.suffix::<V>(build)),
            Launch::grid([rows.div_ceil(tile), heads.query, 1]).threads(128).shared(shared),
            &mut arguments,
        );
        (out, log_sum_exp)
    }

    fn backward<V: Variant>(
        &self,
        build: Build,
        qkv: &[V],
        (out, log_sum_exp): (&[V], &[f32]),
        dout: &[V],
    ) -> Vec<V> {
        let (rows, heads, cu_seqlens) = (self.rows(), self.heads, self.cu_seqlens());
        let mut delta = unwritten::<f32>(rows * heads.query);
        let mut plain = Kernels::load("attention_plain");
        plain.run(
            &format!("attention_delta_{}", V::SUFFIX),
            Launch::blocks((rows * heads.query).div_ceil(4)).threads(128),
            &mut [
                input(dout),
                input(out),
                output(&mut delta),
                long(rows * heads.query),
                unsigned(heads.size),
            ],
        );
        let mut kernels = if build == Build::Plain { plain } else { Kernels::load("attention_backward") };
        let mut dqkv = unwritten::<V>(qkv.len());
        for (side, side_heads) in [("keys", heads.key_value), ("queries", heads.query)] {
            let (tile, shared) = match build {
                Build::TensorCores => {
                    (64, (2 * 64 + 4 * keys(heads.size)) * heads.size * 2 + 4 * keys(heads.size) * 4)
                }
                Build::Plain => (8, (4 * 8 + 2 * 32) * (heads.size + 1) * 4),
            };
            let mut arguments = vec![
                input(dout),
                input(qkv),
                input(log_sum_exp),
                input(&delta),
                input(&cu_seqlens),
                output(&mut dqkv),
            ];
            arguments.extend(self.extents(build));
            kernels.run(
                &format!("attention_backward_{side}_{}", self.suffix::<V>(build)),
                Launch::grid([rows.div_ceil(tile), side_heads, 1]).threads(128).shared(shared),
                &mut arguments,
            );
        }
        dqkv
    }

    /// Both against the CPU in fp64.
    fn check<V: Variant>(&self, build: Build, random: &mut Random) {
        let (rows, heads, cu_seqlens) = (self.rows(), self.heads, self.cu_seqlens());
        let qkv =
            Values::<V>::of((0..rows * heads.row_width()).map(|_| random.normals()[0]).collect::<Vec<_>>());
        let dout = Values::<V>::random(random, rows * heads.output_width());
        let (out, log_sum_exp) = self.forward(build, &qkv.rounded);
        let dqkv = self.backward(build, &qkv.rounded, (&out, &log_sum_exp), &dout.rounded);

        let queue = Queue::cpu();
        let (row, out_shape) = ([rows, heads.row_width()], [rows, heads.output_width()]);
        let (mut expected, mut expected_sums) = (vec![0.0; out.len()], vec![0.0; log_sum_exp.len()]);
        let documents = View::of(&cu_seqlens);
        let (out_view, sums_view) =
            (view_mut(&mut expected, out_shape), view_mut(&mut expected_sums, [rows, heads.query]));
        attention::forward(&queue, view(&qkv.exact, row), documents, heads, out_view, sums_view).unwrap();
        let mut scratch = vec![0.0; attention::backward_scratch(heads, rows)];
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
            let found = Values::<V>::of(of(&widened(&dqkv)));
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

/// Documents of one token, around a tile of 64, over two tiles and empty; shared heads; windows.
#[test]
pub fn tensor_core_attention_follows_the_cpu() {
    let mut random = Random::new(1);
    for (heads, documents) in [
        ((1, 1, 64, None), &[1][..]),
        ((2, 1, 64, None), &[70, 1, 9]),
        ((2, 1, 128, None), &[0, 63, 0, 66, 0]),
        ((1, 1, 128, None), &[150]),
        ((4, 2, 64, Some(5)), &[40, 90]),
        ((1, 1, 128, Some(64)), &[140, 3]),
        ((1, 1, 64, Some(1)), &[67]),
    ] {
        Layer::new(heads, documents).check::<bf16>(Build::TensorCores, &mut random);
    }
}

/// Documents, windows and groups of heads as they come.
#[test]
fn fuzzed_tensor_core_attention_follows_the_cpu() {
    let mut random = Random::new(10);
    for _ in 0..8 {
        let (key_value, group) = (1 + below(&mut random, 2), 1 + below(&mut random, 2));
        let size = [64, 128][below(&mut random, 2)];
        let window = (below(&mut random, 2) == 0).then(|| extent(&mut random, 100));
        let documents: Vec<usize> = (0..1 + below(&mut random, 4)).map(|_| extent(&mut random, 90)).collect();
        Layer::new((key_value * group, key_value, size, window), &documents)
            .check::<bf16>(Build::TensorCores, &mut random);
    }
}

fn plain_attention_follows<V: Variant>(random: &mut Random) {
    for (heads, documents) in [
        ((1, 1, 1, None), &[1][..]),
        ((4, 2, 80, None), &[7, 1, 40]),
        ((2, 1, 33, Some(3)), &[0, 20, 15, 0]),
        ((2, 2, 8, Some(32)), &[70]),
    ] {
        Layer::new(heads, documents).check::<V>(Build::Plain, random);
    }
}

#[test]
fn plain_attention_follows_the_cpu() {
    plain_attention_follows::<f32>(&mut Random::new(2));
    plain_attention_follows::<bf16>(&mut Random::new(3));
}

/// The order in which blocks and warps come moves no bit.
#[test]
fn attention_is_deterministic() {
    let (layer, mut random) = (Layer::new((4, 2, 64, Some(50)), &[60, 80]), Random::new(9));
    let (heads, rows) = (layer.heads, layer.rows());
    let qkv = Values::<bf16>::random(&mut random, rows * heads.row_width()).rounded;
    let dout = Values::<bf16>::random(&mut random, rows * heads.output_width()).rounded;
    let results = |seed| {
        with_seed(seed, || {
            let (out, log_sum_exp) = layer.forward(Build::TensorCores, &qkv);
            let dqkv = layer.backward(Build::TensorCores, &qkv, (&out, &log_sum_exp), &dout);
            (out, log_sum_exp, dqkv)
        })
    };
    let first = results(0);
    for seed in 1..5 {
        assert!(results(seed) == first, "seed {seed}");
    }
}

/// Changing one document moves no bit of another, forward or backward.
#[test]
fn documents_do_not_touch() {
    let (layer, mut random) = (Layer::new((2, 1, 64, None), &[37, 50, 20]), Random::new(4));
    let (heads, rows) = (layer.heads, layer.rows());
    let before = Values::<bf16>::random(&mut random, rows * heads.row_width()).rounded;
    let mut after = before.clone();
    after[37 * heads.row_width()..87 * heads.row_width()].fill(bf16::from_f32(3.0));
    let dout = Values::<bf16>::random(&mut random, rows * heads.output_width()).rounded;
    let [one, other] = [before, after].map(|qkv| {
        let (out, log_sum_exp) = layer.forward(Build::TensorCores, &qkv);
        let dqkv = layer.backward(Build::TensorCores, &qkv, (&out, &log_sum_exp), &dout);
        (out, dqkv)
    });
    for rows in [0..37, 87..107] {
        let elements = |width: usize| rows.start * width..rows.end * width;
        assert_eq!(one.0[elements(heads.output_width())], other.0[elements(heads.output_width())]);
        assert_eq!(one.1[elements(heads.row_width())], other.1[elements(heads.row_width())]);
    }
}

fn decoding_follows<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("attention_decode");
    for (query, key_value, size, window) in
        [(1, 1, 8, None), (4, 2, 40, None), (2, 1, 64, Some(5)), (3, 3, 5, Some(200))]
    {
        let heads = Heads { query, key_value, size, window };
        let (cache_width, capacity) = (2 * key_value * size, 160);
        // Prompts fill the cache, then each sequence takes one token.
        let documents: Vec<usize> = (0..3).map(|_| extent(random, 150)).collect();
        let (layer, count) = (Layer { heads, documents: documents.clone() }, documents.len());
        let (rows, cu_seqlens) = (layer.rows(), layer.cu_seqlens());
        let prompts = Values::<V>::random(random, rows * heads.row_width());
        let token = Values::<V>::random(random, count * heads.row_width());
        let lengths: Vec<u32> = documents.iter().map(|&length| length as u32).collect();
        let mut cache = vec![V::round(0.0); count * capacity * cache_width];
        let widths = || [unsigned(heads.output_width()), unsigned(cache_width)];
        let [out_width, width] = widths();
        kernels.run(
            &format!("attention_fill_cache_{}", V::SUFFIX),
            Launch::blocks(rows).threads(128),
            &mut [
                input(&prompts.rounded),
                input(&cu_seqlens),
                output(&mut cache),
                unsigned(count),
                unsigned(capacity),
                out_width,
                width,
            ],
        );
        let [out_width, width] = widths();
        kernels.run(
            &format!("attention_append_{}", V::SUFFIX),
            Launch::blocks(count).threads(128),
            &mut [
                input(&token.rounded),
                input(&lengths),
                output(&mut cache),
                unsigned(capacity),
                out_width,
                width,
            ],
        );
        let mut found = unwritten::<V>(count * heads.output_width());
        kernels.run(
            &format!("attention_decode_{}", V::SUFFIX),
            Launch::grid([query, count, 1]).threads(128).shared(5 * size * 4),
            &mut [
                input(&token.rounded),
                input(&cache),
                input(&lengths),
                output(&mut found),
                unsigned(capacity),
                unsigned(query),
                unsigned(key_value),
                unsigned(window.unwrap_or(0)),
                unsigned(size),
            ],
        );

        let (queue, shape) = (Queue::cpu(), [count, capacity, cache_width]);
        let (mut expected_cache, mut expected) = (vec![0.0; cache.len()], vec![0.0; found.len()]);
        let prompts = view(&prompts.exact, [rows, heads.row_width()]);
        attention::fill_cache(
            &queue,
            prompts,
            View::of(&cu_seqlens),
            heads,
            view_mut(&mut expected_cache, shape),
        )
        .unwrap();
        let (token, out) = (
            view(&token.exact, [count, heads.row_width()]),
            view_mut(&mut expected, [count, heads.output_width()]),
        );
        attention::decode(
            &queue,
            token,
            view_mut(&mut expected_cache, shape),
            View::of(&lengths),
            heads,
            out,
        )
        .unwrap();
        assert_eq!(widened(&cache), expected_cache);
        assert_close("output", &found, &expected);
    }
}

#[test]
fn decoding_follows_the_cpu() {
    decoding_follows::<f32>(&mut Random::new(5));
    decoding_follows::<bf16>(&mut Random::new(6));
}

fn splits_follow<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("attention_split");
    for (query, key_value, ranks) in [(4, 4, 2), (4, 2, 4), (8, 1, 4), (3, 3, 1)] {
        let size = extent(random, 24);
        let heads = Heads { query, key_value, size, window: None };
        let tokens = extent(random, 6);
        let block_rows = tokens + below(random, 3);
        for (sections, columns) in [
            ([query, key_value, key_value], Columns::of_qkv(heads, ranks).unwrap()),
            ([query, 0, 0], Columns::of_output(heads, ranks).unwrap()),
        ] {
            let width = columns.width();
            let x = Values::<V>::random(random, tokens * width);
            let blocks = Values::<V>::random(random, ranks * block_rows * columns.share_width());
            let extents = || [block_rows, sections[0], sections[1], sections[2], size, ranks].map(unsigned);
            let (mut packed, mut unpacked) = (blocks.rounded.clone(), unwritten::<V>(tokens * width));
            let mut arguments = vec![input(&x.rounded), output(&mut packed)];
            arguments.extend(extents());
            kernels.run(
                &format!("attention_split_pack_{}", V::SUFFIX),
                Launch::grid([tokens, ranks, 1]),
                &mut arguments,
            );
            let mut arguments = vec![input(&blocks.rounded), output(&mut unpacked)];
            arguments.extend(extents());
            kernels.run(
                &format!("attention_split_unpack_{}", V::SUFFIX),
                Launch::blocks(tokens),
                &mut arguments,
            );

            let (queue, shape) = (Queue::cpu(), [ranks, block_rows, columns.share_width()]);
            let (mut expected, mut expected_y) = (blocks.exact.clone(), vec![0.0; tokens * width]);
            split::pack(&queue, columns, view(&x.exact, [tokens, width]), view_mut(&mut expected, shape))
                .unwrap();
            split::unpack(
                &queue,
                columns,
                view(&blocks.exact, shape),
                view_mut(&mut expected_y, [tokens, width]),
            )
            .unwrap();
            assert_eq!(widened(&packed), expected);
            assert_close("unpacked", &unpacked, &expected_y);
        }
    }
}

#[test]
fn heads_are_dealt_out_as_on_the_cpu() {
    splits_follow::<f32>(&mut Random::new(7));
    splits_follow::<bf16>(&mut Random::new(8));
}
