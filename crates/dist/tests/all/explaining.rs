//! Rings as a stuck run may leave them, written by hand.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use tessera_dist::{DistError, explain};

/// A ring with a gather of unit 0, 1, 2, … for each letter: `d`one, `s`tarted, `q`ueued, or `r` for a reduction
/// in its place.
fn ring(folder: &Path, rank: usize, world_size: usize, began: u32, calls: &str) {
    let mut text = format!(
        r#"{{"rank":{rank},"world_size":{world_size},"began_unix":{began}.0,"written_unix":{written}.5}}"#,
        written = began + 100
    );
    for (sequence, letter) in calls.chars().enumerate() {
        let operation = if letter == 'r' { "reduce-scatter" } else { "all-gather" };
        let (started, finished) = match letter {
            'q' => ("null", "null"),
            's' | 'r' => ("2.5", "null"),
            _ => ("2.5", "3.0"),
        };
        write!(
            text,
            "\n{{\"sequence\":{sequence},\"group\":\"world\",\"operation\":\"{operation}\",\"unit\":{sequence},\
             \"bytes\":64,\"queued\":2.0,\"started\":{started},\"started_unix\":{started},\"finished\":{finished}}}"
        )
        .unwrap();
    }
    fs::write(folder.join(format!("rank-{rank}.jsonl")), text).unwrap();
}

fn explained(rings: &[(usize, &str)], world_size: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    rings.iter().for_each(|(rank, calls)| ring(folder.path(), *rank, world_size, 1000, calls));
    explain(folder.path()).unwrap().to_string()
}

#[test]
fn the_rank_that_calls_something_else_is_named() {
    assert_eq!(
        explained(&[(0, "ddsq"), (1, "ddsq"), (2, "ddr"), (3, "dds")], 4),
        "The ranks part at number 2: rank 2 called reduce-scatter of unit 2, ranks 0, 1 and 3 called all-gather of \
         unit 2."
    );
}

#[test]
fn the_rank_that_does_not_come_is_named() {
    assert_eq!(
        explained(&[(0, "ddsq"), (1, "dd"), (2, "dds")], 3),
        "Rank 1 never came to number 2, all-gather of unit 2, for which ranks 0 and 2 waited; the last of rank 1 was \
         number 1, all-gather of unit 1, which ended."
    );
}

#[test]
fn an_absurd_ring_costs_no_time() {
    let folder = tempfile::tempdir().unwrap();
    ring(folder.path(), 0, 2, 1000, "dd");
    ring(folder.path(), 1, 2, 1000, "dd");
    let path = folder.path().join("rank-1.jsonl");
    let text =
        fs::read_to_string(&path).unwrap().replace("\"sequence\":1", "\"sequence\":18446744073709551615");
    fs::write(&path, text).unwrap();
    assert!(explain(folder.path()).unwrap().to_string().starts_with("Rank 1 never came to number 1,"));
}

#[test]
fn a_rank_that_stood_still_is_named_although_it_left_a_ring() {
    let folder = tempfile::tempdir().unwrap();
    ring(folder.path(), 0, 2, 1000, "dds");
    ring(folder.path(), 1, 2, 1000, "dds");
    let path = folder.path().join("rank-1.jsonl");
    let text = fs::read_to_string(&path).unwrap().replacen("100.5", "100.5,\"stood_still\":3.44", 1);
    fs::write(&path, text).unwrap();
    assert_eq!(
        explain(folder.path()).unwrap().to_string(),
        "Rank 1 stood still for 3.4 s: its process was stopped or its machine stalled.\nNumber 2, all-gather of unit 2, \
         did not end for ranks 0 and 1, though every rank with a record came to it."
    );
}

#[test]
fn a_rank_without_a_ring_is_named() {
    let folder = tempfile::tempdir().unwrap();
    ring(folder.path(), 0, 3, 1000, "dds");
    ring(folder.path(), 2, 3, 1000, "dds");
    // Rank 1 left a ring, but in an earlier attempt.
    ring(folder.path(), 1, 3, 500, "ddddds");
    let explanation = explain(folder.path()).unwrap();
    assert_eq!(explanation.silent, [(1, None)]);
    assert_eq!(
        explanation.to_string(),
        "Rank 1 left no record of its collectives: it was killed or stood still.\nNumber 2, all-gather of unit 2, did \
         not end for ranks 0 and 2, though every rank with a record came to it."
    );
}

#[test]
fn what_is_no_ring_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(explain(folder.path()), Err(DistError::NoRings { .. })));
    assert!(matches!(explain(&folder.path().join("missing")), Err(DistError::File(_))));
    ring(folder.path(), 0, 1, 1000, "dd");
    let path = folder.path().join("rank-0.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    match explain(folder.path()) {
        Err(DistError::Ring { line: 3, path: named, .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
    fs::write(&path, "").unwrap();
    assert!(matches!(explain(folder.path()), Err(DistError::Ring { line: 1, .. })));
}
