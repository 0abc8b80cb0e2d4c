//! Rows of several examples, and batches of rows.

use super::*;
use tessera_data::{IGNORED_LABEL, MicroBatch};

fn pairs(count: usize) -> String {
    let line = |number: usize| pair("q", &"a".repeat(1 + number * 37 % 50)) + "\n";
    (0..count).map(line).collect()
}

#[test]
fn a_micro_batch_has_documents_apart_and_no_padding() {
    let lines = [pair("ab", "cd"), pair("e", "f"), pair("gggggg", "h")].join("\n");
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", lines);
    bench.settings.context_length = 8;
    let (dataset, summary) = bench.prepare().unwrap();
    assert_eq!((dataset.rows(), summary.tokens, summary.loss_tokens), (2, 16, 7));
    assert_eq!((dataset.tokens(0), dataset.loss_tokens(0)), (8, 5));
    let end = token_id("<|end|>");
    let id = |text: &str| token_id(text);
    let mut batch = MicroBatch::default();
    dataset.micro_batch_into(&[None, Some(0), None, Some(1)], &mut batch);
    let label = |token: u32| token as i32;
    let expected = MicroBatch {
        tokens: [
            vec![id("a"), id("b"), id("c"), id("d"), end, id("e"), id("f"), end],
            vec![id("g"); 6],
            vec![id("h"), end],
        ]
        .concat(),
        labels: [
            vec![IGNORED_LABEL, label(id("c")), label(id("d")), label(end), IGNORED_LABEL],
            vec![label(id("f")), label(end), IGNORED_LABEL],
            vec![IGNORED_LABEL; 5],
            vec![label(id("h")), label(end), IGNORED_LABEL],
        ]
        .concat(),
        positions: [(0..5).collect::<Vec<_>>(), (0..3).collect(), (0..8).collect()].concat(),
        cu_seqlens: vec![0, 5, 8, 16],
        row_starts: vec![0, 0, 8, 8, 16],
        loss_tokens: 7,
    };
    assert_eq!(batch, expected);
    dataset.micro_batch_into(&[None], &mut batch);
    assert_eq!(batch, MicroBatch { cu_seqlens: vec![0], row_starts: vec![0, 0], ..MicroBatch::default() });
}

#[test]
fn packing_none_gives_each_example_a_row_in_order() {
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", pairs(9));
    bench.settings.packing = Packing::None;
    let (dataset, summary) = bench.prepare().unwrap();
    let lengths: Vec<_> = (0..9).map(|row| dataset.tokens(row)).collect();
    assert_eq!(lengths, (0..9).map(|number| 3 + number * 37 % 50).collect::<Vec<_>>());
    assert_eq!(summary.rows, 9);
}

#[test]
fn rows_hold_every_example_once_and_the_account_is_right() {
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", pairs(300));
    bench.settings.context_length = 64;
    let (dataset, summary) = bench.prepare().unwrap();
    let mut origins = Vec::new();
    for row in 0..dataset.rows() {
        assert!(dataset.tokens(row) <= 64);
        origins.extend(
            inspect_row(&dataset, &bench.tokenizer, row).unwrap().iter().map(|document| document.origin),
        );
    }
    origins.sort();
    assert_eq!(origins, (1..=300).collect::<Vec<_>>());
    assert_eq!(summary.lengths.buckets().map(|(_, _, count)| count).sum::<usize>(), 300);
    assert_eq!(summary.lengths.longest, 52);
    assert_eq!(summary.tokens as usize, (0..dataset.rows()).map(|row| dataset.tokens(row)).sum::<usize>());
    assert!(summary.packing_efficiency() > 0.95 && summary.packing_efficiency() <= 1.0);
}

#[test]
fn long_examples_are_cut_and_useless_ones_dropped() {
    let lines = [
        pair("q", &"a".repeat(20)),
        pair(&"q".repeat(10), "a"),
        pair("", "a"),
        pair("q", ""),
        pair("q", "a"),
    ]
    .join("\r\n\r\n");
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", format!("\u{feff}{lines}\r\n"));
    bench.settings.context_length = 10;
    let (_, summary) = bench.prepare().unwrap();
    let counts = (summary.examples, summary.dropped_empty, summary.dropped_no_loss_token, summary.truncated);
    assert_eq!(counts, (5, 2, 1, 1));
    assert_eq!((summary.truncated_tokens, summary.tokens, summary.loss_tokens), (12, 13, 11));
    assert_eq!(bench.marked(), ["q[[aaaaaaaaa]]", "q[[a<|end|>]]"]);
}

#[test]
fn threads_do_not_change_rows() {
    let batch = |threads| {
        let bench = Bench::new(Task::InstructionFinetune, "a.jsonl", pairs(2000));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (dataset, _) = pool.install(|| bench.prepare()).unwrap();
        dataset.micro_batch(&(0..dataset.rows()).map(Some).collect::<Vec<_>>())
    };
    assert_eq!(batch(1), batch(5));
}
