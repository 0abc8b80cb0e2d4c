//! Whole runs on a GPU: from the run file to the export, stopped and gone on with, and taken over by the CPU.

use tessera_train::run::Outcome;

use crate::tiny::Tiny;

const GPU: &str = "devices=cuda:0";
/// The emulator is ten thousand times slower than a GPU, and slower still in fp32.
const SHORT: &str = "training_duration=6ba";
const SHORTER: &str = "training_duration=3ba";

fn losses(tiny: &Tiny, run: &str) -> Vec<f64> {
    let metrics = tiny.metrics(run);
    metrics.iter().filter_map(|line| line.get("loss/train/total")?.as_f64()).collect()
}

#[test]
fn a_run_in_fp32_has_the_cpus_losses() {
    for tiny in [Tiny::new(), Tiny::mixture()] {
        let (outcome, _) = tiny.train(&[SHORTER, "run_name=cpu"], None);
        assert!(matches!(outcome.unwrap(), Outcome::Completed(_)));
        let (outcome, _) = tiny.train(&[GPU, SHORTER, "precision=fp32", "run_name=gpu"], None);
        assert!(matches!(outcome.unwrap(), Outcome::Completed(_)));
        let (cpu, gpu) = (losses(&tiny, "cpu"), losses(&tiny, "gpu"));
        assert_eq!(cpu.len(), gpu.len());
        for (cpu, gpu) in cpu.iter().zip(&gpu) {
            assert!((gpu / cpu - 1.0).abs() < 1e-3, "{gpu}, on the CPU {cpu}");
        }
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let tiny = Tiny::new();
    let (outcome, _) = tiny.train(&[GPU, SHORT, "run_name=whole"], None);
    outcome.unwrap();
    for save_async in ["save_async=true", "save_async=false"] {
        let run = format!("run_name={}", save_async.replace('=', "-"));
        let arguments = [GPU, SHORT, run.as_str(), save_async];
        let (outcome, _) = tiny.train(&arguments, Some(2));
        // One batch may have been issued before the request came, and one before the answer.
        assert!(matches!(outcome.unwrap(), Outcome::Stopped { batch: 2..=4, .. }));
        let (outcome, _) = tiny.train(&arguments, None);
        assert!(matches!(outcome.unwrap(), Outcome::Completed(_)));
        let name = run.trim_start_matches("run_name=");
        assert_eq!(tiny.exported(name), tiny.exported("whole"));
        assert_eq!(losses(&tiny, name), losses(&tiny, "whole"));
    }
}

#[test]
fn the_cpu_goes_on_from_a_gpus_checkpoint() {
    let tiny = Tiny::new();
    let (outcome, _) = tiny.train(&[GPU, SHORT, "precision=fp32"], Some(2));
    assert!(matches!(outcome.unwrap(), Outcome::Stopped { .. }));
    let (outcome, _) = tiny.train(&["devices=cpu:2", SHORT], None);
    assert!(matches!(outcome.unwrap(), Outcome::Completed(_)));
    // What was decided when the run began holds: the CPU rounds the factors of products.
    let (outcome, _) = tiny.train(&[GPU, SHORT, "run_name=mixed"], Some(2));
    assert!(matches!(outcome.unwrap(), Outcome::Stopped { .. }));
    let (outcome, _) = tiny.train(&["devices=cpu", SHORT, "run_name=mixed"], None);
    assert!(matches!(outcome.unwrap(), Outcome::Completed(_)));
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    let tiny = Tiny::new();
    let (outcome, _) = tiny.train(&["devices=cuda:0,63"], None);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("63 is not there"), "{error}");
}
