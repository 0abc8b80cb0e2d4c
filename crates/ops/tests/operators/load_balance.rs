//! The load-balancing loss.

use std::ops::Range;

use tessera_ops::{Float, OpError, Queue, load_balance, router};

use crate::support::{Seeded, assert_close, assert_gradient, unwritten, view, view_mut};

/// One layer's probabilities `[T, E]` and choices `[T, k]`.
struct Layer<T> {
    probabilities: Vec<T>,
    chosen: Vec<u32>,
}

/// Packed rows of tokens that choose among experts.
struct Batch {
    row_starts: Vec<u32>,
    experts: usize,
    choices: usize,
}

impl Batch {
    fn tokens(&self) -> usize {
        self.row_starts[self.row_starts.len() - 1] as usize
    }

    fn rows(&self) -> usize {
        self.row_starts.len() - 1
    }

    fn random(seeded: &mut Seeded) -> Self {
        let experts = seeded.extent(9);
        let mut row_starts = vec![0];
        for _ in 0..seeded.extent(5) {
            // Every third row or so is empty.
            let tokens = seeded.below(3) * seeded.extent(20);
            row_starts.push(row_starts[row_starts.len() - 1] + tokens as u32);
        }
        Self { row_starts, experts, choices: seeded.extent(experts) }
    }

    fn layer<T: Float>(&self, seeded: &mut Seeded) -> Layer<T> {
        let count = self.tokens() * self.experts;
        Layer {
            probabilities: seeded.values::<T>(count).into_iter().map(|value| value * value).collect(),
            chosen: seeded.ids(self.tokens() * self.choices, self.experts),
        }
    }

    /// The counts and sums of all layers, whose tokens come in `parts`.
    fn pooled_in<T: Float>(&self, parts: &[Range<usize>], layers: &[Layer<T>]) -> (Vec<f64>, Vec<f64>) {
        let shape = [self.rows(), self.experts];
        let (mut counts, mut sums) = (vec![0.0; shape[0] * shape[1]], vec![0.0; shape[0] * shape[1]]);
        for (layer, part) in layers.iter().flat_map(|layer| parts.iter().map(move |part| (layer, part))) {
            let (probabilities, chosen) = (
                &layer.probabilities[part.start * self.experts..part.end * self.experts],
                &layer.chosen[part.start * self.choices..part.end * self.choices],
            );
            load_balance::add(
                &Queue::cpu(),
                view(probabilities, [part.len(), self.experts]),
                view(chosen, [part.len(), self.choices]),
                view(&self.row_starts, [self.row_starts.len()]),
                part.clone(),
                view_mut(&mut counts, shape),
                view_mut(&mut sums, shape),
            )
            .unwrap();
        }
        (counts, sums)
    }

    fn pooled<T: Float>(&self, layers: &[Layer<T>]) -> (Vec<f64>, Vec<f64>) {
        self.pooled_in(std::slice::from_ref(&(0..self.tokens())), layers)
    }

    fn loss<T: Float>(&self, layers: &[Layer<T>], scale: f64) -> f64 {
        let (counts, sums) = self.pooled(layers);
        let shape = [self.rows(), self.experts];
        let (counts, sums) = (view(&counts, shape), view(&sums, shape));
        let row_starts = view(&self.row_starts, [self.row_starts.len()]);
        let mut total = [0.5];
        let total_view = view_mut(&mut total, [1]);
        load_balance::loss(&Queue::cpu(), counts, sums, row_starts, layers.len(), scale, total_view).unwrap();
        total[0] - 0.5
    }

    fn gradient<T: Float>(&self, layers: &[Layer<T>], scale: f64) -> Vec<T> {
        self.gradient_in(&(0..self.tokens()), layers, scale).unwrap()
    }

    fn gradient_in<T: Float>(
        &self,
        part: &Range<usize>,
        layers: &[Layer<T>],
        scale: f64,
    ) -> Result<Vec<T>, OpError> {
        let (counts, _) = self.pooled(layers);
        let mut gradient = unwritten(part.len() * self.experts);
        load_balance::backward(
            &Queue::cpu(),
            view(&counts, [self.rows(), self.experts]),
            view(&self.row_starts, [self.row_starts.len()]),
            part.clone(),
            layers.len(),
            scale,
            view_mut(&mut gradient, [part.len(), self.experts]),
        )?;
        Ok(gradient)
    }

    /// The loss of one row, as `load_balancing_loss_func` has it: means over all layers and tokens, for each choice.
    fn naive_row_loss(&self, layers: &[Layer<f64>], row: usize) -> f64 {
        let tokens = self.row_starts[row] as usize..self.row_starts[row + 1] as usize;
        let count = (layers.len() * tokens.len()) as f64;
        let places: Vec<(&Layer<f64>, usize)> =
            layers.iter().flat_map(|layer| tokens.clone().map(move |token| (layer, token))).collect();
        let mut loss = 0.0;
        for expert in 0..self.experts {
            let probability: f64 = places
                .iter()
                .map(|(layer, token)| layer.probabilities[token * self.experts + expert] / count)
                .sum();
            for choice in 0..self.choices {
                let chosen = |&&(layer, token): &&(&Layer<f64>, usize)| {
                    layer.chosen[token * self.choices + choice] as usize == expert
                };
                loss += places.iter().filter(chosen).count() as f64 / count * probability;
            }
        }
        if tokens.is_empty() { 0.0 } else { loss * self.experts as f64 }
    }
}

#[test]
fn agrees_with_the_plain_form() {
    let mut seeded = Seeded::new(1);
    for _ in 0..60 {
        let batch = Batch::random(&mut seeded);
        let layers: Vec<Layer<f64>> = (0..seeded.extent(4)).map(|_| batch.layer(&mut seeded)).collect();
        let expected: f64 = (0..batch.rows()).map(|row| batch.naive_row_loss(&layers, row)).sum();
        let loss = batch.loss(&layers, 0.02);
        assert!((loss - 0.02 * expected).abs() <= 1e-13 * (1.0 + expected), "{loss} {expected}");
    }
}

#[test]
fn backward_is_the_derivative() {
    let mut seeded = Seeded::new(2);
    for _ in 0..30 {
        let batch = Batch::random(&mut seeded);
        let mut layers: Vec<Layer<f64>> = (0..seeded.extent(3)).map(|_| batch.layer(&mut seeded)).collect();
        let gradient = batch.gradient(&layers, 0.3);
        let moved = seeded.below(layers.len());
        let others: Vec<Layer<f64>> = layers.drain(..moved).collect();
        let (layer, rest) = layers.split_first().unwrap();
        assert_gradient("probabilities", &layer.probabilities, &gradient, |probabilities| {
            let copy = |layer: &Layer<f64>, probabilities: &[f64]| Layer {
                probabilities: probabilities.to_vec(),
                chosen: layer.chosen.clone(),
            };
            let all: Vec<Layer<f64>> = std::iter::once(copy(layer, probabilities))
                .chain(others.iter().chain(rest).map(|layer| copy(layer, &layer.probabilities)))
                .collect();
            batch.loss(&all, 0.3)
        });
    }
}

#[test]
fn agrees_with_transformers() {
    // Two layers' logits of five tokens and four experts, of which a token chooses two. `load_balancing_loss_func` of
    // transformers 5.23 gave the losses of the rows of tokens 0..2 and 2..5.
    let logits: [[f32; 20]; 2] = [
        [
            2.0, 0.25, -1.75, 1.5, 1.0, -0.25, -1.75, 1.75, -1.5, -2.0, 0.75, 1.75, -0.5, 1.0, 0.5, 1.25,
            1.25, 0.5, -1.75, 0.25,
        ],
        [
            -0.5, 0.0, -0.75, 2.0, -0.5, -1.75, -1.5, 2.0, 1.0, 0.25, 2.0, 1.25, -1.25, -1.75, -1.5, -0.5,
            2.0, 1.25, 0.5, 1.0,
        ],
    ];
    let layers = logits.map(|mut probabilities| {
        let (mut chosen, mut weights) = (vec![0; 10], vec![0.0_f32; 10]);
        let logits = view_mut(&mut probabilities, [5, 4]);
        let (chosen_view, weights_view) = (view_mut(&mut chosen, [5, 2]), view_mut(&mut weights, [5, 2]));
        router::forward(&Queue::cpu(), logits, Some(1.0), chosen_view, weights_view).unwrap();
        Layer { probabilities: probabilities.to_vec(), chosen }
    });
    let batch = Batch { row_starts: vec![0, 2, 5], experts: 4, choices: 2 };
    let loss = batch.loss(&layers, 1.0);
    assert!((loss - 3.418_303_728_103_637_7 - 2.103_696_823_120_117).abs() < 1e-6, "{loss}");
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let mut seeded = Seeded::new(4);
    let both = Batch { row_starts: vec![0, 7, 7, 20], experts: 5, choices: 2 };
    let layers: Vec<Layer<f32>> = (0..2).map(|_| both.layer(&mut seeded)).collect();
    let gradient = both.gradient(&layers, 1.0);
    let mut loss = 0.0;
    for (start, end) in [(0, 7), (7, 20)] {
        let alone = Batch { row_starts: vec![0, (end - start) as u32], experts: 5, choices: 2 };
        let cut = |layer: &Layer<f32>| Layer {
            probabilities: layer.probabilities[start * 5..end * 5].to_vec(),
            chosen: layer.chosen[start * 2..end * 2].to_vec(),
        };
        let layers: Vec<Layer<f32>> = layers.iter().map(cut).collect();
        assert_close("gradient", &alone.gradient(&layers, 1.0), &gradient[start * 5..end * 5], 0.0);
        loss += alone.loss(&layers, 1.0);
    }
    assert_eq!(both.loss(&layers, 1.0), loss);
}

#[test]
fn parts_of_the_tokens_make_up_the_whole() {
    let mut seeded = Seeded::new(5);
    for _ in 0..40 {
        let batch = Batch::random(&mut seeded);
        let layers: Vec<Layer<f64>> = (0..2).map(|_| batch.layer(&mut seeded)).collect();
        let cut = seeded.below(batch.tokens() + 1);
        let parts = [0..cut, cut..batch.tokens()];
        let ((counts, sums), whole) = (batch.pooled_in(&parts, &layers), batch.pooled(&layers));
        assert_eq!(counts, whole.0);
        assert_close("sums", &sums, &whole.1, 1e-14);
        let gradients = parts.map(|part| batch.gradient_in(&part, &layers, 0.3).unwrap()).concat();
        assert_eq!(gradients, batch.gradient(&layers, 0.3));
    }
}

#[test]
fn a_part_beyond_the_rows_is_refused() {
    let batch = Batch { row_starts: vec![0, 2, 5], experts: 3, choices: 1 };
    let reversed = Range { start: 4, end: 3 };
    for part in [0..6, 5..6, reversed, 6..6, usize::MAX - 1..usize::MAX] {
        let result = batch.gradient_in::<f32>(&part, &[], 1.0);
        assert!(matches!(result, Err(OpError::Shape { argument: "row_starts", .. })), "{part:?}: {result:?}");
    }
}
