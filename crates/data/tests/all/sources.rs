//! Where rows come from: whatever they are written in, equal rows give equal batches; columns are named, sources mixed,
//! examples set aside.

use std::io::Write;

use super::*;
use tessera_data::{Columns, HoldOut, MicroBatch, SourceSettings, wanted_names};

/// All rows of a data set as one micro-batch.
pub(crate) fn all_rows(dataset: &Dataset) -> MicroBatch {
    dataset.micro_batch(&(0..dataset.rows()).map(Some).collect::<Vec<_>>())
}

/// Texts with what formats quote, escape and take apart.
fn texts() -> Vec<(String, String)> {
    let pieces =
        ["the hello", "a, b", "say \"no\"", "two\nlines", "Ω and 'x'", " {[: }", "\\back\\", "tab\tand \r\n"];
    let text = |number: usize| -> String {
        (0..1 + number % 5).map(|piece| pieces[(number * 3 + piece) % pieces.len()]).collect()
    };
    (0..160).map(|number| (text(number), text(number * 7 + 3))).collect()
}

fn pairs() -> Vec<Value> {
    texts().into_iter().map(|(prompt, response)| json!({"prompt": prompt, "response": response})).collect()
}

fn conversations() -> Vec<Value> {
    let turn = |(question, answer): (String, String)| json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]});
    texts().into_iter().map(turn).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

pub(crate) fn lines(rows: &[Value]) -> Vec<u8> {
    rows.iter().flat_map(|row| format!("{row}\n").into_bytes()).collect()
}

fn csv_of(rows: &[Value], columns: &[&str]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns).unwrap();
    for row in rows {
        let field = |column: &&str| match &row[*column] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        writer.write_record(columns.iter().map(field)).unwrap();
    }
    writer.into_inner().unwrap()
}

/// The rows in every format, by file name.
fn written(rows: &[Value], columns: &[&str]) -> Vec<(String, Vec<u8>)> {
    let list = serde_json::to_vec_pretty(&Value::Array(rows.to_vec())).unwrap();
    let pretty = |row: &Value| serde_json::to_vec_pretty(row).unwrap();
    let one_by_one: Vec<u8> = rows.iter().flat_map(|row| [pretty(row), b"\n\n".to_vec()].concat()).collect();
    let with_mark = [b"\xef\xbb\xbf".to_vec(), lines(rows)].concat();
    let plain = [
        ("rows.jsonl", lines(rows)),
        ("marked.jsonl", with_mark),
        ("list.json", list),
        ("one_by_one.json", one_by_one),
        ("lines.json", lines(rows)),
        ("rows.csv", csv_of(rows, columns)),
    ];
    let packed = plain.clone().into_iter().flat_map(|(name, bytes)| {
        [
            (name.to_owned(), bytes.clone()),
            (format!("{name}.gz"), gzip(&bytes)),
            // Members one after the other are one text.
            (
                format!("members.{name}.gz"),
                [gzip(&bytes[..bytes.len() / 3]), gzip(&bytes[bytes.len() / 3..])].concat(),
            ),
            (format!("{name}.zst"), zstd(&bytes)),
        ]
    });
    packed.collect()
}

fn assert_same_rows(task: Task, rows: &[Value], columns: &[&str]) {
    let mut bench = Bench::new(task, "reference.jsonl", lines(rows));
    bench.settings.context_length = 64;
    let (expected, account) = bench.prepare().unwrap();
    let expected = all_rows(&expected);
    let check = |bench: &Bench, what: &str| {
        let (dataset, summary) = bench.prepare().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(all_rows(&dataset) == expected, "{what}");
        assert_eq!(summary, account, "{what}");
        assert_eq!(dataset.pins()[0].rows, rows.len(), "{what}");
    };
    #[cfg(feature = "parquet")]
    let parquet = Some(("rows.parquet".to_owned(), parquet::file(rows, columns)));
    #[cfg(not(feature = "parquet"))]
    let parquet = None;
    for (name, bytes) in written(rows, columns).iter().chain(&parquet) {
        bench.path = bench.folder.path().join(name);
        fs::write(&bench.path, bytes).unwrap();
        check(&bench, name);
    }
    // In parts of different kinds, with what is no data beside them.
    let root = bench.folder.path().join("parts");
    fs::create_dir_all(root.join("b")).unwrap();
    let (first, rest) = rows.split_at(rows.len() / 3);
    fs::write(root.join("a.jsonl.gz"), gzip(&lines(first))).unwrap();
    fs::write(root.join("b/c.csv"), csv_of(rest, columns)).unwrap();
    fs::write(root.join("README.md"), "about the data").unwrap();
    fs::write(root.join("_SUCCESS.json"), "").unwrap();
    bench.path = root.clone();
    check(&bench, "a folder");
    fs::rename(root.join("b/c.csv"), root.join("c.csv")).unwrap();
    bench.path = root.join("*.[cj]s*");
    check(&bench, "a pattern");
}

#[test]
fn pairs_are_the_same_in_every_format() {
    assert_same_rows(Task::InstructionFinetune, &pairs(), &["prompt", "response"]);
}

#[test]
fn conversations_are_the_same_in_every_format() {
    assert_same_rows(Task::ChatCompletion, &conversations(), &["messages"]);
}

#[test]
fn texts_are_the_same_in_every_format_and_as_files() {
    let rows: Vec<_> = texts().into_iter().map(|(text, _)| json!({ "text": text })).collect();
    assert_same_rows(Task::ContinuedPretrain, &rows, &["text"]);
    let mut bench = Bench::new(Task::ContinuedPretrain, "rows.jsonl", lines(&rows));
    let expected = all_rows(&bench.prepare().unwrap().0);
    for (ending, pack) in
        [("txt", None), ("txt.gz", Some(gzip as fn(&[u8]) -> Vec<u8>)), ("txt.zst", Some(zstd))]
    {
        let root = bench.folder.path().join(ending);
        fs::create_dir(&root).unwrap();
        for (number, row) in rows.iter().enumerate() {
            let text = row["text"].as_str().unwrap().as_bytes();
            let bytes = pack.map_or_else(|| text.to_vec(), |pack| pack(text));
            fs::write(root.join(format!("{number:04}.{ending}")), bytes).unwrap();
        }
        bench.path = root;
        assert!(all_rows(&bench.prepare().unwrap().0) == expected, "{ending}");
    }
}

#[test]
fn batches_do_not_depend_on_how_much_is_read_at_once() {
    // Longer than what is read at once, with rows longer than a good part of that.
    let long = |number: usize| pair(&"the hello ".repeat(1 + number * 7919 % 20_000), "ab");
    let rows: Vec<Value> = (0..100).map(|number| serde_json::from_str(&long(number)).unwrap()).collect();
    let bytes = lines(&rows);
    assert!(bytes.len() > 9 << 20, "{}", bytes.len());
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", &bytes);
    let expected = all_rows(&bench.prepare().unwrap().0);
    for (name, bytes) in [
        ("a.jsonl.gz", gzip(&bytes)),
        ("a.json", serde_json::to_vec(&rows).unwrap()),
        ("a.csv", csv_of(&rows, &["prompt", "response"])),
        #[cfg(feature = "parquet")]
        ("a.parquet", parquet::file(&rows, &["prompt", "response"])),
    ] {
        bench.path = bench.folder.path().join(name);
        fs::write(&bench.path, bytes).unwrap();
        assert!(all_rows(&bench.prepare().unwrap().0) == expected, "{name}");
    }
}

fn named(path: &Path, names: &[(&str, &str)]) -> SourceSettings {
    let names = names.iter().map(|(own, theirs)| ((*own).to_owned(), (*theirs).to_owned()));
    let columns = Columns::new(names.collect());
    SourceSettings { columns, ..path.to_str().unwrap().into() }
}

#[test]
fn columns_are_called_as_they_are_said_to_be() {
    let row = |(prompt, response): &(String, String)| json!({"id": 1, "question": prompt, "response": response, "x": null});
    let rows: Vec<_> = texts().iter().map(row).collect();
    let mut bench = Bench::new(Task::InstructionFinetune, "plain.jsonl", lines(&pairs()));
    let expected = all_rows(&bench.prepare().unwrap().0);
    bench.path = bench.folder.path().join("named.jsonl");
    fs::write(&bench.path, lines(&rows)).unwrap();
    bench.settings.sources = vec![named(&bench.path, &[("prompt", "question")])];
    assert!(all_rows(&bench.prepare().unwrap().0) == expected);
    bench.settings.sources = vec![named(&bench.path, &[("prompt", "query"), ("response", "x")])];
    let error = bench.error();
    assert!(
        error.contains(
            "line 1: found the keys `id`, `question`, `response`, `x`, but `columns` takes `prompt` from `query`"
        ),
        "{error}"
    );
}

#[test]
fn sharegpts_conversations_are_read() {
    let row = |(question, answer): (String, String)| json!({"id": "a", "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]});
    let rows: Vec<_> = texts().into_iter().map(row).collect();
    let mut bench = Bench::new(Task::ChatCompletion, "plain.jsonl", lines(&conversations()));
    let expected = all_rows(&bench.prepare().unwrap().0);
    bench.path = bench.folder.path().join("sharegpt.json");
    fs::write(&bench.path, serde_json::to_vec(&rows).unwrap()).unwrap();
    assert!(all_rows(&bench.prepare().unwrap().0) == expected);
    // The same under another name, beside other columns.
    let renamed =
        rows.iter().map(|row| json!({"said": row["conversations"], "score": 1})).collect::<Vec<_>>();
    fs::write(&bench.path, serde_json::to_vec(&renamed).unwrap()).unwrap();
    bench.settings.sources = vec![named(&bench.path, &[("messages", "said")])];
    assert!(all_rows(&bench.prepare().unwrap().0) == expected);
    let strange =
        json!([{"conversations": [{"from": "robot", "value": "a"}, {"from": "gpt", "value": "b"}]}]);
    fs::write(&bench.path, strange.to_string()).unwrap();
    bench.settings.sources.clear();
    let problem = "row 1: message 1 is from \"robot\", expected \"system\", \"human\" or \"gpt\"";
    assert!(bench.error().contains(problem), "{}", bench.error());
}

#[test]
fn sources_are_mixed_by_their_weights() {
    let rows = |letter: &str, count: usize| -> String {
        (0..count).map(|number| pair(letter, &number.to_string()) + "\n").collect()
    };
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", rows("a", 6));
    let other = bench.folder.path().join("b.jsonl");
    fs::write(&other, rows("b", 2)).unwrap();
    let source = |path: &Path, weight| SourceSettings { weight, ..path.to_str().unwrap().into() };
    bench.settings.sources = vec![source(&bench.path, 3.0), source(&other, 2.0)];
    bench.settings.packing = Packing::None;
    let marked = bench.marked();
    let expected = ["a0", "b0", "a1", "b1", "a2", "a3", "b0", "a4", "b1", "a5"];
    assert_eq!(marked, expected.map(|pair| format!("{}[[{}<|end|>]]", &pair[..1], &pair[1..])));
    let (dataset, summary) = bench.prepare().unwrap();
    let used: Vec<_> =
        summary.sources.iter().map(|source| (source.records, source.kept, source.used)).collect();
    assert_eq!((summary.examples, used), (8, vec![(6, 6, 6), (2, 2, 4)]));
    assert_eq!(dataset.pins().iter().map(|pin| pin.rows).collect::<Vec<_>>(), [6, 2]);
    bench.settings.sources = vec![source(&bench.path, 1.0), source(&other, 1.0e9)];
    let error = bench.error();
    assert!(error.contains("b.jsonl would have to come round 3000000000 times for its weight"), "{error}");
    // Weights are relative.
    bench.settings.sources = vec![source(&bench.path, 0.6), source(&other, 0.4)];
    assert_eq!(bench.marked(), marked);
}

#[test]
fn what_is_set_aside_follows_from_the_text_alone() {
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", lines(&pairs()));
    bench.settings.packing = Packing::None;
    let all = bench.marked();
    let split = |bench: &mut Bench, held_out| {
        bench.settings.hold_out = Some(HoldOut { fraction: 0.25, held_out });
        bench.marked()
    };
    let (train, eval) = (split(&mut bench, false), split(&mut bench, true));
    assert_eq!(train.len() + eval.len(), all.len());
    assert!((10..80).contains(&eval.len()), "{}", eval.len());
    let in_order: Vec<_> = all.iter().filter(|example| eval.contains(example)).cloned().collect();
    assert_eq!(in_order, eval, "equal examples are on one side, in their order");
    assert!(train.iter().all(|example| !eval.contains(example)));
    // Other rows before them, another format: the same examples are set aside.
    let more: Vec<_> = [vec![json!({"prompt": "first", "response": "more"})], pairs()].concat();
    bench.path = bench.folder.path().join("b.csv");
    fs::write(&bench.path, csv_of(&more, &["prompt", "response"])).unwrap();
    let later: Vec<_> =
        split(&mut bench, true).into_iter().filter(|text| !text.starts_with("first")).collect();
    assert_eq!(later, eval);
    bench.settings.hold_out = Some(HoldOut { fraction: 1.0e-9, held_out: true });
    assert!(bench.error().contains("which leaves none to evaluate on"), "{}", bench.error());
}

/// Parquet files, written by the crate that reads them.
#[cfg(feature = "parquet")]
pub(crate) mod parquet {
    use std::sync::Arc;

    use arrow_array::builder::{ListBuilder, StringBuilder, StructBuilder};
    use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
    use arrow_schema::{DataType, Field, Fields};
    use serde_json::Value;

    fn text(row: &Value, column: &str) -> String {
        row[column].as_str().unwrap().to_owned()
    }

    fn messages(rows: &[Value]) -> ArrayRef {
        let fields = ["role", "content"].map(|name| Field::new(name, DataType::Utf8, true));
        let mut list = ListBuilder::new(StructBuilder::from_fields(Fields::from(fields.to_vec()), 0));
        for row in rows {
            for message in row["messages"].as_array().unwrap() {
                for (place, name) in ["role", "content"].into_iter().enumerate() {
                    let builder = list.values().field_builder::<StringBuilder>(place).unwrap();
                    builder.append_value(message[name].as_str().unwrap());
                }
                list.values().append(true);
            }
            list.append(true);
        }
        Arc::new(list.finish())
    }

    /// The rows as a file.
    pub(crate) fn file(rows: &[Value], columns: &[&str]) -> Vec<u8> {
        let column = |name: &&str| -> (String, ArrayRef) {
            let array: ArrayRef = match *name {
                "messages" => messages(rows),
                name => Arc::new(rows.iter().map(|row| Some(text(row, name))).collect::<StringArray>()),
            };
            assert_eq!(array.len(), rows.len());
            ((*name).to_owned(), array)
        };
        written(&RecordBatch::try_from_iter(columns.iter().map(column)).unwrap())
    }

    /// The rows in several row groups of several pages.
    pub(crate) fn written(batch: &RecordBatch) -> Vec<u8> {
        let properties = parquet::file::properties::WriterProperties::builder()
            .set_max_row_group_row_count(Some(60))
            .set_data_page_row_count_limit(20)
            .set_write_batch_size(20)
            .set_compression(parquet::basic::Compression::SNAPPY)
            .build();
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
        writer.write(batch).unwrap();
        writer.into_inner().unwrap()
    }
}

#[test]
fn names_of_a_folder_elsewhere_are_chosen_as_those_of_one_here() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let all = names(&[
        "a.jsonl",
        "b/c.csv.gz",
        "b/d.TXT",
        "README.md",
        "_SUCCESS.json",
        "_temporary/e.jsonl",
        "b/.hidden.jsonl",
        "shard.00000.mds",
    ]);
    let rows = names(&["a.jsonl", "b/c.csv.gz"]);
    assert_eq!(wanted_names(all.clone(), Task::ChatCompletion), rows);
    assert_eq!(wanted_names(all.clone(), Task::ContinuedPretrain), names(&["b/d.TXT"]));
    assert_eq!(wanted_names(rows.clone(), Task::ContinuedPretrain), rows);
    let shards = names(&["index.json", "0/shard.00000.mds.zstd", "0/index.json"]);
    assert_eq!(
        wanted_names([shards.clone(), names(&["x.txt", "y.md"])].concat(), Task::ContinuedPretrain),
        shards
    );
    // Without shards it is a file of rows like others.
    let documents = names(&["index.json", "x.txt"]);
    assert_eq!(wanted_names(documents, Task::ContinuedPretrain), names(&["x.txt"]));
}
