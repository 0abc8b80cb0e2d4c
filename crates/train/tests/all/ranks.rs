//! Runs over several ranks of one process against runs on one.

use std::fs;

use tessera_checkpoint::dcp::DcpReader;
use tessera_train::run::Outcome;

use crate::golden::relative;
use crate::tiny::Tiny;

/// The exported weights as numbers, tensor behind tensor.
fn weights(tiny: &Tiny, run: &str) -> Vec<f32> {
    let bytes = tiny.exported(run);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = tensors.tensors();
    tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
    let bytes = tensors.iter().flat_map(|(_, view)| view.data().as_chunks::<4>().0);
    bytes.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// All that is numbers in a run's last checkpoint: the bits of weights, moments and their steps, and the counts.
fn state(tiny: &Tiny, run: &str) -> Vec<(String, String, Vec<u32>)> {
    let folder = tiny.path("runs").join(run).join("checkpoints/latest-sharded-rank0");
    let reader = DcpReader::open(&folder).unwrap();
    let tensors = reader.tensors().iter().map(|(name, tensor)| {
        let mut values = vec![0.0; tensor.elements()];
        reader.read_elements(name, 0, &mut values).unwrap();
        (name.clone(), String::new(), values.into_iter().map(f32::to_bits).collect())
    });
    // What else there is depends on the clock and on the run's name.
    let counts = ["updates", "skipped", "skipped_in_a_row", "ranks"].map(|count| {
        let name = format!("state.tessera.{count}");
        let value = format!("{:?}", reader.object(&name).unwrap());
        (name, value, Vec::new())
    });
    tensors.chain(counts).collect()
}

fn assert_same_run(tiny: &Tiny, run: &str, expected: &str) {
    let (lines, expected_lines) = (tiny.metrics(run), tiny.metrics(expected));
    assert_eq!(lines.len(), expected_lines.len(), "{run}");
    for (line, expected) in lines.iter().zip(&expected_lines) {
        for (key, expected) in expected.as_object().unwrap() {
            let (found, expected) = (line[key].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs(),
                "{run}: {key} {found}, not {expected}"
            );
        }
    }
    let error = relative(&weights(tiny, run), &weights(tiny, expected));
    assert!(error < 1e-4, "{run}: weights are off by {error:e}");
}

#[test]
fn any_number_of_ranks_trains_as_one_does() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=one"], None).0.unwrap();
    for (run, arguments) in [
        ("two", vec!["devices=cpu:2"]),
        ("three", vec!["devices=cpu:3"]),
        ("kept", vec!["devices=cpu:2", "parallel.reshard_after_forward=false"]),
        ("hybrid", vec!["devices=cpu:4", "parallel.shard=2", "parallel.replicate=2"]),
        ("copies", vec!["devices=cpu:2", "parallel.shard=1", "parallel.replicate=2"]),
        ("split rows", vec!["devices=cpu:2", "parallel.context=2"]),
        ("all ways", vec!["devices=cpu:8", "parallel.replicate=2", "parallel.context=2"]),
        ("more ranks than rows", vec!["devices=cpu:8", "save_async=false"]),
    ] {
        let name = format!("run_name={run}");
        let arguments: Vec<&str> = arguments.into_iter().chain([name.as_str()]).collect();
        tiny.train(&arguments, None).0.unwrap();
        assert_same_run(&tiny, run, "one");
    }
}

/// The load-balancing loss is a row's own, so it does not depend on which rank has the row, or a part of it.
#[test]
fn experts_train_on_any_number_of_ranks_as_on_one() {
    let tiny = Tiny::mixture();
    tiny.train(&["run_name=one"], None).0.unwrap();
    let balance = |line: &serde_json::Value| line.get("loss/train/lbl").and_then(serde_json::Value::as_f64);
    // Coefficient 0.1 times two active experts, were they all used alike.
    assert!(tiny.metrics("one").iter().filter_map(balance).all(|loss| loss > 0.15 && loss < 0.4));
    for (run, arguments) in [
        ("two", vec!["devices=cpu:2"]),
        ("three", vec!["devices=cpu:3", "parallel.reshard_after_forward=false"]),
        ("all ways", vec!["devices=cpu:8", "parallel.replicate=2", "parallel.context=2"]),
    ] {
        let name = format!("run_name={run}");
        let arguments: Vec<&str> = arguments.into_iter().chain([name.as_str()]).collect();
        tiny.train(&arguments, None).0.unwrap();
        assert_same_run(&tiny, run, "one");
    }
}

#[test]
fn gradients_that_travel_in_bf16_train_nearly_as_in_fp32() {
    let tiny = Tiny::new();
    let ranks = ["devices=cpu:4", "parallel.shard=2", "parallel.replicate=2"];
    let train = |run: &str, dtype: &str, stop| {
        let keys = [&format!("run_name={run}"), &format!("parallel.reduce_dtype={dtype}")];
        let keys: Vec<&str> = ranks.into_iter().chain(keys.map(String::as_str)).collect();
        tiny.train(&keys, stop).0
    };
    train("fp32", "fp32", None).unwrap();
    train("whole", "bf16", None).unwrap();
    let losses = |run: &str| {
        let lines = tiny.metrics(run);
        lines.iter().filter_map(|line| line.get("loss/train/total")?.as_f64()).collect::<Vec<_>>()
    };
    let (rounded, exact) = (losses("whole"), losses("fp32"));
    let worst = rounded.iter().zip(&exact).map(|(one, other)| (one / other - 1.0).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-2, "a loss is off by {worst:e}");
    assert_ne!(rounded, exact, "nothing was rounded");
    assert!(rounded.last() < rounded.first(), "{rounded:?}");

    // Rounding depends on nothing but the numbers, and belongs to the run.
    train("stopped", "bf16", Some(2)).unwrap();
    let error = train("stopped", "fp32", None).unwrap_err().to_string();
    assert!(error.contains("parallel.reduce_dtype") && error.contains("bf16"), "{error}");
    train("stopped", "bf16", None).unwrap();
    assert_eq!(tiny.exported("stopped"), tiny.exported("whole"));
    assert_eq!(tiny.metrics("stopped"), tiny.metrics("whole"));
}

#[test]
fn a_stopped_run_of_several_ranks_is_the_same_run_bit_for_bit() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=whole", "devices=cpu:3"], None).0.unwrap();
    for stop in [1, 3] {
        let name = format!("run_name=stopped{stop}");
        let (outcome, _) = tiny.train(&[&name, "devices=cpu:3"], Some(stop));
        assert!(matches!(outcome.unwrap(), Outcome::Stopped { batch, signal: 15, .. } if batch == stop));
        tiny.train(&[&name, "devices=cpu:3"], None).0.unwrap();
        assert_eq!(tiny.exported(&format!("stopped{stop}")), tiny.exported("whole"));
        assert_eq!(tiny.metrics(&format!("stopped{stop}")), tiny.metrics("whole"));
        let (found, expected) = (state(&tiny, &format!("stopped{stop}")), state(&tiny, "whole"));
        assert_eq!(found.len(), expected.len());
        for ((name, count, bits), (expected_name, expected_count, expected_bits)) in
            found.iter().zip(&expected)
        {
            assert_eq!((name, count), (expected_name, expected_count));
            assert!(bits == expected_bits, "{name} is another after stopping at batch {stop}");
        }
        assert!(found.iter().any(|(name, ..)| name.ends_with("exp_avg_sq")), "no moments were compared");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=one"], None).0.unwrap();
    tiny.train(&["run_name=moved", "devices=cpu:4"], Some(2)).0.unwrap();
    let checkpoint = tiny.path("runs/moved/checkpoints/latest-sharded-rank0");
    for rank in 0..4 {
        assert!(checkpoint.join(format!("__{rank}_0.distcp")).is_file(), "shard {rank}");
    }
    assert_eq!(fs::read_dir(&checkpoint).unwrap().count(), 5, "four shards and .metadata, no notes");
    tiny.train(&["run_name=moved", "devices=cpu"], Some(4)).0.unwrap();
    tiny.train(&["run_name=moved", "devices=cpu:3"], None).0.unwrap();
    assert_same_run(&tiny, "moved", "one");
}

#[test]
fn degrees_must_make_up_the_ranks() {
    let tiny = Tiny::new();
    let error = tiny.train(&["devices=cpu:4", "parallel.replicate=3"], None).0.unwrap_err().to_string();
    assert!(error.contains("parallel") && error.contains("is 4, the number of ranks"), "{error}");
}
