//! Delta tables that delta-rs made, or that were written by the protocol's text (`scripts/fixtures/make_delta.py`): their rows are
//! those of the `.jsonl` files beside them, and what keeps one from being read is named.

use std::collections::BTreeMap;

use super::mds::copy;
use super::sources::all_rows;
use super::*;
use tessera_data::delta::{TableProblem, names_of_version, version_here};
use tessera_data::{Columns, Contents, Fetched, SourceSettings};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/delta")
}

fn source(folder: &Path, version: u64, names: &[(&str, &str)]) -> SourceSettings {
    let names = names.iter().map(|(own, theirs)| ((*own).to_owned(), (*theirs).to_owned()));
    let columns = Columns::new(names.collect::<BTreeMap<_, _>>());
    let contents = Contents::Table(version);
    let fetched = Fetched { folder: folder.to_owned(), contents, version: Some(version.to_string()) };
    SourceSettings {
        columns,
        fetched: Some(fetched),
        ..format!("delta:{}", folder.display()).as_str().into()
    }
}

/// A bench with a copy of a table, of which it reads a version, and with the rows that it should have.
fn bench(task: Task, name: &str, version: u64, lines: &str) -> Bench {
    let mut bench = Bench::new(task, "rows.jsonl", fs::read(fixtures().join(lines)).unwrap());
    bench.settings.context_length = 64;
    let folder = bench.folder.path().join(name);
    copy(&fixtures().join(name), &folder);
    bench.settings.sources = vec![source(&folder, version, &[])];
    bench
}

fn table(bench: &Bench) -> PathBuf {
    bench.settings.sources[0].fetched.as_ref().unwrap().folder.clone()
}

/// Reads the table and the lines beside it: the same batches come of both.
fn assert_same_as_lines(mut bench: Bench, rows: usize) {
    let columns = bench.settings.sources[0].columns.clone();
    let (dataset, summary) = bench.prepare().unwrap();
    assert_eq!(dataset.pins()[0].rows, rows);
    bench.settings.sources = vec![SourceSettings { columns, ..bench.path.to_str().unwrap().into() }];
    let (expected, account) = bench.prepare().unwrap();
    assert!(all_rows(&dataset) == all_rows(&expected));
    assert_eq!(summary.examples, account.examples);
    assert_eq!(summary.tokens, account.tokens);
}

#[test]
fn every_version_has_the_rows_of_its_lines() {
    for (version, rows) in [(0, 20), (1, 40), (3, 10)] {
        let lines = format!("texts.{version}.jsonl");
        assert_same_as_lines(bench(Task::ContinuedPretrain, "texts", version, &lines), rows);
    }
    // A deletion that wrote what is left anew.
    let lines = fs::read_to_string(fixtures().join("texts.2.jsonl")).unwrap().lines().count();
    assert!(lines < 40);
    assert_same_as_lines(bench(Task::ContinuedPretrain, "texts", 2, "texts.2.jsonl"), lines);
}

#[test]
fn rows_of_all_tasks_are_those_of_the_lines() {
    let mut pairs = bench(Task::InstructionFinetune, "pairs", 0, "pairs.jsonl");
    let names = [("prompt", "prompt"), ("response", "response")];
    pairs.settings.sources = vec![source(&table(&pairs), 0, &names)];
    assert_same_as_lines(pairs, 30);
    // What was before the checkpoint is not there.
    assert_same_as_lines(bench(Task::ChatCompletion, "conversations", 6, "conversations.jsonl"), 42);
}

#[test]
fn columns_by_which_a_table_is_parted_have_the_values_of_the_log() {
    let mut pairs = bench(Task::InstructionFinetune, "pairs", 0, "pairs.jsonl");
    let names = [("prompt", "prompt"), ("response", "language")];
    pairs.settings.sources = vec![source(&table(&pairs), 0, &names)];
    assert!(pairs.marked().iter().any(|text| text.contains("[[é/100%")));
    assert_same_as_lines(pairs, 30);
}

#[test]
fn columns_that_no_task_reads_are_refused_unless_others_are_named() {
    let mut pairs = bench(Task::InstructionFinetune, "pairs", 0, "pairs.jsonl");
    assert!(pairs.error().contains("values of type Date32 cannot be used"), "{}", pairs.error());
    pairs.settings.sources =
        vec![source(&table(&pairs), 0, &[("prompt", "question"), ("response", "answer")])];
    let error = pairs.error();
    assert!(
        error.contains("none of the columns that are read, question, answer, completion, is there"),
        "{error}"
    );
    assert!(error.contains("it has prompt, response, language, day"), "{error}");
}

#[test]
fn deleted_rows_are_left_out() {
    let lines = fs::read_to_string(fixtures().join("deleted.jsonl")).unwrap().lines().count();
    assert_eq!(lines, 2 * 1500 - 103 - 2);
    // More than one batch of rows is read of each file.
    let bench = bench(Task::ContinuedPretrain, "deleted", 1, "deleted.jsonl");
    let before = bench.prepare().unwrap().0;
    assert_eq!(before.pins()[0].rows, lines);
    assert_same_as_lines(bench, lines);
}

#[test]
fn a_deletion_behind_the_last_row_is_an_error_however_far() {
    let bench = bench(Task::ContinuedPretrain, "deleted", 1, "deleted.jsonl");
    // Of rows 1 and 1499 it makes those of index 2^40 and 2^40 + 1, as the fixture's script writes them.
    let vectors =
        ["^Bg9^0rr910000000000iXQKl0rr91000315c8Xg0ry<T", "^Bg9^0rr910000000961iXQKl0rr91000315c8Xg00031"];
    edit(&bench, 1, vectors[0], vectors[1]);
    let error = bench.error();
    assert!(
        error.contains("part-1.parquet: ") && error.contains("the log deletes row 1099511627778 of its 1500"),
        "{error}"
    );
}

#[test]
fn versions_with_the_same_files_and_other_rows_are_told_apart() {
    let mut bench = bench(Task::ContinuedPretrain, "deleted", 1, "deleted.jsonl");
    let now = bench.prepare().unwrap().0.pins()[0].clone();
    bench.settings.sources = vec![source(&table(&bench), 0, &[])];
    let before = bench.prepare().unwrap().0.pins()[0].clone();
    assert_eq!(
        (before.rows, before.version.as_deref(), now.version.as_deref()),
        (3000, Some("0"), Some("1"))
    );
    assert!(!before.is_same(&now));
}

#[test]
fn mapped_columns_have_the_names_of_the_table() {
    for name in ["mapped-name", "mapped-id"] {
        assert_same_as_lines(bench(Task::InstructionFinetune, name, 0, &format!("{name}.jsonl")), 20);
    }
    // Those within lists and structs too.
    for name in ["mapped-messages-name", "mapped-messages-id"] {
        assert_same_as_lines(bench(Task::ChatCompletion, name, 0, &format!("{name}.jsonl")), 20);
    }
}

#[test]
fn a_null_by_which_a_table_is_parted_is_a_value_that_is_not_there() {
    assert_same_as_lines(bench(Task::InstructionFinetune, "nulls", 0, "nulls.jsonl"), 20);
}

#[test]
fn a_table_is_its_version_whatever_its_folder_is_called() {
    let bench = bench(Task::ContinuedPretrain, "texts", 1, "texts.1.jsonl");
    let pin = bench.prepare().unwrap().0.pins()[0].clone();
    let moved = bench.folder.path().join("an other place%20é");
    fs::rename(table(&bench), &moved).unwrap();
    let mut bench = bench;
    bench.settings.sources = vec![source(&moved, 1, &[])];
    let again = bench.prepare().unwrap().0.pins()[0].clone();
    assert!(pin.is_same(&again));
    // The same rows in a table of its own are another source.
    let log = moved.join("_delta_log/00000000000000000000.json");
    let text = fs::read_to_string(&log).unwrap();
    let at = text.find("\"id\":\"").unwrap() + 6;
    fs::write(&log, format!("{}ffffffff{}", &text[..at], &text[at + 8..])).unwrap();
    assert!(!bench.prepare().unwrap().0.pins()[0].is_same(&pin));
}

#[test]
fn versions_are_found_and_missing_ones_named() {
    let version =
        |folder: &Path, wanted| version_here("delta:t", folder, wanted).map_err(|error| error.to_string());
    assert_eq!(version(&fixtures().join("texts"), None), Ok(3));
    assert_eq!(version(&fixtures().join("texts"), Some(1)), Ok(1));
    assert_eq!(version(&fixtures().join("conversations"), Some(4)), Ok(4));
    let error = version(&fixtures().join("conversations"), Some(3)).unwrap_err();
    assert!(error.contains("delta:t: version 3 cannot be read: those from 4 to 6 can"), "{error}");
    let error = version(&fixtures().join("texts"), Some(9)).unwrap_err();
    assert!(error.contains("version 9 cannot be read: those from 0 to 3 can"), "{error}");
    for folder in ["mds", "nothing"] {
        let error = version(&fixtures().join("..").join(folder), None).unwrap_err();
        assert!(error.contains("no Delta table is there"), "{error}");
    }
}

#[test]
fn the_files_of_a_version_are_known_without_them() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixtures().join("deleted/_delta_log"), &folder.path().join("_delta_log"));
    let names = names_of_version("delta:t", folder.path(), 1).unwrap();
    let vector = "ab/deletion_vector_0c6cbaaf-5e04-4c9d-8959-1088814f58ef.bin";
    assert_eq!(names, [vector, "part-0.parquet", "part-1.parquet"]);
    for entry in fs::read_dir(folder.path().join("_delta_log")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    copy(&fixtures().join("pairs/_delta_log"), &folder.path().join("_delta_log"));
    let names = names_of_version("delta:t", folder.path(), 0).unwrap();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|name| fixtures().join("pairs").join(name).is_file()), "{names:?}");
}

#[test]
fn files_that_are_gone_or_damaged_are_named() {
    let removed = |name: &str, version: u64, lines: &str| {
        let bench = bench(Task::ContinuedPretrain, name, version, lines);
        let files = names_of_version("delta:t", &table(&bench), version).unwrap();
        fs::remove_file(table(&bench).join(&files[0])).unwrap();
        (bench.error(), files[0].clone())
    };
    let (error, file) = removed("texts", 1, "texts.1.jsonl");
    assert!(error.contains(&format!("version 1 cannot be read any more: {file}")), "{error}");
    assert!(error.contains("the newest version is 3. Restore the file, or read that version"), "{error}");
    let (error, file) = removed("texts", 3, "texts.3.jsonl");
    assert!(error.contains(&format!("{file}, which is part of its version 3, is not there")), "{error}");
    // Here the first is that with the deleted rows.
    assert!(removed("deleted", 1, "deleted.jsonl").0.contains("ab/deletion_vector_0c6cbaaf"));

    let bench = bench(Task::ContinuedPretrain, "deleted", 1, "deleted.jsonl");
    let vector = table(&bench).join("ab/deletion_vector_0c6cbaaf-5e04-4c9d-8959-1088814f58ef.bin");
    let mut bytes = fs::read(&vector).unwrap();
    bytes[40] ^= 1;
    fs::write(vector, bytes).unwrap();
    assert!(
        bench
            .error()
            .contains("part-0.parquet: cannot be read beyond its beginning: which of its rows are deleted"),
        "{}",
        bench.error()
    );
    let data = table(&bench).join("part-0.parquet");
    fs::write(&data, &fs::read(&data).unwrap()[1..]).unwrap();
    assert!(
        bench.error().contains("has 3535 bytes, but 3536 by the log; the file is damaged or another"),
        "{}",
        bench.error()
    );
}

/// Replaces a text in the log's file of a version.
fn edit(bench: &Bench, version: u64, from: &str, to: &str) {
    let path = table(bench).join(format!("_delta_log/{version:020}.json"));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn what_is_not_known_or_no_log_is_refused_by_name() {
    let fresh = || bench(Task::ContinuedPretrain, "deleted", 1, "deleted.jsonl");
    let refused = |from: &str, to: &str, said: &[&str]| {
        let bench = fresh();
        edit(&bench, 0, from, to);
        let error = bench.error();
        said.iter().for_each(|said| assert!(error.contains(said), "{said}: {error}"));
    };
    let features = "\"deletionVectors\"]";
    refused(
        features,
        "\"deletionVectors\", \"colourfulRows\"]",
        &["it needs what is not known here", "colourfulRows"],
    );
    refused("{\"metaData\"", "{\"metaDat", &["its version 1 cannot be understood", "the log is damaged"]);
    refused(
        "part-0.parquet",
        "s3://other/part-0.parquet",
        &["s3://other/part-0.parquet", "outside of the table's folder"],
    );
    for path in ["../part-0.parquet", "x%2F..%2F..%2Fpart-0.parquet", "%2e%2e%2Fpart-0.parquet"] {
        refused("part-0.parquet", path, &[path, "outside of the table's folder"]);
    }

    let bench = bench(Task::ContinuedPretrain, "texts", 3, "texts.3.jsonl");
    edit(&bench, 0, "\"minReaderVersion\":1", "\"minReaderVersion\":9");
    assert!(
        bench.error().contains("not known here: Unsupported minimum reader version 9"),
        "{}",
        bench.error()
    );
    edit(&bench, 0, "\"minReaderVersion\":9", "\"minReaderVersion\":1");
    fs::remove_file(table(&bench).join("_delta_log/00000000000000000002.json")).unwrap();
    let error = version_here("delta:t", &table(&bench), None).unwrap_err();
    let DataError::Table { problem, .. } = error else { panic!("{error}") };
    assert_eq!(problem, TableProblem::Gap { wanted: 3, missing: 2 });
    fs::write(table(&bench).join("_delta_log/00000000000000000002.json"), "no JSON").unwrap();
    assert!(bench.error().contains("its version 3 cannot be understood"), "{}", bench.error());
}

#[test]
fn a_table_of_which_only_a_catalogue_knows_the_newest_version_is_refused() {
    let bench = bench(Task::ContinuedPretrain, "deleted", 1, "deleted.jsonl");
    edit(&bench, 0, "\"deletionVectors\"]", "\"deletionVectors\", \"catalogManaged\"]");
    edit(&bench, 0, "\"writerFeatures\": [", "\"writerFeatures\": [\"inCommitTimestamp\", ");
    let enabled = "\"delta.enableDeletionVectors\": \"true\"";
    edit(&bench, 0, enabled, &format!("{enabled}, \"delta.enableInCommitTimestamps\": \"true\""));
    let error = bench.error();
    assert!(
        error.contains("it needs what is not known here") && error.contains("catalog-managed"),
        "{error}"
    );
}

#[test]
fn a_damaged_checkpoint_or_data_file_is_an_error() {
    let bench = bench(Task::ChatCompletion, "conversations", 6, "conversations.jsonl");
    let checkpoint = table(&bench).join("_delta_log/00000000000000000004.checkpoint.parquet");
    let whole = fs::read(&checkpoint).unwrap();
    fs::write(&checkpoint, &whole[..whole.len() / 2]).unwrap();
    assert!(bench.error().contains("its version 6 cannot be understood"), "{}", bench.error());
    fs::write(&checkpoint, whole).unwrap();
    let file = table(&bench).join(&names_of_version("delta:t", &table(&bench), 6).unwrap()[0]);
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len() - 4;
    bytes[end - 300..end - 8].fill(0xff);
    fs::write(&file, bytes).unwrap();
    assert!(bench.error().contains("the file is damaged or incomplete"), "{}", bench.error());
}

#[test]
fn a_table_is_not_read_as_a_folder_of_files() {
    let mut bench = bench(Task::ContinuedPretrain, "texts", 3, "texts.3.jsonl");
    bench.path = table(&bench);
    bench.settings.sources.clear();
    let error = bench.error();
    assert!(
        error.contains("is a Delta table, which is read by the name delta:") && error.contains("texts;"),
        "{error}"
    );
}

#[test]
fn nor_is_one_below_a_folder_or_among_what_a_pattern_matches() {
    let mut bench = bench(Task::ContinuedPretrain, "texts", 3, "texts.3.jsonl");
    let lake = bench.folder.path().join("lake");
    copy(&fixtures().join("texts"), &lake.join("a/texts"));
    copy(&fixtures().join("pairs"), &lake.join("pairs"));
    fs::copy(&bench.path, lake.join("rows.jsonl")).unwrap();
    bench.settings.sources.clear();
    for (path, what, table) in [
        ("lake", "a folder with files of", "lake/a/texts"),
        ("lake/a", "a folder with files of", "lake/a/texts"),
        ("lake/a/*/*.parquet", "a pattern for files of", "lake/a/texts"),
        ("lake/pairs/language=*/*", "a pattern for files of", "lake/pairs"),
        ("lake/pairs/language=en/*.parquet", "a pattern for files of", "lake/pairs"),
        ("lake/pairs/language=en", "a part of", "lake/pairs"),
        ("lake/a/texts/_delta_log/00000000000000000000.json", "a part of", "lake/a/texts"),
    ] {
        bench.path = bench.folder.path().join(path);
        let error = bench.error();
        let said = format!("is {what} a Delta table, which is read by the name delta:");
        assert!(error.contains(&said) && error.contains(&format!("/{table};")), "{error}");
    }
    // What is passed over is not read either, and a name that only begins so is that of no log.
    fs::remove_dir_all(lake.join("pairs")).unwrap();
    fs::rename(lake.join("a"), lake.join("_a")).unwrap();
    fs::create_dir(lake.join("_delta_log_old")).unwrap();
    for path in ["lake", "lake/*.jsonl"] {
        bench.path = bench.folder.path().join(path);
        assert_eq!(bench.prepare().unwrap().0.pins()[0].rows, 10);
    }
}

#[test]
fn tables_are_mixed_and_parted_as_other_sources_are() {
    let mut bench = bench(Task::ContinuedPretrain, "texts", 1, "texts.1.jsonl");
    let (table, lines) =
        (bench.settings.sources[0].clone(), SourceSettings::from(bench.path.to_str().unwrap()));
    let other = fixtures().join("texts.3.jsonl");
    let other = SourceSettings { weight: 0.5, ..other.to_str().unwrap().into() };
    for hold_out in [None, Some((0.3, false)), Some((0.3, true))] {
        bench.settings.hold_out =
            hold_out.map(|(fraction, held_out)| tessera_data::HoldOut { fraction, held_out });
        bench.settings.sources = vec![table.clone(), other.clone()];
        let rows = all_rows(&bench.prepare().unwrap().0);
        bench.settings.sources = vec![lines.clone(), other.clone()];
        assert!(rows == all_rows(&bench.prepare().unwrap().0), "{hold_out:?}");
    }
}
