//! `tessera sweep`: every combination is run once, and their results are told together.

use serde_json::json;

use crate::support::Bench;

const SWEEP: &str = "run: run.yaml\nvary: {learning_rate: [1.0e-2, 1.0e-4], training_duration: [1ba, 4ba]}\n";

#[test]
fn every_combination_is_run_once_and_the_best_is_marked() {
    let bench = Bench::new();
    bench.write("rates.yaml", SWEEP);
    let before = bench.tessera(&["sweep", "rates.yaml", "--results"]).printed();
    assert!(before.contains("4 runs") && !before.contains("COMPLETED"), "{before}");
    let results = bench.tessera(&["sweep", "rates.yaml", "--json"]).json();
    let results = results.as_array().unwrap();
    assert_eq!(results.len(), 4);
    assert_eq!(results[1]["values"], json!({"learning_rate": 0.01, "training_duration": "4ba"}));
    for (result, batches) in results.iter().zip([1, 4, 1, 4]) {
        assert_eq!((&result["status"], &result["batches"]), (&json!("COMPLETED"), &json!(batches)));
    }
    let ended = bench.tessera(&["sweep", "rates.yaml"]);
    assert!(ended.stderr.contains("sweep: run 4 of 4, runs/rates-"), "{ended:?}");
    let said = ended.printed();
    assert_eq!(said.matches("This run is finished").count(), 4, "{said}");
    let best = said.lines().find(|line| line.starts_with('*')).unwrap();
    assert!(best.contains("0.01") && best.contains("4ba"), "{said}");
    let commands = bench.tessera(&["sweep", "rates.yaml", "--commands"]).printed();
    assert_eq!(commands.lines().count(), 4);
    let first = commands.lines().next().unwrap();
    assert!(
        first.starts_with("tessera train run.yaml learning_rate=0.01 'training_duration=\"1ba\"'"),
        "{first}"
    );
}

#[test]
fn a_run_that_fails_keeps_none_of_the_others_from_running() {
    let bench = Bench::new();
    bench
        .write("sweep.yaml", "run: run.yaml\nvary: {context_length: [4096, 64], training_duration: [1ba]}\n");
    let ended = bench.tessera(&["sweep", "sweep.yaml"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("ended with 2; the sweep goes on"), "{ended:?}");
    assert!(ended.stdout.contains("COMPLETED"), "{ended:?}");
    bench.write("sweep.yaml", "run: run.yaml\nvary: {sead: [1]}\n");
    bench.tessera(&["sweep", "sweep.yaml"]).refused(&["`sead`: unknown key, did you mean `seed`?"]);
    bench.tessera(&["sweep", "none.yaml"]).refused(&["none.yaml", "No such file"]);
}
