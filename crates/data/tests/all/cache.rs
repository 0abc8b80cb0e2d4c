//! The cache is used when it is right, and only then.

use super::*;

fn bench() -> Bench {
    let lines: String = (0..50).map(|number| pair("q", &"a".repeat(1 + number)) + "\n").collect();
    Bench::new(Task::InstructionFinetune, "a.jsonl", lines)
}

fn rows(dataset: &Dataset) -> tessera_data::MicroBatch {
    dataset.micro_batch(&(0..dataset.rows()).map(Some).collect::<Vec<_>>())
}

#[test]
fn the_second_run_reads_what_the_first_has_written() {
    let bench = bench();
    let (first, account, tokenized) = bench.prepare_seen();
    assert!(tokenized);
    let (second, again, tokenized) = bench.prepare_seen();
    assert!(!tokenized);
    assert_eq!((rows(&first), account), (rows(&second), again));
}

#[test]
fn any_change_of_content_tokenizer_or_settings_makes_new_rows() {
    let mut bench = bench();
    bench.prepare().unwrap();
    let mut changed = |what: &str, change: &dyn Fn(&mut Bench)| {
        change(&mut bench);
        assert!(bench.prepare_seen().2, "{what} has no effect");
        assert!(!bench.prepare_seen().2, "{what}");
    };
    changed("content", &|bench| fs::write(&bench.path, pair("q", "a")).unwrap());
    changed("tokenizer", &|bench| bench.tokenizer = tokenizer(&with_bos(), "<|end|>", None));
    changed("eos", &|bench| bench.tokenizer = tokenizer(&with_bos(), "<|eot|>", None));
    changed("context_length", &|bench| bench.settings.context_length = 128);
    changed("packing", &|bench| bench.settings.packing = Packing::None);
    changed("seed", &|bench| bench.settings.seed = 18);
    changed("target_responses", &|bench| bench.settings.target_responses = TargetResponses::Last);
    changed("vocab_size", &|bench| bench.settings.vocab_size = 299);
}

#[test]
fn a_template_matters_to_conversations() {
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", chat(&[("user", "a"), ("assistant", "b")]));
    bench.prepare().unwrap();
    bench.tokenizer = tokenizer(TOKENIZER, "<|end|>", Some(ROLES));
    assert!(bench.prepare_seen().2);
}

#[test]
fn damage_of_any_file_is_seen_and_mended() {
    let bench = bench();
    let good = rows(&bench.prepare().unwrap().0);
    let folder = entry_folder(&bench.cache());
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 9);
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.truncate(bytes.len() - 4),
        |bytes| bytes.clear(),
    ];
    for file in &files {
        for damage in damages {
            let mut bytes = fs::read(file).unwrap();
            damage(&mut bytes);
            fs::write(file, &bytes).unwrap();
            let (dataset, _, tokenized) = bench.prepare_seen();
            assert!(tokenized, "{}", file.display());
            assert_eq!(rows(&dataset), good);
        }
        fs::remove_file(file).unwrap();
        assert!(bench.prepare_seen().2, "{} missing", file.display());
    }
}

#[test]
fn an_account_that_was_altered_is_not_believed() {
    let bench = bench();
    bench.prepare().unwrap();
    let header = entry_folder(&bench.cache()).join("header.json");
    let text = fs::read_to_string(&header).unwrap();
    let altered = text.replace("\"examples\": 50", "\"examples\": 51");
    assert_ne!(text, altered);
    fs::write(&header, altered).unwrap();
    let (_, summary, tokenized) = bench.prepare_seen();
    assert!(tokenized);
    assert_eq!(summary.examples, 50);
}

#[test]
fn an_interrupted_attempt_is_no_entry() {
    let bench = bench();
    let good = rows(&bench.prepare().unwrap().0);
    let folder = entry_folder(&bench.cache());
    let partial =
        folder.with_file_name(format!(".{}.partial", folder.file_name().unwrap().to_str().unwrap()));
    fs::rename(&folder, partial).unwrap();
    let (dataset, _, tokenized) = bench.prepare_seen();
    assert!(tokenized);
    assert_eq!(rows(&dataset), good);
}

#[test]
fn leftovers_of_other_data_sets_are_removed() {
    let bench = bench();
    let of_entry = bench.cache().join(format!(".{}.partial", "0a".repeat(32)));
    let other = bench.cache().join(".notes.partial");
    for folder in [&of_entry, &other] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("tokens"), "half").unwrap();
    }
    bench.prepare().unwrap();
    assert!(!of_entry.exists());
    assert!(other.exists(), "a folder that no preparation made");
}

#[test]
fn runs_side_by_side_share_one_entry() {
    let bench = bench();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| rows(&bench.prepare().unwrap().0))).collect();
        let rows: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
        assert!(rows.windows(2).all(|pair| pair[0] == pair[1]));
    });
    entry_folder(&bench.cache());
}
