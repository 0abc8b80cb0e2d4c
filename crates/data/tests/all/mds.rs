//! Folders that MosaicML's own writer made (`scripts/fixtures/make_mds.py`): their rows are those of the `.jsonl` files beside
//! them, and whatever is damaged in them is named.

use std::collections::BTreeMap;

use super::sources::all_rows;
use super::*;
use tessera_data::{Columns, SourceSettings};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mds")
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)
        } else {
            fs::copy(entry.path(), to).map(drop).unwrap()
        }
    }
}

/// A bench with a copy of the fixture, which it reads.
fn bench(task: Task, name: &str) -> Bench {
    let mut bench =
        Bench::new(task, "rows.jsonl", fs::read(fixtures().join(format!("{name}.jsonl"))).unwrap());
    bench.settings.context_length = 64;
    bench.path = bench.folder.path().join(name);
    copy(&fixtures().join(name), &bench.path);
    bench
}

/// A source whose columns are called otherwise.
fn named(path: &Path, names: &[(&str, &str)]) -> SourceSettings {
    let names = names.iter().map(|(own, theirs)| ((*own).to_owned(), (*theirs).to_owned()));
    let columns = Columns::new(names.collect::<BTreeMap<_, _>>());
    SourceSettings { columns, ..path.to_str().unwrap().into() }
}

fn assert_same_as_lines(bench: &mut Bench, rows: usize) {
    let (dataset, summary) = bench.prepare().unwrap();
    assert_eq!(dataset.pins()[0].rows, rows);
    bench.settings.sources.clear();
    bench.path = bench.folder.path().join("rows.jsonl");
    let (expected, account) = bench.prepare().unwrap();
    assert!(all_rows(&dataset) == all_rows(&expected));
    assert_eq!(summary, account);
}

#[test]
fn rows_are_those_of_the_lines() {
    assert_same_as_lines(&mut bench(Task::ContinuedPretrain, "texts"), 60);
    assert_same_as_lines(&mut bench(Task::InstructionFinetune, "pairs"), 40);
    assert_same_as_lines(&mut bench(Task::ChatCompletion, "conversations"), 40);
}

#[test]
fn columns_that_are_not_wanted_may_be_of_any_encoding() {
    let mut bench = bench(Task::InstructionFinetune, "kinds");
    let error = bench.error();
    assert!(
        error.contains("shard.00000.mds is an MDS shard whose column `any` is encoded as `pkl`"),
        "{error}"
    );
    let names = [("prompt", "question"), ("response", "tokens")];
    bench.settings.sources = vec![named(&bench.path, &names)];
    assert!(
        bench.error().contains("column `tokens` is encoded as `ndarray:int32`, of which no text is made")
    );
    for number in ["number", "small", "real", "digits", "decimals"] {
        bench.settings.sources = vec![named(&bench.path, &[("prompt", "question"), ("response", number)])];
        let error = bench.error();
        assert!(
            error.contains("10 rows cannot be used") && error.contains("is a number"),
            "{number}: {error}"
        );
    }
    bench.settings.sources = vec![named(&bench.path, &[("prompt", "question"), ("response", "answer")])];
    assert_same_as_lines(&mut bench, 10);
}

#[test]
fn unpacked_shards_come_before_packed_ones() {
    let bench = bench(Task::InstructionFinetune, "pairs");
    let expected = all_rows(&bench.prepare().unwrap().0);
    for shard in ["shard.00000.mds", "shard.00001.mds"] {
        let packed = fs::read(bench.path.join(format!("{shard}.gz"))).unwrap();
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).unwrap();
        fs::write(bench.path.join(shard), unpacked).unwrap();
        fs::remove_file(bench.path.join(format!("{shard}.gz"))).unwrap();
    }
    assert!(all_rows(&bench.prepare().unwrap().0) == expected);
}

#[test]
fn a_folder_of_folders_without_an_index_is_named() {
    let bench = bench(Task::ContinuedPretrain, "texts");
    fs::remove_file(bench.path.join("index.json")).unwrap();
    let error = bench.error();
    assert!(
        error.contains("texts is a folder without index.json, but with MDS folders in it, such as "),
        "{error}"
    );
    assert!(error.contains("texts/0; name one of them, or several as a list"), "{error}");
}

/// Writes the index with a change of its text.
fn edit_index(bench: &Bench, from: &str, to: &str) {
    let path = bench.path.join("index.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn what_an_index_says_is_held_against_the_files() {
    for (from, to, expected) in [
        (
            "\"bytes\": 990",
            "\"bytes\": 991",
            "0/shard.00000.mds: cannot be read beyond its beginning: it has 990 bytes, but index.json says 991",
        ),
        ("\"samples\": 24", "\"samples\": 25", "it has 24 samples, but index.json says 25"),
        ("\"sha1\": \"f2", "\"sha1\": \"f3", "its sha1 is f23406"),
        (
            "\"xxh64\": \"25",
            "\"xxh64\": \"26",
            "its xxh64 is 25f442273433d911, but index.json says 26f442273433d911",
        ),
        ("0/shard.00000.mds", "../shard.00000.mds", "no name of a file below the folder"),
        ("0/shard.00000.mds", "0/shard.00009.mds", "0/shard.00009.mds: No such file"),
        ("[null]", "[null, 3]", "its columns have more names than encodings or sizes, or fewer"),
        ("\"samples\": 16", "\"samples\": -1", "index.json: cannot be read beyond shard 1: "),
        (
            "\"format\": \"mds\"",
            "\"format\": \"json\"",
            "shards of format `json`, version 2; `mds`, version 2, is read",
        ),
        ("\"compression\": null", "\"compression\": \"br:11\"", "packed by `br`; `zstd` and `gz` are read"),
    ] {
        let bench = bench(Task::ContinuedPretrain, "texts");
        edit_index(&bench, from, to);
        let error = bench.error();
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn columns_of_one_name_are_refused() {
    let bench = bench(Task::InstructionFinetune, "pairs");
    edit_index(&bench, r#"["prompt", "response"]"#, r#"["prompt", "prompt"]"#);
    let error = bench.error();
    assert!(error.contains("two columns are called `prompt`"), "{error}");
}

/// The error of the fixture `texts/1`, which has digests of an algorithm that is not checked, with other bytes in its shard.
fn error_with(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bench = bench(Task::ContinuedPretrain, "texts");
    bench.path.push("1");
    let shard = bench.path.join("shard.00000.mds");
    let mut bytes = fs::read(&shard).unwrap();
    change(&mut bytes);
    fs::write(&shard, &bytes).unwrap();
    let error = bench.error();
    assert!(error.contains("1/shard.00000.mds"), "{error}");
    error
}

#[test]
fn damaged_shards_are_named_with_the_row() {
    let word = |at: usize, value: u32| {
        move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    assert!(error_with(word(0, u32::MAX)).contains("it has 4294967295 samples, but index.json says 20"));
    assert!(error_with(word(4, 7)).contains("row 1 is said to begin at byte 7"));
    assert!(error_with(word(4, u32::MAX)).contains("row 1 is said to begin at byte 4294967295"));
    let error = error_with(word(16, 9));
    assert!(
        error.contains("beyond row 2: row 3 is said to be from byte ") && error.contains(" to 9;"),
        "{error}"
    );
    assert!(error_with(word(16, 859)).contains("beyond row 2: row 3 is said to be from byte "));
    assert!(
        error_with(word(84, 857))
            .contains("beyond row 20: it is said to end at byte 857, but index.json says 858")
    );
    let first = |bytes: &[u8]| u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let error = error_with(|bytes| {
        let at = first(bytes);
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    });
    assert!(error.contains("beyond row 0: row 1: `text` is said to have 4294967295 bytes, of "), "{error}");
    let error = error_with(|bytes| {
        let at = first(bytes);
        bytes[at] -= 1;
    });
    assert!(error.contains("row 1: 1 of its bytes belong to no column"), "{error}");
    let error = error_with(|bytes| {
        let at = first(bytes) + 4;
        bytes[at] = 0xff;
    });
    assert!(error.contains("row 1: column `text`: bytes that are not UTF-8"), "{error}");
}

#[test]
fn no_byte_of_a_shard_makes_a_panic() {
    let mut bench = bench(Task::InstructionFinetune, "kinds");
    let columns = [("prompt", "question"), ("response", "answer")];
    bench.settings.sources = vec![named(&bench.path, &columns)];
    let shard = bench.path.join("shard.00000.mds");
    let whole = fs::read(&shard).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x81;
        fs::write(&shard, &bytes).unwrap();
        if let Err(error) = tessera_data::validate(&bench.settings.sources, bench.settings.task, &|_| {}) {
            assert!(error.to_string().contains("shard.00000.mds"), "{error}");
        }
    }
}

#[test]
fn an_index_that_is_cut_off_is_not_taken_for_none() {
    let mut bench = bench(Task::ContinuedPretrain, "texts");
    bench.path.push("1");
    let index = bench.path.join("index.json");
    let text = fs::read(&index).unwrap();
    fs::write(&index, &text[..text.len() / 2]).unwrap();
    fs::write(bench.path.join("notes.txt"), "beside the shards").unwrap();
    let error = bench.error();
    assert!(error.contains("index.json") && error.contains("the index"), "{error}");
}

#[test]
fn packed_shards_that_end_early() {
    let bench = bench(Task::ChatCompletion, "conversations");
    let shard = bench.path.join("shard.00001.mds.zstd");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 40]).unwrap();
    assert!(bench.error().contains("index.json says 419"));
    let mut flipped = bytes.clone();
    flipped[200] ^= 1;
    fs::write(&shard, &flipped).unwrap();
    assert!(
        bench.error().contains("shard.00001.mds.zstd: cannot be read beyond its beginning: its sha1 is ")
    );
}
