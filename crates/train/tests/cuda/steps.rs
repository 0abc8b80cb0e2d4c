//! Training steps of small models of all families: fp32 follows the CPU closely, bf16 as far as its seven bits go.

use std::collections::HashMap;

use tessera_dist::{Residency, Single};
use tessera_model::Compute;
use tessera_ops::cuda::Gpu;
use tessera_ops::{Buffer, DType, Home, Queue};
use tessera_train::engine::{Engine, EngineSettings, OwnNews, StepOutcome};
use tessera_train::spec::Offload;

use crate::golden::{Golden, Kind, parameters, relative};

const CASES: [&str; 9] = [
    "tied_gqa",
    "untied_mha",
    "bias",
    "head_dim",
    "sliding_window",
    "mixtral",
    "mixtral_fused",
    "dbrx",
    "dbrx_euclidean",
];

/// What to allow: of losses, of a gradient, of weights after three steps.
struct Tolerance {
    loss: f64,
    gradient: f64,
    weights: f64,
}

const FP32: Tolerance = Tolerance { loss: 1e-5, gradient: 1e-4, weights: 1e-4 };
/// Rounding to bf16 is 4e-3 at most; a gradient is a sum of products of many such.
const BF16: Tolerance = Tolerance { loss: 1e-2, gradient: 0.1, weights: 1e-2 };
/// A token between two experts may go to the other one, and the gradients of both are then others: of so few tokens a large
/// part. Losses and weights must follow all the same.
const BF16_EXPERTS: Tolerance = Tolerance { loss: 1e-2, gradient: f64::INFINITY, weights: 1e-2 };

/// An engine with the golden's weights on the first GPU.
fn on_gpu(golden: &Golden, dtype: DType, settings: EngineSettings) -> Engine {
    let queue = Queue::cuda(&Gpu::open(0).unwrap()).unwrap();
    let compute = Compute { dtype, home: Home::Gpu };
    golden.engine_on(queue, golden.model().computing(compute), Single, settings)
}

/// What three steps give: gradients of the first, outcomes, weights.
struct Seen {
    gradients: HashMap<String, Vec<f32>>,
    outcomes: Vec<StepOutcome>,
    weights: HashMap<String, Vec<f32>>,
}

fn three_steps(golden: &Golden, mut engine: Engine) -> Seen {
    let mut gradients = HashMap::new();
    let outcomes = (0..3).map(|step| {
        let batch = step % golden.batches.len();
        engine.train_micro_batch(&golden.batches[batch], golden.scale(batch)).unwrap();
        if step == 0 {
            gradients = parameters(&engine, Kind::Gradient);
        }
        engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap()
    });
    let outcomes = outcomes.collect();
    Seen { gradients, outcomes, weights: parameters(&engine, Kind::Weights) }
}

fn follows(case: &str, found: &Seen, expected: &Seen, tolerance: &Tolerance) {
    let close = |what: &str, found: f64, expected: f64| {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance.loss * expected.abs().max(1e-6),
            "{case}: {what} {found}, expected {expected}"
        );
    };
    for (found, expected) in found.outcomes.iter().zip(&expected.outcomes) {
        close("loss", found.loss_sum, expected.loss_sum);
        close("load-balancing loss", found.balance_loss, expected.balance_loss);
        let error = (found.gradient_norm / expected.gradient_norm - 1.0).abs();
        assert!(
            error <= tolerance.gradient,
            "{case}: norm {}, expected {}",
            found.gradient_norm,
            expected.gradient_norm
        );
    }
    for (name, expected) in &expected.gradients {
        let error = relative(&found.gradients[name], expected);
        assert!(error <= tolerance.gradient, "{case}: gradient of {name} is off by {error:e}");
    }
    for (name, expected) in &expected.weights {
        let error = relative(&found.weights[name], expected);
        assert!(error <= tolerance.weights, "{case}: {name} after three steps is off by {error:e}");
    }
}

#[test]
fn fp32_follows_the_cpu() {
    for case in CASES {
        let golden = Golden::open(case);
        let expected = three_steps(&golden, golden.engine(true));
        for recompute in [true, false] {
            let found = three_steps(&golden, on_gpu(&golden, DType::F32, golden.settings(recompute)));
            follows(case, &found, &expected, &FP32);
        }
    }
}

#[test]
fn bf16_follows_the_cpu_in_fp32() {
    for case in CASES {
        let golden = Golden::open(case);
        let expected = three_steps(&golden, golden.engine(true));
        let found = three_steps(&golden, on_gpu(&golden, DType::BF16, golden.settings(true)));
        let tolerance = if golden.numbers.balance_losses.is_some() { &BF16_EXPERTS } else { &BF16 };
        follows(case, &found, &expected, tolerance);
    }
}

#[test]
fn steps_have_the_same_bits_wherever_weights_and_moments_stay_and_whatever_is_computed_again() {
    for case in ["tied_gqa", "mixtral"] {
        let golden = Golden::open(case);
        let settings = golden.settings(true);
        let first = three_steps(&golden, on_gpu(&golden, DType::BF16, settings.clone()));
        let whole = EngineSettings { residency: Residency::WholeStep, ..settings.clone() };
        let kept = EngineSettings { recompute: false, ..settings.clone() };
        let offloaded = EngineSettings { offload: Offload::Optimizer, ..settings.clone() };
        for settings in [settings, whole, kept, offloaded] {
            let again = three_steps(&golden, on_gpu(&golden, DType::BF16, settings));
            assert_eq!(again.weights, first.weights, "{case}");
            assert_eq!(again.outcomes, first.outcomes, "{case}");
        }
    }
}

/// Two steps that are issued before anybody asks for the outcome of the first come to what they come to one by one.
#[test]
fn steps_can_be_issued_before_the_outcome_of_others_is_known() {
    let golden = Golden::open("tied_gqa");
    let engine = || on_gpu(&golden, DType::F32, golden.settings(true));
    let expected = three_steps(&golden, engine());
    let mut engine = engine();
    let mut outcomes = Vec::new();
    let mut before = None;
    for step in 0..3 {
        let batch = step % golden.batches.len();
        engine.train_micro_batch(&golden.batches[batch], golden.scale(batch)).unwrap();
        let ended = engine.end_step(1.0, OwnNews::default(), |_| {}).unwrap();
        outcomes.extend(before.replace(ended).map(|ended| engine.outcome(ended).unwrap()));
    }
    outcomes.extend(before.map(|ended| engine.outcome(ended).unwrap()));
    assert_eq!(outcomes, expected.outcomes);
    assert_eq!(parameters(&engine, Kind::Weights), expected.weights);
}

#[test]
fn moments_lie_where_they_are_to_be() {
    let golden = Golden::open("tied_gqa");
    for offload in [Offload::None, Offload::Optimizer] {
        let engine = on_gpu(&golden, DType::BF16, EngineSettings { offload, ..golden.settings(true) });
        for unit in engine.units().iter() {
            let state = unit.state().read().unwrap();
            let is_on_host = |buffer: &Buffer| buffer.on_host(engine.queue(), DType::F32).unwrap().is_some();
            assert!(!is_on_host(&state.master));
            assert!(state.moments.iter().all(|moment| is_on_host(moment) == (offload == Offload::Optimizer)));
        }
    }
}

#[test]
fn logits_and_evaluations_follow_the_cpu() {
    for case in ["tied_gqa", "mixtral", "dbrx"] {
        let golden = Golden::open(case);
        let (mut cpu, mut gpu) = (golden.engine(true), on_gpu(&golden, DType::F32, golden.settings(true)));
        let prompt = &golden.batches[0].tokens[..5];
        let error =
            relative(&gpu.next_token_logits(prompt).unwrap(), &cpu.next_token_logits(prompt).unwrap());
        assert!(error < 1e-5, "{case}: {error:e}");
        let [on_cpu, on_gpu] = [&mut cpu, &mut gpu].map(|engine| {
            engine.evaluate_micro_batch(&golden.batches[0]).unwrap();
            engine.finish_evaluation().unwrap()
        });
        assert!((on_gpu.loss_sum / on_cpu.loss_sum - 1.0).abs() < 1e-5, "{case}: {on_gpu:?}, {on_cpu:?}");
        assert_eq!(on_gpu.hits, on_cpu.hits, "{case}");
    }
}

#[test]
fn an_index_out_of_bounds_is_refused_before_the_gpu_sees_it() {
    let golden = Golden::open("tied_gqa");
    let mut engine = on_gpu(&golden, DType::F32, golden.settings(true));
    let mut batch = golden.batches[0].clone();
    batch.tokens[3] = 97;
    let error = engine.train_micro_batch(&batch, golden.scale(0)).unwrap_err().to_string();
    assert!(error.contains("index 97 is not below 97"), "{error}");
}
