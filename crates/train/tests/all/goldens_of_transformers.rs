//! Loss, gradients, and twenty steps of AdamW against `transformers` and torch in fp32.

use tessera_model::LossScale;

use crate::golden::{Copying, Golden, Kind, parameters, relative};

const CASES: [&str; 8] = [
    "tied_gqa",
    "untied_mha",
    "llama3_rope",
    "linear_rope",
    "dynamic_rope",
    "bias",
    "head_dim",
    "sliding_window",
];

fn scale(golden: &Golden, batch: usize) -> LossScale {
    LossScale(1.0 / golden.batches[batch].loss_tokens as f64)
}

#[test]
fn loss_and_gradients_agree() {
    for case in CASES {
        let golden = Golden::open(case);
        for recompute in [true, false] {
            let mut engine = golden.engine(recompute);
            engine.train_micro_batch(&golden.batches[0], scale(&golden, 0)).unwrap();
            let gradients = parameters(&engine, Kind::Gradient);
            for (name, gradient) in &gradients {
                let expected = &golden.tensors[&format!("grad.{name}")];
                let error = relative(gradient, expected);
                assert!(error < 1e-4, "{case}: gradient of {name} is off by {error:e}");
            }
            let checked = golden.tensors.keys().filter(|name| name.starts_with("grad.")).count();
            assert_eq!(gradients.len(), checked, "{case}");
            let outcome = engine.finish_step(1.0, false, |_| {}).unwrap();
            let loss = outcome.loss_sum * scale(&golden, 0).0;
            assert!((loss / golden.numbers.loss - 1.0).abs() < 1e-5, "{case}: loss {loss}");
        }
    }
}

#[test]
fn logits_agree() {
    for case in CASES {
        let golden = Golden::open(case);
        let mut engine = golden.engine(true);
        let batch = &golden.batches[0];
        let expected = golden.tensors["logits"].chunks(engine.model().config().vocab_size);
        for (bounds, expected) in batch.cu_seqlens.windows(2).zip(expected) {
            let document = &batch.tokens[bounds[0] as usize..bounds[1] as usize];
            let error = relative(&engine.next_token_logits(document).unwrap(), expected);
            assert!(error < 1e-4, "{case}: {error:e}");
        }
    }
}

#[test]
fn twenty_steps_agree() {
    for case in CASES {
        let golden = Golden::open(case);
        let mut engine = golden.engine(true);
        for step in 0..golden.numbers.losses.len() {
            let batch = step % golden.batches.len();
            engine.train_micro_batch(&golden.batches[batch], scale(&golden, batch)).unwrap();
            let outcome = engine.finish_step(1.0, false, |_| {}).unwrap();
            let loss = outcome.loss_sum * scale(&golden, batch).0;
            let expected = golden.numbers.losses[step];
            assert!((loss / expected - 1.0).abs() < 1e-4, "{case}, step {step}: {loss}, expected {expected}");
            let expected = golden.numbers.gradient_norms[step];
            let error = outcome.gradient_norm / expected - 1.0;
            assert!(error.abs() < 1e-3, "{case}, step {step}: gradient norm off by {error:e}");
            if step == 2 {
                for (name, weights) in parameters(&engine, Kind::Weights) {
                    let Some(expected) = golden.tensors.get(&format!("after3.{name}")) else { continue };
                    let error = relative(&weights, expected);
                    assert!(error < 1e-3, "{case}: {name} after three steps is off by {error:e}");
                }
            }
        }
    }
}

#[test]
fn splitting_a_batch_changes_nothing_but_rounding() {
    let golden = Golden::open("tied_gqa");
    let whole = &golden.batches[0];
    let mut together = golden.engine(true);
    together.train_micro_batch(whole, scale(&golden, 0)).unwrap();
    let mut apart = golden.engine(true);
    for bounds in whole.cu_seqlens.windows(2) {
        let range = bounds[0] as usize..bounds[1] as usize;
        let labels = whole.labels[range.clone()].to_vec();
        let part = tessera_data::MicroBatch {
            loss_tokens: labels.iter().filter(|&&label| label >= 0).count(),
            labels,
            tokens: whole.tokens[range.clone()].to_vec(),
            positions: whole.positions[range.clone()].to_vec(),
            cu_seqlens: vec![0, range.len() as u32],
            row_starts: vec![0, range.len() as u32],
        };
        apart.train_micro_batch(&part, scale(&golden, 0)).unwrap();
    }
    apart
        .train_micro_batch(
            &tessera_data::MicroBatch { cu_seqlens: vec![0], ..Default::default() },
            scale(&golden, 0),
        )
        .unwrap();
    let together = parameters(&together, Kind::Gradient);
    for (name, gradient) in parameters(&apart, Kind::Gradient) {
        assert!(relative(&gradient, &together[&name]) < 1e-5, "{name}");
    }
}

/// The step loop, prefetch included, where nothing is lent: two slots for weights and two for gradients serve the whole model,
/// with the head's weights in a unit of their own and in the embedding's.
#[test]
fn gathered_units_train_as_lent_ones_do() {
    for case in ["tied_gqa", "untied_mha"] {
        let golden = Golden::open(case);
        let mut lent = golden.engine(true);
        let mut gathered = golden.engine_in(Box::new(Copying), true);
        for batch in [0, 1, 2] {
            for engine in [&mut lent, &mut gathered] {
                engine.train_micro_batch(&golden.batches[batch], scale(&golden, batch)).unwrap();
                engine.evaluate_micro_batch(&golden.batches[3]).unwrap();
                engine.finish_step(1.0, false, |_| {}).unwrap();
            }
        }
        let lent = parameters(&lent, Kind::Weights);
        for (name, weights) in parameters(&gathered, Kind::Weights) {
            let error = relative(&weights, &lent[&name]);
            assert!(error < 1e-5, "{case}: {name} is off by {error:e}");
        }
    }
}
