//! Loss, gradients, and twenty steps of AdamW against `transformers` and torch in fp32.

use tessera_train::engine::OwnNews;

use crate::golden::{Golden, Kind, gathering, parameters, relative, rows};

const CASES: [&str; 14] = [
    "tied_gqa",
    "untied_mha",
    "llama3_rope",
    "linear_rope",
    "dynamic_rope",
    "bias",
    "head_dim",
    "sliding_window",
    "mixtral",
    "mixtral_window",
    "mixtral_fused",
    "dbrx",
    "dbrx_unnormalised",
    "dbrx_euclidean",
];

#[test]
fn losses_and_gradients_agree() {
    for case in CASES {
        let golden = Golden::open(case);
        for recompute in [true, false] {
            let mut engine = golden.engine(recompute);
            engine.train_micro_batch(&golden.batches[0], golden.scale(0)).unwrap();
            let gradients = parameters(&engine, Kind::Gradient);
            for (name, gradient) in &gradients {
                let expected = &golden.tensors[&format!("grad.{name}")];
                let error = relative(gradient, expected);
                assert!(error < 1e-4, "{case}: gradient of {name} is off by {error:e}");
            }
            let checked = golden.tensors.keys().filter(|name| name.starts_with("grad.")).count();
            assert_eq!(gradients.len(), checked, "{case}");
            let outcome = engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
            let loss = outcome.loss_sum * golden.scale(0).token;
            assert!((loss / golden.numbers.loss - 1.0).abs() < 1e-5, "{case}: loss {loss}");
            let expected = golden.numbers.balance_losses.as_ref().map_or(0.0, |losses| losses[0]);
            let error = (outcome.balance_loss - expected).abs();
            assert!(error <= 1e-5 * expected, "{case}: load-balancing loss {}", outcome.balance_loss);
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
        let numbers = &golden.numbers;
        let mut engine = golden.engine(true);
        for step in 0..numbers.losses.len() {
            let batch = step % golden.batches.len();
            engine.train_micro_batch(&golden.batches[batch], golden.scale(batch)).unwrap();
            let outcome = engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
            let agrees = |what: &str, found: f64, expected: f64, limit: f64| {
                let error = (found - expected).abs();
                assert!(
                    error <= limit * expected,
                    "{case}, step {step}: {what} {found}, expected {expected}"
                );
            };
            agrees("loss", outcome.loss_sum * golden.scale(batch).token, numbers.losses[step], 1e-4);
            agrees("gradient norm", outcome.gradient_norm, numbers.gradient_norms[step], 1e-3);
            if let Some(balance_losses) = &numbers.balance_losses {
                agrees("load-balancing loss", outcome.balance_loss, balance_losses[step], 1e-4);
            }
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

/// Where one of the rows is empty.
#[test]
fn splitting_a_batch_changes_nothing_but_rounding() {
    const BATCH: usize = 2;
    for case in ["tied_gqa", "mixtral_window", "dbrx_unnormalised"] {
        let golden = Golden::open(case);
        let whole = &golden.batches[BATCH];
        let mut together = golden.engine(true);
        together.train_micro_batch(whole, golden.scale(BATCH)).unwrap();
        let mut apart = golden.engine(true);
        for row in rows(whole) {
            apart.train_micro_batch(&row, golden.scale(BATCH)).unwrap();
        }
        let gradients = parameters(&together, Kind::Gradient);
        for (name, gradient) in parameters(&apart, Kind::Gradient) {
            let error = relative(&gradient, &gradients[&name]);
            assert!(error < 1e-5, "{case}: gradient of {name} is off by {error:e}");
        }
        let [together, apart] =
            [together, apart].map(|mut engine| engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap());
        assert!((apart.loss_sum / together.loss_sum - 1.0).abs() < 1e-6, "{case}");
        let error = (apart.balance_loss - together.balance_loss).abs();
        assert!(error <= 1e-6 * together.balance_loss, "{case}: load-balancing loss is off by {error:e}");
    }
}

#[test]
fn working_in_chunks_changes_nothing_but_rounding() {
    for case in ["tied_gqa", "bias", "mixtral", "dbrx"] {
        let golden = Golden::open(case);
        let run = |mut engine: tessera_train::engine::Engine| {
            engine.train_micro_batch(&golden.batches[0], golden.scale(0)).unwrap();
            parameters(&engine, Kind::Gradient)
        };
        let whole = run(golden.engine(true));
        for (name, gradient) in run(golden.engine_in_chunks(7)) {
            let error = relative(&gradient, &whole[&name]);
            assert!(error < 1e-5, "{case}: gradient of {name} is off by {error:e}");
        }
    }
}

/// The step loop, prefetch included, where nothing is lent: two slots for weights and two for gradients serve the whole model,
/// with the head's weights in a unit of their own and in the embedding's.
#[test]
fn gathered_units_train_as_lent_ones_do() {
    for case in ["tied_gqa", "untied_mha", "mixtral", "dbrx"] {
        let golden = Golden::open(case);
        let mut lent = golden.engine(true);
        let mut gathered = golden.engine_in(gathering(), true);
        for batch in [0, 1, 2] {
            for engine in [&mut lent, &mut gathered] {
                engine.train_micro_batch(&golden.batches[batch], golden.scale(batch)).unwrap();
                engine.evaluate_micro_batch(&golden.batches[3]).unwrap();
                engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
            }
        }
        let lent = parameters(&lent, Kind::Weights);
        for (name, weights) in parameters(&gathered, Kind::Weights) {
            let error = relative(&weights, &lent[&name]);
            assert!(error < 1e-5, "{case}: {name} is off by {error:e}");
        }
    }
}
