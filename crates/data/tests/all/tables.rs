//! What columns of Parquet mean: every type that holds texts or lists, values that are not there, and what cannot be read.

use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, LargeListBuilder, StringBuilder, StructBuilder};
use arrow_array::{
    Array, ArrayRef, BinaryArray, Date32Array, Float64Array, Int32Array, LargeStringArray, RecordBatch,
    StringArray, StringViewArray,
};
use arrow_schema::{DataType, Field, Fields};
use tessera_data::{Columns, SourceSettings};

use super::sources::{all_rows, lines, parquet};
use super::*;

fn texts(texts: &[Option<&str>]) -> ArrayRef {
    Arc::new(texts.iter().copied().collect::<StringArray>())
}

fn table(task: Task, columns: &[(&str, ArrayRef)]) -> Bench {
    let fields: Vec<_> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let columns = columns.iter().map(|(_, column)| column.clone()).collect();
    let batch = RecordBatch::try_new(Arc::new(arrow_schema::Schema::new(fields)), columns).unwrap();
    Bench::new(task, "rows.parquet", parquet::written(&batch))
}

/// Holds a table against the rows that it means.
fn assert_means(table: &Bench, task: Task, rows: &[Value]) {
    let plain = Bench::new(task, "rows.jsonl", lines(rows));
    assert!(all_rows(&table.prepare().unwrap().0) == all_rows(&plain.prepare().unwrap().0));
}

#[test]
fn texts_may_be_of_any_type() {
    let rows = [json!({"text": "the hello"}), json!({"text": "Ω and more"})];
    let found = || rows.iter().map(|row| row["text"].as_str());
    let columns: [ArrayRef; 4] = [
        Arc::new(found().collect::<StringArray>()),
        Arc::new(found().collect::<LargeStringArray>()),
        Arc::new(found().collect::<StringViewArray>()),
        Arc::new(found().map(|text| text.map(str::as_bytes)).collect::<BinaryArray>()),
    ];
    for column in columns {
        assert_means(&table(Task::ContinuedPretrain, &[("text", column)]), Task::ContinuedPretrain, &rows);
    }
    let broken: ArrayRef = Arc::new(BinaryArray::from(vec![b"the hello".as_slice(), b"\xff"]));
    let error = table(Task::ContinuedPretrain, &[("text", broken)]).error();
    assert!(error.contains("row 2: column `text`: bytes that are not UTF-8"), "{error}");
}

/// The messages of two conversations, of two messages each.
fn turns() -> StructBuilder {
    let fields = ["role", "content"].map(|name| Field::new(name, DataType::Utf8, true));
    StructBuilder::from_fields(Fields::from(fields.to_vec()), 0)
}

fn turn(builder: &mut StructBuilder, role: &str, content: &str) {
    for (place, text) in [role, content].into_iter().enumerate() {
        builder.field_builder::<StringBuilder>(place).unwrap().append_value(text);
    }
    builder.append(true);
}

#[test]
fn messages_may_be_in_long_lists_and_in_lists_of_one_length() {
    let (mut long, mut fixed) = (LargeListBuilder::new(turns()), FixedSizeListBuilder::new(turns(), 2));
    let conversations = [("the hello", "ab"), ("and more", "the")];
    for (question, answer) in conversations {
        for builder in [long.values(), fixed.values()] {
            turn(builder, "user", question);
            turn(builder, "assistant", answer);
        }
        long.append(true);
        fixed.append(true);
    }
    let rows = conversations.map(|(question, answer)| {
        let turns = chat(&[("user", question), ("assistant", answer)]);
        serde_json::from_str(&turns).unwrap()
    });
    let columns: [ArrayRef; 2] = [Arc::new(long.finish()), Arc::new(fixed.finish())];
    for column in columns {
        assert_means(&table(Task::ChatCompletion, &[("messages", column)]), Task::ChatCompletion, &rows);
    }
}

#[test]
fn nulls_and_nan_are_values_that_are_not_there() {
    let pairs = |score: ArrayRef, note: ArrayRef| {
        let (prompts, responses) =
            (texts(&[Some("the"), Some("and")]), texts(&[Some("hello"), Some("more")]));
        let columns = [("prompt", prompts), ("response", responses), ("score", score), ("note", note)];
        table(Task::InstructionFinetune, &columns)
    };
    let nothing = || texts(&[None, None]);
    let nan: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY]));
    let rows = [json!({"prompt": "the", "response": "hello"}), json!({"prompt": "and", "response": "more"})];
    assert_means(&pairs(nan, nothing()), Task::InstructionFinetune, &rows);
    let number: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, 1.5]));
    let error = pairs(number, nothing()).error();
    assert!(error.contains("row 2: found the keys `prompt`, `response`, `score`, expected"), "{error}");
    assert!(!error.contains("row 1:"), "{error}");
}

#[test]
fn rows_have_their_numbers_however_many_are_read_at_once() {
    let mut rows = vec![Some("the hello"); 3000];
    rows[2499] = None;
    let error = table(Task::ContinuedPretrain, &[("text", texts(&rows))]).error();
    assert!(error.contains("row 2500: found no keys"), "{error}");
}

#[test]
fn what_is_no_text_is_named() {
    let number: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let error = table(Task::ContinuedPretrain, &[("text", number)]).error();
    assert!(error.contains("row 1: `text` is a number, expected a string"), "{error}");
    let date: ArrayRef = Arc::new(Date32Array::from(vec![1]));
    let error = table(Task::ContinuedPretrain, &[("text", date)]).error();
    assert!(error.contains("row 1: column `text`: values of type Date32 cannot be used"), "{error}");
}

#[test]
fn columns_of_one_name_are_refused() {
    let error =
        table(Task::ContinuedPretrain, &[("text", texts(&[Some("the")])), ("text", texts(&[Some("hello")]))])
            .error();
    assert!(error.contains("two columns are called `text`"), "{error}");
}

#[test]
fn columns_of_one_name_that_nobody_wants_are_no_hindrance() {
    let other = || texts(&[Some("no")]);
    let columns = [("body", texts(&[Some("the hello")])), ("x", other()), ("x", other())];
    let mut bench = table(Task::ContinuedPretrain, &columns);
    let columns = Columns::new([("text".to_owned(), "body".to_owned())].into());
    bench.settings.sources = vec![SourceSettings { columns, ..bench.path.to_str().unwrap().into() }];
    assert_means(&bench, Task::ContinuedPretrain, &[json!({"text": "the hello"})]);
}

#[test]
fn columns_that_are_not_there_are_named() {
    let mut bench = table(Task::ContinuedPretrain, &[("body", texts(&[Some("the"); 3000]))]);
    let columns = Columns::new([("text".to_owned(), "content".to_owned())].into());
    bench.settings.sources = vec![SourceSettings { columns, ..bench.path.to_str().unwrap().into() }];
    let error = bench.error();
    assert!(error.contains("row 1: found no keys, but `columns` takes `text` from `content`"), "{error}");
}
