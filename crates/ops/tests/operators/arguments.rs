//! Wrong arguments are errors, never a panic; empty ones are no work.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tessera_ops::attention::split::{self, Columns};
use tessera_ops::attention::{self, Heads};
use tessera_ops::experts::linear::WeightLayout;
use tessera_ops::experts::{self, ExpertRows, activation, linear as expert_linear};
use tessera_ops::{
    Arena, Buffer, DType, OpError, Queue, View, ViewMut, adamw, bias, clamp, cross_entropy, embedding, fill,
    layer_norm, linear, lion, load_balance, random, rms_norm, rope, router, rows, squared_norm, step, swiglu,
};

use crate::attention::heads;
use crate::support::{view, view_mut};

use DType::{F32, F64, U32};

/// One argument of an operator; `free` is an axis along which it may be longer than the others say.
#[derive(Clone)]
struct Argument {
    dtype: DType,
    extents: Vec<usize>,
    free: Option<usize>,
    /// Whether it may hold either kind of floats, since no other argument must hold the same.
    either_float: bool,
    /// The content, if it is not zeros.
    content: Vec<u32>,
}

fn argument(dtype: DType, extents: impl Into<Vec<usize>>) -> Argument {
    Argument { dtype, extents: extents.into(), free: None, either_float: false, content: Vec::new() }
}

impl Argument {
    fn free(self, axis: usize) -> Self {
        Self { free: Some(axis), ..self }
    }

    fn either_float(self) -> Self {
        Self { either_float: true, ..self }
    }

    fn containing(self, content: Vec<u32>) -> Self {
        Self { content, ..self }
    }

    fn buffer(&self) -> Buffer {
        let elements: usize = self.extents.iter().product();
        let mut buffer = Buffer::zeroed(elements * self.dtype.size()).unwrap();
        if self.dtype == U32 && self.content.len() <= elements {
            buffer.view_mut(U32).as_slice_mut::<u32>().unwrap()[..self.content.len()]
                .copy_from_slice(&self.content);
        }
        buffer
    }

    /// This argument with one extent longer or shorter, with another rank, with no columns, with another dtype.
    fn wrong(&self) -> Vec<Self> {
        let mut wrong: Vec<Self> = [F32, F64, U32, DType::I32]
            .into_iter()
            .filter(|&dtype| dtype != self.dtype && !(self.either_float && dtype == F64))
            .map(|dtype| Self { dtype, ..self.clone() })
            .collect();
        let mut shapes: Vec<Vec<usize>> = Vec::new();
        for axis in (0..self.extents.len()).filter(|&axis| self.free != Some(axis)) {
            for extent in [Some(self.extents[axis] + 1), self.extents[axis].checked_sub(1)] {
                let mut extents = self.extents.clone();
                extents[axis] = extent.unwrap_or(2);
                shapes.push(extents);
            }
        }
        if self.free.is_none() || self.extents.len() > 1 {
            shapes.push([self.extents.as_slice(), &[1]].concat());
            shapes.push([self.extents[..self.extents.len() - 1].to_vec(), vec![0]].concat());
        }
        shapes.retain(|extents| *extents != self.extents);
        wrong.extend(shapes.into_iter().map(|extents| Self { extents, ..self.clone() }));
        wrong
    }
}

type Run = fn(&Queue, &mut [ViewMut<'_>]) -> Result<(), OpError>;

struct Operator {
    name: &'static str,
    arguments: Vec<Argument>,
    run: Run,
}

fn call(operator: &Operator, arguments: &[Argument]) -> Result<(), OpError> {
    let mut buffers: Vec<Buffer> = arguments.iter().map(Argument::buffer).collect();
    let mut views: Vec<ViewMut<'_>> = buffers
        .iter_mut()
        .zip(arguments)
        .map(|(buffer, argument)| {
            let view = buffer.view_mut(argument.dtype);
            match *argument.extents.as_slice() {
                [a] => view.reshape([a]),
                [a, b] => view.reshape([a, b]),
                [a, b, c] => view.reshape([a, b, c]),
                [a, b, c, d] => view.reshape([a, b, c, d]),
                _ => unreachable!("a rank from 1 to 4"),
            }
            .unwrap()
        })
        .collect();
    (operator.run)(&Queue::cpu(), &mut views)
}

const ADAMW: adamw::Hyperparameters =
    adamw::Hyperparameters { learning_rate: 0.1, betas: (0.9, 0.99), epsilon: 1e-8, decay: 0.0 };
const LION: lion::Hyperparameters =
    lion::Hyperparameters { learning_rate: 0.1, betas: (0.9, 0.99), decay: 0.0 };
const HEADS: Heads = Heads { query: 4, key_value: 2, size: 6, window: None };

/// An operator whose call `$call` sees its arguments as views, read-only ones and mutable ones apart.
macro_rules! operator {
    ($name:path, [$($input:ident = $input_argument:expr),*], [$($output:ident = $output_argument:expr),*],
     $queue:ident => $call:expr) => {
        Operator {
            name: stringify!($name),
            arguments: vec![$($input_argument,)* $($output_argument,)*],
            run: |$queue, views| {
                let [$($input,)* $($output,)*] = views else { unreachable!("as many views as arguments") };
                $(let $input = $input.as_view();)*
                $(let $output = $output.reborrow();)*
                $call
            },
        }
    };
}

/// Every operator with arguments that fit, for `t` rows.
fn operators(t: usize) -> Vec<Operator> {
    [row_operators(t), table_operators(t), attention_operators(t), mixture_operators(t), flat_operators(t)]
        .into_iter()
        .flatten()
        .collect()
}

fn row_operators(t: usize) -> Vec<Operator> {
    let (inputs, outputs) = (10, 14);
    vec![
        operator!(linear::forward, [x = argument(F32, [t, inputs]), w = argument(F32, [outputs, inputs])],
            [y = argument(F32, [t, outputs])], queue => linear::forward(queue, x, w, y)),
        operator!(linear::forward_add, [x = argument(F32, [t, inputs]), w = argument(F32, [outputs, inputs])],
            [y = argument(F32, [t, outputs])], queue => linear::forward_add(queue, x, w, y)),
        operator!(linear::backward_input, [dy = argument(F32, [t, outputs]), w = argument(F32, [outputs, inputs])],
            [dx = argument(F32, [t, inputs])], queue => linear::backward_input(queue, dy, w, dx)),
        operator!(linear::backward_weight, [dy = argument(F32, [t, outputs]), x = argument(F32, [t, inputs])],
            [dw = argument(F32, [outputs, inputs])], queue => linear::backward_weight(queue, dy, x, dw)),
        operator!(bias::forward, [b = argument(F32, [inputs])], [y = argument(F32, [t, inputs]).free(0)],
            queue => bias::forward(queue, b, y)),
        operator!(bias::backward, [dy = argument(F32, [t, inputs]).free(0)], [db = argument(F32, [inputs])],
            queue => bias::backward(queue, dy, db)),
        operator!(rms_norm::forward, [x = argument(F32, [t, inputs]), w = argument(F32, [inputs])],
            [y = argument(F32, [t, inputs]), r = argument(F32, [t])],
            queue => rms_norm::forward(queue, x, w, 1e-5, y, r)),
        operator!(rms_norm::backward,
            [dy = argument(F32, [t, inputs]), x = argument(F32, [t, inputs]), w = argument(F32, [inputs]),
             r = argument(F32, [t])],
            [dx = argument(F32, [t, inputs]), dw = argument(F32, [inputs])],
            queue => rms_norm::backward(queue, dy, x, w, r, dx, dw)),
        operator!(swiglu::forward, [gate_up = argument(F32, [t, 2 * inputs])], [a = argument(F32, [t, inputs])],
            queue => swiglu::forward(queue, gate_up, a)),
        operator!(swiglu::backward, [da = argument(F32, [t, inputs])], [gate_up = argument(F32, [t, 2 * inputs])],
            queue => swiglu::backward(queue, da, gate_up)),
        operator!(cross_entropy::forward, [targets = argument(U32, [t])],
            [z = argument(F32, [t, inputs]).free(1).either_float(), s = argument(F64, [2])],
            queue => cross_entropy::forward(queue, z, targets, s)),
        operator!(cross_entropy::forward_backward, [targets = argument(U32, [t])],
            [z = argument(F32, [t, inputs]).free(1).either_float(), s = argument(F64, [2])],
            queue => cross_entropy::forward_backward(queue, z, targets, 1.0, s)),
    ]
}

fn table_operators(t: usize) -> Vec<Operator> {
    let (vocabulary, width) = (9, 10);
    let table = argument(F32, [vocabulary, width]).free(0);
    let tokens = argument(U32, [t]);
    let x = argument(F32, [t, width]);
    vec![
        operator!(embedding::forward, [tokens = tokens.clone(), w = table.clone()], [x = x.clone()],
            queue => embedding::forward(queue, tokens, w, x)),
        operator!(embedding::backward, [tokens = tokens.clone(), dx = x.clone()], [dw = table.clone()],
            queue => embedding::backward(queue, tokens, dx, dw)),
        operator!(rows::gather, [x = table.clone(), index = tokens.clone()], [y = x.clone()],
            queue => rows::gather(queue, x, index, y)),
        operator!(rows::scatter, [y = x.clone(), index = tokens.clone()], [x = table.clone()],
            queue => rows::scatter(queue, y, index, x)),
        operator!(rope::forward, [positions = tokens.clone(), table = table.clone()],
            [x = argument(F32, [t, 2 * width]).free(1)], queue => rope::forward(queue, x, 2, positions, table)),
        operator!(rope::backward, [positions = tokens.clone(), table = table.clone()],
            [x = argument(F32, [t, 2 * width]).free(1)], queue => rope::backward(queue, x, 2, positions, table)),
    ]
}

fn attention_operators(t: usize) -> Vec<Operator> {
    let qkv = argument(F32, [t, HEADS.row_width()]);
    let output = argument(F32, [t, HEADS.output_width()]);
    let log_sum_exp = argument(F32, [t, HEADS.query]);
    // A longer list of zeros is a list of empty documents, right where there are no rows.
    let bounds = argument(U32, [2]).free(0).containing(vec![0, t as u32]);
    let scratch = argument(F32, [attention::backward_scratch(tessera_ops::Home::Host, HEADS, t)]);
    let blocks = argument(F32, [2, t, HEADS.output_width() / 2]).free(1);
    let cache = argument(F32, [t, 3, 2 * HEADS.key_value * HEADS.size]).free(1);
    vec![
        operator!(attention::forward, [qkv = qkv.clone(), bounds = bounds.clone()],
            [output = output.clone(), l = log_sum_exp.clone()],
            queue => attention::forward(queue, qkv, bounds, HEADS, output, l)),
        operator!(attention::backward,
            [d = output.clone(), qkv = qkv.clone(), o = output.clone(), l = log_sum_exp.clone(),
             bounds = bounds.clone()],
            [dqkv = qkv.clone(), scratch = scratch.clone()],
            queue => attention::backward(queue, d, qkv, o, l, bounds, HEADS, dqkv, scratch)),
        operator!(attention::decode, [qkv = qkv.clone(), lengths = argument(U32, [t])],
            [cache = cache.clone(), output = output.clone()],
            queue => attention::decode(queue, qkv, cache, lengths, HEADS, output)),
        operator!(attention::fill_cache, [qkv = qkv.clone(), bounds = bounds.clone()],
            [cache = argument(F32, [1, t + 1, 2 * HEADS.key_value * HEADS.size]).free(1)],
            queue => attention::fill_cache(queue, qkv, bounds, HEADS, cache)),
        operator!(split::pack, [x = output.clone().free(0)], [blocks = blocks.clone()],
            queue => split::pack(queue, Columns::of_output(HEADS, 2)?, x, blocks)),
        operator!(split::unpack, [blocks = blocks.clone()], [y = output.clone().free(0)],
            queue => split::unpack(queue, Columns::of_output(HEADS, 2)?, blocks, y)),
    ]
}

/// Choices of each token.
const CHOICES: usize = 2;
const STORED: WeightLayout = WeightLayout::OutputsInputs;

/// A group of two experts, the second of which has no rows.
fn group(offsets: View<'_>) -> ExpertRows<'_> {
    ExpertRows { offsets, experts: 0..2 }
}

/// The part of a batch that is all of it.
fn all_rows(matrix: View<'_>) -> std::ops::Range<usize> {
    0..matrix.shape().extents()[0]
}

fn mixture_operators(t: usize) -> Vec<Operator> {
    let (width, size, slots_count) = (10, 4, t * CHOICES);
    let x = argument(F32, [t, width]);
    let statistic = argument(F32, [t]);
    let probabilities = argument(F32, [t, 3]);
    let chosen = argument(U32, [t, CHOICES]);
    let weights = argument(F32, [t, CHOICES]);
    let row_starts = argument(U32, [2]).containing(vec![0, t as u32]);
    let pooled = argument(F64, [1, 3]);
    let slots = argument(U32, [slots_count]).containing((0..slots_count as u32).collect());
    let offsets = argument(U32, [3]).free(0).containing(vec![0, slots_count as u32, slots_count as u32]);
    let (sorted, features) = (argument(F32, [slots_count, width]), argument(F32, [slots_count, size]));
    let (weight, hidden) = (argument(F32, [2 * size, width]), argument(F32, [slots_count, 2 * size]));
    vec![
        operator!(layer_norm::forward, [x = x.clone(), w = argument(F32, [width])],
            [y = x.clone(), m = statistic.clone(), s = statistic.clone()],
            queue => layer_norm::forward(queue, x, w, 1e-5, y, m, s)),
        operator!(layer_norm::backward,
            [dy = x.clone(), x = x.clone(), w = argument(F32, [width]), m = statistic.clone(), s = statistic.clone()],
            [dx = x.clone(), dw = argument(F32, [width])],
            queue => layer_norm::backward(queue, dy, x, w, m, s, dx, dw)),
        operator!(clamp::forward, [], [x = x.clone().free(1).either_float(), inside = argument(U32, [t, 1])],
            queue => clamp::forward(queue, x, 8.0, inside)),
        operator!(clamp::backward, [inside = argument(U32, [t, 1])], [dx = x.clone().free(1).either_float()],
            queue => clamp::backward(queue, dx, inside)),
        operator!(router::forward, [], [z = probabilities.clone().free(1), c = chosen.clone(), w = weights.clone()],
            queue => router::forward(queue, z, Some(1.0), c, w)),
        operator!(router::backward, [dw = weights.clone(), p = probabilities.clone(), c = chosen.clone()],
            [dp = probabilities.clone()], queue => router::backward(queue, dw, p, c, Some(1.0), dp)),
        operator!(load_balance::add,
            [p = probabilities.clone().either_float(), c = chosen.clone().free(1), starts = row_starts.clone()],
            [counts = pooled.clone(), sums = pooled.clone()],
            queue => load_balance::add(queue, p, c, starts, all_rows(p), counts, sums)),
        operator!(load_balance::loss, [counts = pooled.clone(), sums = pooled.clone(), starts = row_starts.clone()],
            [total = argument(F64, [1])], queue => load_balance::loss(queue, counts, sums, starts, 2, 0.1, total)),
        operator!(load_balance::backward, [counts = pooled.clone(), starts = row_starts.clone()],
            [dp = probabilities.clone().free(0).either_float()],
            queue => load_balance::backward(queue, counts, starts, all_rows(dp.as_view()), 2, 0.1, dp)),
        operator!(experts::sort, [c = chosen.free(1)],
            [s = slots.clone(), places = slots.clone(), o = argument(U32, [3]).free(0)],
            queue => experts::sort(queue, c, s, places, o)),
        operator!(experts::gather, [x = x.clone(), s = slots.clone(), o = offsets.clone()], [y = sorted.clone()],
            queue => experts::gather(queue, x, s, CHOICES, &group(o), y)),
        operator!(experts::combine, [x = sorted.clone(), s = slots.clone(), places = slots.clone(), o = offsets.clone()],
            [y = x], queue => experts::combine(queue, x, s, places, CHOICES, &group(o), y)),
        operator!(expert_linear::forward, [x = sorted.clone(), w = weight.clone(), o = offsets.clone()],
            [y = features.clone()], queue => expert_linear::forward(queue, x, w, STORED, &group(o), y)),
        operator!(expert_linear::backward_input, [dy = features.clone(), w = weight.clone(), o = offsets.clone()],
            [dx = sorted.clone()], queue => expert_linear::backward_input(queue, dy, w, STORED, &group(o), dx)),
        operator!(expert_linear::backward_weight, [dy = features.clone(), x = sorted, o = offsets.clone()],
            [dw = weight], queue => expert_linear::backward_weight(queue, dy, x, STORED, &group(o), dw)),
        operator!(activation::forward,
            [g = hidden.clone(), w = weights.clone().free(1), s = slots.clone(), o = offsets.clone()],
            [a = features.clone()], queue => activation::forward(queue, g, w, s, &group(o), a)),
        operator!(activation::backward, [da = features, w = weights.clone(), s = slots, o = offsets],
            [g = hidden, dw = weights], queue => activation::backward(queue, da, w, s, &group(o), g, dw)),
    ]
}

fn flat_operators(n: usize) -> Vec<Operator> {
    let flat = argument(F32, [n]);
    let decision = argument(F64, [step::decision::COUNT]);
    vec![
        operator!(adamw::update, [g = flat.clone(), decision = decision.clone()],
        [p = flat.clone(), m = flat.clone(), v = flat.clone(), r = argument(DType::BF16, [n])],
        queue => {
            let state = adamw::State { parameters: p, first_moment: m, second_moment: v, rounded: Some(r) };
            adamw::update(queue, state, g, usize::MAX, ADAMW, decision)
        }),
        operator!(lion::update, [g = flat.clone(), decision = decision.clone()],
            [p = flat.clone(), m = flat.clone()],
            queue => lion::update(queue, p, g, m, usize::MAX, LION, decision)),
        operator!(fill::copy, [from = flat.clone()], [to = flat.clone()], queue => fill::copy(queue, from, to)),
        operator!(step::decide, [s = argument(F64, [step::statistic::COUNT])], [d = decision.clone()],
            queue => step::decide(queue, s, 1.0, d)),
    ]
}

#[test]
fn right_arguments_are_taken() {
    for operator in operators(3).iter().chain(&operators(1)) {
        call(operator, &operator.arguments).unwrap_or_else(|error| panic!("{}: {error}", operator.name));
    }
}

#[test]
fn no_rows_are_no_work() {
    for operator in operators(0) {
        call(&operator, &operator.arguments).unwrap_or_else(|error| panic!("{}: {error}", operator.name));
    }
}

#[test]
fn one_wrong_argument_is_an_error() {
    for rows in [0, 3] {
        for operator in operators(rows) {
            for position in 0..operator.arguments.len() {
                for wrong in operator.arguments[position].wrong() {
                    let mut arguments = operator.arguments.clone();
                    let what = format!(
                        "{} of {rows} rows, argument {position}: {} {:?}",
                        operator.name, wrong.dtype, wrong.extents
                    );
                    arguments[position] = wrong;
                    match catch_unwind(AssertUnwindSafe(|| call(&operator, &arguments))) {
                        Ok(Err(_)) => {}
                        Ok(Ok(())) => panic!("{what} was taken"),
                        Err(_) => panic!("{what} made a panic"),
                    }
                }
            }
        }
    }
}

#[test]
fn operators_of_floats_refuse_integers() {
    let queue = Queue::cpu();
    let mut tokens = [1_u32, 2];
    let mut total = [0.0_f64];
    assert!(fill::zero(&queue, ViewMut::of(&mut tokens)).is_err());
    assert!(random::normal(1, 0, 1.0, ViewMut::of(&mut tokens)).is_err());
    assert!(squared_norm::add(&queue, View::of(&tokens), ViewMut::of(&mut total)).is_err());
    assert!(squared_norm::add(&queue, View::of(&[1.0_f32]), ViewMut::of(&mut [0.0_f32])).is_err());
    assert!(rope::fill_table(&[1.0], view_mut(&mut tokens, [1, 2])).is_err());
    assert!(rope::fill_table(&[1.0, 2.0], view_mut(&mut [0.0_f32; 2], [1, 2])).is_err());
}

#[test]
fn indices_must_be_below_their_bound() {
    let queue = Queue::cpu();
    for bad in [9_u32, u32::MAX] {
        for operator in table_operators(3).iter().chain(&attention_operators(3)[2..3]) {
            let arguments: Vec<Argument> = operator
                .arguments
                .iter()
                .map(|argument| match argument.dtype {
                    U32 => argument.clone().containing(vec![0, bad, 1]),
                    _ => argument.clone(),
                })
                .collect();
            let result = call(operator, &arguments);
            assert!(matches!(result, Err(OpError::Index { .. })), "{}: {result:?}", operator.name);
        }
        let (mut logits, mut statistics) = ([0.0_f32; 9], [0.0; 2]);
        let logits = view_mut(&mut logits, [1, 9]);
        let result = cross_entropy::forward(&queue, logits, View::of(&[bad]), ViewMut::of(&mut statistics));
        assert!(matches!(result, Err(OpError::Index { index, bound: 9, .. }) if index == bad as usize));
    }
}

#[test]
fn documents_must_cover_the_rows_in_order() {
    let attend = |cu_seqlens: &[u32]| {
        let (mut output, mut log_sum_exp) = (vec![0.0_f32; 3 * HEADS.output_width()], [0.0_f32; 12]);
        attention::forward(
            &Queue::cpu(),
            view(&vec![0.0_f32; 3 * HEADS.row_width()], [3, HEADS.row_width()]),
            View::of(cu_seqlens),
            HEADS,
            view_mut(&mut output, [3, HEADS.output_width()]),
            view_mut(&mut log_sum_exp, [3, 4]),
        )
    };
    for right in [&[0, 3][..], &[0, 1, 1, 3], &[0, 0, 3, 3]] {
        attend(right).unwrap();
    }
    for wrong in [&[][..], &[0], &[3], &[0, 2], &[1, 3], &[0, 4], &[0, 2, 1, 3], &[0, u32::MAX, 3]] {
        assert!(matches!(attend(wrong), Err(OpError::Shape { .. })), "{wrong:?}");
    }
}

#[test]
fn prompts_must_fit_in_the_cache() {
    let width = HEADS.row_width();
    let fill = |capacity: usize| {
        let cached_width = width - HEADS.output_width();
        let mut cache = vec![0.0_f32; 2 * capacity * cached_width];
        let cache = view_mut(&mut cache, [2, capacity, cached_width]);
        let qkv = vec![0.0_f32; 5 * width];
        attention::fill_cache(&Queue::cpu(), view(&qkv, [5, width]), View::of(&[0, 2, 5_u32]), HEADS, cache)
    };
    fill(3).unwrap();
    assert!(matches!(fill(2), Err(OpError::Index { index: 2, bound: 2, .. })));
}

#[test]
fn impossible_heads_are_refused() {
    let possible = heads(4, 2, 6, Some(1));
    for impossible in [
        Heads { query: 0, ..possible },
        Heads { key_value: 0, ..possible },
        Heads { size: 0, ..possible },
        Heads { window: Some(0), ..possible },
        Heads { key_value: 3, ..possible },
        Heads { query: 1, key_value: 2, ..possible },
    ] {
        let width = impossible.row_width();
        let (mut output, mut log_sum_exp) = (vec![], vec![]);
        let result = attention::forward(
            &Queue::cpu(),
            view::<f32>(&[], [0, width]),
            View::of(&[0_u32]),
            impossible,
            view_mut::<f32>(&mut output, [0, impossible.output_width()]),
            view_mut::<f32>(&mut log_sum_exp, [0, impossible.query]),
        );
        assert!(matches!(result, Err(OpError::Heads { .. })), "{impossible:?}");
    }
}

#[test]
fn a_rotation_needs_pairs_that_fit_in_the_row() {
    let turn = |heads: usize, table_width: usize| {
        let table = vec![0.0_f32; table_width];
        let table = view(&table, [1, table_width]);
        rope::forward(&Queue::cpu(), view_mut(&mut [0.0_f32; 12], [1, 12]), heads, View::of(&[0_u32]), table)
    };
    turn(3, 4).unwrap();
    turn(0, 4).unwrap();
    for (heads, table_width) in [(4, 4), (2, 5), (usize::MAX, 4)] {
        assert!(matches!(turn(heads, table_width), Err(OpError::Shape { .. })), "{heads} {table_width}");
    }
}

#[test]
fn absurd_sizes_are_errors() {
    let nothing: [f32; 0] = [];
    assert!(View::of(&nothing).reshape([usize::MAX, usize::MAX]).is_err());
    assert!(View::of(&nothing).reshape([1 << 32, 1 << 32]).is_err());
    assert!(matches!(Buffer::zeroed(usize::MAX), Err(OpError::OutOfMemory { .. })));
    let mut buffer = Buffer::zeroed(256).unwrap();
    let mut arena: Arena<'_> = buffer.arena();
    for extents in [[usize::MAX, 1], [usize::MAX, 8], [usize::MAX / 4, 1]] {
        assert!(matches!(arena.take(F32, extents), Err(OpError::ArenaExhausted { .. })));
    }
    arena.take(F32, [64]).unwrap();
}
