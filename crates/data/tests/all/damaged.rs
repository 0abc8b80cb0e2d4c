//! Files that stop in the middle or are not what their names say: named with the place, never a panic, never rows
//! silently missing.

use super::sources::{gzip, lines, zstd};
use super::*;

fn rows(count: usize) -> Vec<Value> {
    (0..count).map(|number| json!({"prompt": format!("q{}", number * 7919), "response": "a, b"})).collect()
}

fn error_of(name: &str, content: impl AsRef<[u8]>) -> String {
    let bench = Bench::new(Task::InstructionFinetune, name, content);
    let error = bench.error();
    assert!(error.contains(name), "{error}");
    error
}

#[test]
fn packed_files_that_end_early() {
    let bytes = lines(&rows(20_000));
    for (name, packed) in [("a.jsonl.gz", gzip(&bytes)), ("a.jsonl.zst", zstd(&bytes))] {
        let error = error_of(name, &packed[..packed.len() / 2]);
        assert!(error.contains(": cannot be read beyond line "), "{error}");
        assert!(error.contains("the file is damaged or incomplete, fetch or write it again"), "{error}");
        let line: usize =
            error.split("beyond line ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
        assert!((1000..20_000).contains(&line), "{error}");
    }
    assert!(error_of("a.jsonl.gz", &bytes).contains("cannot be read beyond its beginning: "));
    assert!(error_of("a.csv.zst", &bytes).contains("cannot be read beyond its beginning: "));
    assert!(error_of("a.json.gz", &gzip(&bytes)[..60]).contains("cannot be read beyond "));
}

#[test]
fn flipped_bits_of_a_packed_file() {
    let mut packed = gzip(&lines(&rows(3000)));
    let end = packed.len() - 6;
    packed[end] ^= 1;
    assert!(error_of("a.jsonl.gz", &packed).contains("cannot be read beyond line 3000: "));
}

#[test]
fn lists_that_are_no_lists() {
    let whole = serde_json::to_string_pretty(&rows(3)).unwrap();
    let error = error_of("a.json", &whole[..whole.len() - 2]);
    assert!(error.contains("cannot be read beyond row 2: the list does not end"), "{error}");
    let error = error_of("a.json", format!("{whole} {{}}"));
    assert!(error.contains("the list has ended, but text follows it"), "{error}");
    let error = error_of("a.json", whole.replacen("},", "},,", 1));
    assert!(
        error.contains("row 2: nothing stands before the comma or bracket at line 5, column 5"),
        "{error}"
    );
    let error = error_of("a.json", whole.replacen("\"response\":", "\"response\"", 1));
    assert!(error.contains("row 1: broken JSON at line 4, column 16: expected `:`"), "{error}");
    assert!(error_of("a.json", "[1, \"a\"]").contains("row 2: found a string, expected a JSON object"));
    assert!(error_of("a.json", " \n").contains("is empty"));
    assert!(error_of("a.json", "[ ]").contains("is empty"));
    let error = error_of("a.json", "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": \"a\"");
    assert!(error.contains("row 2: broken JSON at line 2, column 14: EOF"), "{error}");
}

#[test]
fn rows_of_csv_that_do_not_fit_their_header() {
    let error = error_of("a.csv", "prompt,response\na,b\n\n\"c\nd\",e\nf\ng,h,i\nj,k\n");
    assert!(error.contains("2 rows cannot be used"), "{error}");
    assert!(
        error.contains("line 6: the row has 1 field, but the header names 2; a field with commas"),
        "{error}"
    );
    assert!(error.contains("line 7: the row has 3 fields, but the header names 2"), "{error}");
    let error = error_of("a.csv", b"prompt,response\na,b\nc,\xff\n");
    assert!(error.contains("line 3: `response` is not UTF-8"), "{error}");
    assert!(error_of("a.csv", "prompt,prompt\na,b\n").contains("two columns are called `prompt`"));
    assert!(error_of("a.csv", "prompt,response\n").contains("is empty"));
    let error = error_of("a.csv", "question,answer\na,b\n");
    assert!(error.contains("line 2: found the keys `question`, `answer`, expected `prompt`"), "{error}");
    // The quote swallows what follows it.
    assert!(error_of("a.csv", "prompt,response\n\"a,b\nc,d\n").contains("line 2: the row has 1 field"));
    let bench = Bench::new(Task::ChatCompletion, "a.csv", "messages\nhello\n");
    assert!(bench.error().contains("`messages` is a text, but not that of a list of messages in JSON"));
}

#[test]
fn lines_without_end_are_not_read_into_memory() {
    let bench = Bench::new(Task::InstructionFinetune, "a.jsonl", "");
    let file = fs::File::create(&bench.path).unwrap();
    // Nothing but zeros, which a disk does not hold.
    file.set_len(600 << 20).unwrap();
    let error = bench.error();
    assert!(error.contains("beyond the beginning of line 1: the line has no end within 256 MiB"), "{error}");
}

#[test]
fn names_that_say_too_little() {
    assert!(error_of("a.xml", "x").contains("is a file of type \"xml\"; INSTRUCTION_FINETUNE expects rows"));
    assert!(error_of("a.txt", "x").contains("is a file of type \"txt\""));
    assert!(error_of("a.parquet.gz", gzip(b"x")).contains("must be unpacked (it is compressed inside)"));
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", lines(&rows(2)));
    bench.path = bench.folder.path().join("*.csv");
    assert!(bench.error().contains("*.csv: no such file or folder"), "{}", bench.error());
    bench.path = bench.folder.path().join("a[.jsonl");
    assert!(bench.error().contains("is not a pattern for file names"), "{}", bench.error());
    #[cfg(not(feature = "parquet"))]
    assert!(error_of("a.parquet", "x").contains("build it with --features parquet"));
}

#[cfg(feature = "parquet")]
mod parquet {
    use super::*;
    use crate::sources::{all_rows, parquet};

    const COLUMNS: [&str; 2] = ["prompt", "response"];

    #[test]
    fn files_that_end_early_or_are_something_else() {
        let whole = parquet::file(&rows(400), &COLUMNS);
        assert!(
            error_of("a.parquet", &whole[..whole.len() - 1])
                .contains("cannot be read beyond its beginning: ")
        );
        assert!(error_of("a.parquet", &whole[whole.len() / 2..]).contains("cannot be read beyond "));
        assert!(error_of("a.parquet", "no parquet").contains("cannot be read beyond its beginning: "));
    }

    #[test]
    fn a_damaged_page_is_told_with_the_row() {
        // More than are read at once, of which the first are whole.
        let mut bytes = parquet::file(&rows(40_000), &COLUMNS);
        let place = bytes.len() / 2;
        bytes[place..place + 200].fill(0xff);
        let error = error_of("a.parquet", &bytes);
        assert!(error.contains("cannot be read beyond ") && error.contains("row "), "{error}");
    }

    #[test]
    fn no_flipped_byte_ends_in_a_panic_or_in_fewer_rows() {
        let bytes = parquet::file(&rows(200), &COLUMNS);
        let mut bench = Bench::new(Task::InstructionFinetune, "a.parquet", &bytes);
        let rows = all_rows(&bench.prepare().unwrap().0).row_starts.len();
        let (mut refused, mut read) = (0, 0);
        for place in (0..bytes.len()).step_by(bytes.len() / 300 + 1) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x55;
            bench.path = bench.folder.path().join("b.parquet");
            fs::write(&bench.path, &damaged).unwrap();
            match bench.prepare() {
                Ok((dataset, summary)) => {
                    assert_eq!(summary.examples, 200, "byte {place}");
                    assert!(all_rows(&dataset).row_starts.len().abs_diff(rows) < 5);
                    read += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains("b.parquet"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 50 && read + refused > 200, "{refused} refused, {read} read");
    }
}
