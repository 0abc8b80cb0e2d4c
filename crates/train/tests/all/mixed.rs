//! Mixed precision on CPUs: factors of products rounded to bf16, all else as in fp32.

use tessera_dist::Single;
use tessera_ops::{Factors, Queue};
use tessera_train::engine::{Engine, OwnNews};
use tessera_train::run::Outcome;

use crate::golden::{Golden, Kind, parameters, relative};
use crate::tiny::Tiny;

const CASES: [&str; 8] =
    ["tied_gqa", "untied_mha", "llama3_rope", "bias", "sliding_window", "mixtral", "mixtral_fused", "dbrx"];

fn engine(golden: &Golden, factors: Factors) -> Engine {
    let queue = Queue::cpu().with_factors(factors);
    golden.engine_on(queue, golden.model(), Single, golden.settings(true))
}

/// The loss of a step over the batch with this index, and its update.
fn step(golden: &Golden, engine: &mut Engine, batch: usize) -> f64 {
    engine.train_micro_batch(&golden.batches[batch], golden.scale(batch)).unwrap();
    let outcome = engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
    assert!(outcome.gradient_norm.is_finite());
    outcome.loss_sum * golden.scale(batch).token
}

/// A rounded factor is off by up to 2⁻⁹ of itself, about 1.1e-3 in the mean square, and errors of products one after another add
/// up. Gradients of norms are sums over tokens of terms that mostly cancel, which magnifies them: 3.3e-2 has been seen. Ten per cent
/// still tells a gradient from one whose factors are mixed up, which would be off by about as much as it is long. A token between two experts may go to the
/// other one, and the gradients of both are then others, of so few tokens a large part: as on GPUs, those of models with experts are
/// not held, but for being finite.
#[test]
fn losses_and_gradients_are_near_those_of_fp32() {
    for case in CASES {
        let golden = Golden::open(case);
        let mut engines = [Factors::Exact, Factors::Bf16].map(|factors| engine(&golden, factors));
        for engine in &mut engines {
            engine.train_micro_batch(&golden.batches[0], golden.scale(0)).unwrap();
        }
        let [exact, rounded] = [0, 1].map(|index| parameters(&engines[index], Kind::Gradient));
        let limit = if golden.numbers.balance_losses.is_some() { f64::INFINITY } else { 0.1 };
        let mut worst = 0.0_f64;
        for (name, gradient) in &rounded {
            let error = relative(gradient, &exact[name]);
            worst = worst.max(error);
            assert!(error < limit, "{case}: gradient of {name} is off by {error:e}");
        }
        assert!(worst > 1e-4, "{case}: nothing was rounded");
        let [exact, rounded] =
            engines.map(|mut engine| engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap().loss_sum);
        assert!((rounded / exact - 1.0).abs() < 1e-2, "{case}: loss {rounded}, in fp32 {exact}");
    }
}

/// Twenty steps on the same few batches, which the model learns by heart. What tells the curves apart grows as they go: 1.7e-3 in the
/// first step, 5e-3 in the eleventh and 1.3e-2 in the nineteenth have been seen.
#[test]
fn twenty_steps_follow_those_of_fp32() {
    for case in CASES {
        let golden = Golden::open(case);
        let mut rounded = engine(&golden, Factors::Bf16);
        for (index, expected) in golden.numbers.losses.iter().enumerate() {
            let loss = step(&golden, &mut rounded, index % golden.batches.len());
            let limit = if index < 10 { 1e-2 } else { 5e-2 };
            assert!(
                (loss / expected - 1.0).abs() < limit,
                "{case}, step {index}: {loss}, in fp32 {expected}"
            );
        }
    }
}

const MIXED: [&str; 2] = ["precision=amp_bf16", "devices=cpu"];

#[test]
fn a_run_stopped_anywhere_and_resumed_is_the_same_run() {
    for tiny in [Tiny::new(), Tiny::mixture()] {
        tiny.train(&["run_name=exact"], None).0.unwrap();
        tiny.train(&[MIXED[0], MIXED[1], "run_name=whole"], None).0.unwrap();
        assert_ne!(tiny.exported("whole"), tiny.exported("exact"));
        for stop in [1, 3] {
            let name = format!("run_name=stopped{stop}");
            let (outcome, _) = tiny.train(&[MIXED[0], MIXED[1], &name], Some(stop));
            assert!(matches!(outcome.unwrap(), Outcome::Stopped { batch, .. } if batch == stop));
            // What the run began with holds where the run file does not say it.
            let (outcome, _) = tiny.train(&[&name], None);
            assert!(matches!(outcome.unwrap(), Outcome::Completed(_)));
            assert_eq!(tiny.exported(&format!("stopped{stop}")), tiny.exported("whole"));
            assert_eq!(tiny.metrics(&format!("stopped{stop}")), tiny.metrics("whole"));
        }
    }
}

#[test]
fn numbers_depend_neither_on_threads_nor_on_memory() {
    let tiny = Tiny::new();
    tiny.train(&[MIXED[0], "run_name=threads0"], None).0.unwrap();
    for (threads, memory) in [(1, "block"), (2, "none"), (3, "none")] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (name, memory) =
            (format!("run_name=threads{threads}"), format!("activation_checkpointing={memory}"));
        pool.install(|| tiny.train(&[MIXED[0], &name, &memory], None).0.unwrap());
        assert_eq!(tiny.exported(&format!("threads{threads}")), tiny.exported("threads0"));
    }
}

#[test]
fn two_ranks_compute_as_one() {
    let tiny = Tiny::new();
    let losses = |devices: &str, name: &str| {
        let (outcome, watcher) = tiny.train(&[MIXED[0], devices, &format!("run_name={name}")], None);
        outcome.unwrap();
        let losses = watcher.losses.lock().unwrap();
        losses.iter().map(|&(_, loss)| loss).collect::<Vec<_>>()
    };
    for (one, two) in losses("devices=cpu", "one").iter().zip(losses("devices=cpu:2", "two")) {
        assert!((two / one - 1.0).abs() < 1e-3, "{two}, on one rank {one}");
    }
}
