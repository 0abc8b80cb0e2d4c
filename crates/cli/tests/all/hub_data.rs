//! Data sets of the hub, from its cache: without the hub, as everywhere in these tests.

use crate::signals::{Background, numbers};
use crate::support::Bench;

const COMMITS: [&str; 2] =
    ["0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"];
const FILE: &str = "data/train-00000-of-00001.jsonl";
const HUB: &str = "train_data_path=entity/sums/train";

/// Puts a data set into the cache, and lets the main branch be at `commit`.
fn cached(bench: &Bench, commit: &str, rows: &[u8]) {
    let folder = "hf/hub/datasets--entity--sums";
    bench.write(&format!("{folder}/refs/main"), commit);
    bench.write(&format!("{folder}/.listings/{commit}"), FILE);
    bench.write(&format!("{folder}/snapshots/{commit}/{FILE}"), rows);
}

#[test]
fn a_run_reads_a_split_of_the_hub_and_goes_on_with_the_commit_it_began_with() {
    let bench = Bench::new();
    let rows = bench.read("train.jsonl");
    cached(&bench, COMMITS[0], &rows);
    let run = ["train", "run.yaml", HUB, "training_duration=100ba", "save_interval=1dur"];
    let stopped = Background::start(&bench, &run);
    stopped.send(&["TERM"]);
    let ended = stopped.end();
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.stdout.contains("entity/sums/train: 96 examples"), "{ended:?}");
    let pins: serde_json::Value = serde_json::from_str(&bench.text("runs/tiny/data.json")).unwrap();
    assert_eq!(pins["train"][0]["path"], "entity/sums/train");
    assert_eq!(pins["train"][0]["version"], COMMITS[0]);

    // The branch moves on; the run does not.
    cached(&bench, COMMITS[1], &bench.read("eval.jsonl"));
    let said = bench.tessera(&run).printed();
    assert!(said.contains("Going on from"), "{said}");
    let local = Bench::new();
    local.tessera(&["train", "run.yaml", "training_duration=100ba", "save_interval=1dur"]).printed();
    assert_eq!(numbers(&bench), numbers(&local));

    // Another run reads what is there now.
    let said = bench.tessera(&["validate", "run.yaml", HUB, "run_name=other"]).printed();
    assert!(said.contains("entity/sums/train: 8 examples"), "{said}");
}

#[test]
fn what_the_hub_has_not_is_named() {
    let bench = Bench::new();
    cached(&bench, COMMITS[0], &bench.read("train.jsonl"));
    bench.tessera(&["validate", "run.yaml", "train_data_path=entity/sums/test"]).refused(&[
        "entity/sums/test is neither a file nor a folder here",
        "there is no split test; there are: train",
    ]);
    bench
        .tessera(&["validate", "run.yaml", "train_data_path=entity/other/train"])
        .failed(4, &["entity/other/train is neither", "HF_HUB_OFFLINE is set", "or give local files"]);
}
