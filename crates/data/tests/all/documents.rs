//! Continued pre-training: text files into rows.

use super::*;

fn folder_of(files: &[(&str, &str)]) -> Bench {
    let mut bench = Bench::new(Task::ContinuedPretrain, "note.md", "not read");
    let root = bench.folder.path().join("texts");
    for (name, content) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    bench.path = root;
    bench
}

fn all_rows(dataset: &Dataset) -> tessera_data::MicroBatch {
    dataset.micro_batch(&(0..dataset.rows()).map(Some).collect::<Vec<_>>())
}

#[test]
fn files_come_in_the_order_of_paths_each_with_one_end() {
    let files = [
        ("b.txt", "two"),
        ("a/z.txt", "one"),
        ("skip.md", "x"),
        ("c.txt", "\u{feff}three<|end|>"),
        ("d.txt", ""),
    ];
    let mut bench = folder_of(&files);
    bench.tokenizer = tokenizer(&with_bos(), "<|end|>", None);
    assert_eq!(
        bench.marked(),
        ["<|begin|>[[one<|end|>]]", "<|begin|>[[two<|end|>]]", "<|begin|>[[three<|end|>]]"]
    );
    let (_, summary) = bench.prepare().unwrap();
    assert_eq!((summary.examples, summary.dropped_empty, summary.rows), (4, 1, 1));
}

#[test]
fn links_are_followed_and_circles_are_not() {
    use std::os::unix::fs::symlink;
    let bench = folder_of(&[("a/one.txt", "one"), ("two.txt", "two")]);
    let (root, outside) = (&bench.path, bench.folder.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("three.txt"), "three").unwrap();
    fs::write(bench.folder.path().join("four"), "four").unwrap();
    symlink(&outside, root.join("linked")).unwrap();
    symlink(bench.folder.path().join("four"), root.join("z.txt")).unwrap();
    symlink(root, root.join("a/up")).unwrap();
    symlink(&outside, outside.join("self")).unwrap();
    let expected = ["o[[ne<|end|>]]", "t[[hree<|end|>]]", "t[[wo<|end|>]]", "f[[our<|end|>]]"];
    assert_eq!(bench.marked(), expected);

    let nowhere = root.join("b.txt");
    symlink(bench.folder.path().join("missing"), &nowhere).unwrap();
    assert!(bench.error().contains(&nowhere.display().to_string()), "{}", bench.error());
}

#[test]
fn documents_cut_over_rows_lose_no_target() {
    let texts: Vec<(String, String)> = (0..7)
        .map(|number| (format!("{number}.txt"), "some words and more\n".repeat(3 + 5 * number)))
        .collect();
    let files: Vec<_> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut bench = folder_of(&files);
    let inner = tokenizers::Tokenizer::from_bytes(TOKENIZER).unwrap();
    let end = token_id("<|end|>");
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for (_, text) in &texts {
        let mut document = inner.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        document.push(end);
        inputs.extend_from_slice(&document[..document.len() - 1]);
        targets.extend(document[1..].iter().map(|&token| token as i32));
    }
    // Among these are lengths at which some document's last token would begin a row.
    for context_length in [2, 3, 5, 7, 20, 64] {
        bench.settings.context_length = context_length;
        let (dataset, summary) = bench.prepare().unwrap();
        let batch = all_rows(&dataset);
        let learnt = || batch.tokens.iter().zip(&batch.labels).filter(|&(_, &label)| label != -100);
        assert!(learnt().map(|(&token, _)| token).eq(inputs.iter().copied()), "{context_length}");
        assert!(learnt().map(|(_, &label)| label).eq(targets.iter().copied()), "{context_length}");
        assert_eq!(
            (summary.tokens as usize, summary.loss_tokens as usize),
            (batch.tokens.len(), targets.len())
        );
        let rows = dataset.rows();
        assert!((0..rows).all(|row| dataset.loss_tokens(row) > 0), "{context_length}");
        assert!((0..rows - 1).all(|row| dataset.tokens(row) == context_length), "{context_length}");
    }
}

#[test]
fn a_document_of_one_token_is_dropped() {
    let mut bench = folder_of(&[("a.txt", "a"), ("b.txt", "bb")]);
    bench.tokenizer = TextTokenizer::new(TOKENIZER.as_bytes(), None, None).unwrap();
    bench.settings.packing = Packing::None;
    let (dataset, summary) = bench.prepare().unwrap();
    assert_eq!((dataset.rows(), dataset.loss_tokens(0), summary.dropped_no_loss_token), (1, 1, 1));
}

#[test]
fn without_packing_a_document_begins_a_row() {
    let mut bench = folder_of(&[("a.txt", "aaaaaaaa"), ("b.txt", "b")]);
    bench.settings.context_length = 6;
    bench.settings.packing = Packing::None;
    assert_eq!(bench.marked(), ["a[[aaaaa]]", "a[[a<|end|>]]", "b[[<|end|>]]"].map(|text| text.to_owned()));
    bench.settings.context_length = 8;
    assert_eq!(bench.marked(), ["a[[aaaaaaa]]", "b[[<|end|>]]"].map(|text| text.to_owned()));
}

/// 600 kB of lines with all kinds of line ends and blanks.
fn long_text() -> String {
    let lines = [
        "the hello\n",
        "  and you \n",
        "\n\n",
        "Ω-words, and in\n",
        "ring 12 the\r\n",
        "x = '<|im_end|>'\n",
        "\tthe  end\n",
    ];
    let order = tessera_data::order::Permutation::new(3, 0, 60_000);
    (0..60_000).map(|place| lines[order.at(place) % lines.len()]).collect()
}

/// Prepares the text and compares with the tokens of one call of the tokenizer.
fn assert_tokens_of_the_whole(json: &str) {
    let text = long_text();
    let mut bench = Bench::new(Task::ContinuedPretrain, "a.txt", &text);
    bench.tokenizer = tokenizer(json, "<|end|>", None);
    bench.settings.vocab_size = 1000;
    let inner = tokenizers::Tokenizer::from_bytes(json).unwrap();
    let mut whole = inner.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
    whole.push(inner.token_to_id("<|end|>").unwrap());
    let (dataset, _) = bench.prepare().unwrap();
    assert!(all_rows(&dataset).tokens == whole, "cut at a place that the tokenizer sees across");
}

#[test]
fn a_long_text_gives_the_tokens_of_the_whole() {
    assert_tokens_of_the_whole(TOKENIZER);
}

#[test]
fn a_long_text_gives_the_tokens_of_the_whole_with_tiktokens_pattern() {
    // As DBRX's: what the pattern matches is kept, and the rest, which is nothing, removed.
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let mut json: Value = serde_json::from_str(TOKENIZER).unwrap();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    assert_tokens_of_the_whole(&json.to_string());
}

#[test]
fn a_long_text_gives_the_tokens_of_the_whole_with_sentencepiece() {
    for blanks in [Blanks::BeforeEveryText, Blanks::BeforeTheFirst] {
        assert_tokens_of_the_whole(&sentencepiece(blanks));
    }
}
