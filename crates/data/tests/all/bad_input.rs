//! What is wrong with data is said with the file, the line, what was found and what is expected.

use super::*;

/// The problem of a row between two good ones.
fn problem(task: Task, row: &str) -> String {
    let good = match task {
        Task::ChatCompletion => chat(&[("user", "a"), ("assistant", "b")]),
        _ => pair("a", "b"),
    };
    let bench = Bench::new(task, "train.jsonl", format!("{good}\n\n{row}\n{good}\n"));
    let error = bench.error();
    let (head, problem) = error.split_once("\n  line 3: ").unwrap_or_else(|| panic!("{error}"));
    assert_eq!(head, format!("{}: 1 row cannot be used for {task}", bench.path.display()));
    problem.to_owned()
}

fn chat_problem(turns: &[(&str, &str)]) -> String {
    problem(Task::ChatCompletion, &chat(turns))
}

#[test]
fn rows_that_are_no_conversation() {
    let found = |row: Value| problem(Task::ChatCompletion, &row.to_string());
    assert_eq!(problem(Task::ChatCompletion, "[1]"), "found a list, expected a JSON object");
    assert_eq!(
        found(json!({"prompt": "a", "response": "b"})),
        "found the keys `prompt`, `response`, expected the key `messages` alone; for prompts set task_type: \
         INSTRUCTION_FINETUNE"
    );
    assert_eq!(
        found(json!({"messages": [], "id": 1})),
        "found the keys `messages`, `id`, expected the key `messages` alone"
    );
    assert_eq!(found(json!({"messages": "a"})), "`messages` is a string, expected a list of messages");
    assert_eq!(
        found(json!({"messages": [{"role": "assistant", "content": "a"}]})),
        "`messages` has 1 of the at least two messages of a conversation (user, assistant)"
    );
    assert_eq!(
        found(json!({"messages": ["a", "b"]})),
        "message 1 is a string, expected an object with `role` and `content`"
    );
    assert_eq!(
        found(json!({"messages": [{"role": "user", "content": "a", "name": "x"}, {}]})),
        "message 1 has the keys `role`, `content`, `name`, expected `role` and `content` alone"
    );
    assert_eq!(
        found(json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]})),
        "message 2 has the keys `role`, expected `role` and `content` alone"
    );
    assert_eq!(
        found(
            json!({"messages": [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]})
        ),
        "the content of message 1 is a list, expected a string"
    );
}

#[test]
fn conversations_out_of_order() {
    assert_eq!(
        chat_problem(&[("user", "a"), ("bot", "b")]),
        "message 2 has the role \"bot\", expected \"system\", \"user\" or \"assistant\""
    );
    assert_eq!(
        chat_problem(&[("user", "a"), ("system", "b"), ("assistant", "c")]),
        "message 2 has the role \"system\", which only the first may have"
    );
    assert_eq!(
        chat_problem(&[("user", "a"), ("assistant", "b"), ("assistant", "c")]),
        "message 3 repeats the role \"assistant\"; user and assistant must alternate"
    );
    assert_eq!(
        chat_problem(&[("system", "a"), ("assistant", "b")]),
        "message 2 is the assistant's, but the user must speak first"
    );
    assert_eq!(
        chat_problem(&[("user", "a"), ("assistant", "b"), ("user", "c")]),
        "the last message has the role \"user\", expected \"assistant\""
    );
    assert_eq!(
        chat_problem(&[("system", "a"), ("user", "c")]),
        "no message has the role \"assistant\": there is nothing to learn from"
    );
}

#[test]
fn rows_that_are_no_pair() {
    let found = |row: Value| problem(Task::InstructionFinetune, &row.to_string());
    assert_eq!(
        found(json!({"messages": []})),
        "found the keys `messages`, expected `prompt` and one of `response` and `completion`; for conversations set \
         task_type: CHAT_COMPLETION"
    );
    assert_eq!(
        found(json!({"prompt": "a", "response": "b", "completion": "c"})),
        "found the keys `prompt`, `response`, `completion`, expected `prompt` and one of `response` and `completion`"
    );
    assert_eq!(found(json!({})), "found no keys, expected `prompt` and one of `response` and `completion`");
    assert_eq!(found(json!({"prompt": 1, "response": "b"})), "`prompt` is a number, expected a string");
    assert_eq!(found(json!({"prompt": "a", "completion": null})), "`completion` is null, expected a string");
}

#[test]
fn broken_json() {
    assert_eq!(
        problem(Task::InstructionFinetune, r#"{"prompt": "a" "response": "b"}"#),
        "broken JSON at column 16: expected `,` or `}`; each line must be one whole JSON object"
    );
    let message = problem(Task::InstructionFinetune, r#"{"prompt": "a"#);
    assert!(message.contains("EOF while parsing a string"), "{message}");
}

#[test]
fn keys_that_are_there_twice() {
    assert_eq!(
        problem(Task::InstructionFinetune, r#"{"prompt": "a", "response": "b", "prompt": "c"}"#),
        "the key `prompt` is there twice in one object (column 41); keep one of the two"
    );
    let twice = r#"{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}"#;
    let message = problem(Task::ChatCompletion, twice);
    assert!(message.starts_with("the key `content` is there twice in one object"), "{message}");
}

#[test]
fn bytes_that_are_no_text() {
    let mut content = (pair("a", "b") + "\n{\"prompt\": \"").into_bytes();
    let offset = content.len();
    content.extend(b"\xff\", \"response\": \"b\"}\n");
    let error = Bench::new(Task::InstructionFinetune, "a.jsonl", content).error();
    let expected =
        format!("line 2: not UTF-8: byte 0xff at byte offset {offset} of the file; save the file as UTF-8");
    assert!(error.contains(&expected), "{error}");

    let bench = Bench::new(Task::ContinuedPretrain, "a.txt", b"\xef\xbb\xbfone\ntwo\nth\xe9");
    let expected = format!("{}, line 3: not UTF-8: byte 0xe9 at byte offset 13", bench.path.display());
    assert!(bench.error().contains(&expected), "{}", bench.error());
}

#[test]
fn all_bad_rows_are_counted_and_twenty_shown() {
    let lines: String =
        (0..45).map(|number| if number % 3 == 0 { "{}\n".into() } else { pair("a", "b") + "\n" }).collect();
    let bench = Bench::new(Task::InstructionFinetune, "a.jsonl", lines.repeat(3));
    match bench.prepare().err().unwrap() {
        DataError::InvalidData { total, shown, .. } => {
            assert_eq!((total, shown.len()), (45, 20));
            assert_eq!(shown.iter().map(|problem| problem.number).take(3).collect::<Vec<_>>(), [1, 4, 7]);
        }
        other => panic!("{other}"),
    }
    assert!(bench.error().ends_with("\n  … and 25 more"), "{}", bench.error());
    assert!(bench.error().contains(": 45 rows cannot be used"), "{}", bench.error());
}

#[test]
fn a_template_that_refuses_a_role() {
    let refused = chat(&[("system", "s"), ("user", "a"), ("assistant", "b")]);
    let lines = [chat(&[("user", "a"), ("assistant", "b")]), refused.clone(), refused].join("\n");
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", lines);
    bench.tokenizer = tokenizer(TOKENIZER, "<|end|>", Some(NO_SYSTEM));
    let error = bench.error();
    let problem = "the chat template refuses this conversation: System role not supported (line 2 of the template); it takes \
                   the conversation without the system message: remove that, or put its text at the beginning of the first \
                   user message";
    assert!(
        error.contains(&format!(
            ": 2 rows cannot be used for CHAT_COMPLETION\n  line 2: {problem}\n  line 3: {problem}"
        )),
        "{error}"
    );
    bench.tokenizer = tokenizer(TOKENIZER, "<|end|>", Some("{{ raise_exception('never') }}"));
    let problem = "line 1: the chat template refuses this conversation: never (line 1 of the template); change the \
                   conversation, or give the model's folder a chat_template.jinja that takes it";
    assert!(bench.error().contains(problem), "{}", bench.error());
}

#[test]
fn a_template_that_loses_the_system_message() {
    // As Mistral's of v3: the system message stands in the last message, if that is the user's.
    let template = "{% if messages[0].role == 'system' %}{% set system, said = messages[0].content, messages[1:] %}{% else %}\
                    {% set said = messages %}{% endif %}{% for message in said %}{% if message.role == 'user' and loop.last \
                    and system is defined %}{{ system }}{% endif %}[{{ message.content }}]{% endfor %}";
    let said = [("system", "s"), ("user", "a"), ("assistant", "b")];
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", chat(&said));
    bench.tokenizer = tokenizer(TOKENIZER, "<|end|>", Some(template));
    let error = bench.error();
    assert!(error.contains("line 1: the chat template renders message 3 differently"), "{error}");
    assert!(
        error.contains("no loss mask can be placed; it takes the conversation without the system message"),
        "{error}"
    );
}

#[test]
fn ids_that_the_model_does_not_have() {
    let mut bench =
        Bench::new(Task::InstructionFinetune, "a.jsonl", pair("a", "b") + "\n" + &pair("<|im_end|>", "b"));
    bench.settings.vocab_size = token_id("<|im_end|>") as usize;
    let expected = format!(
        "{}, line 2: the tokenizer turns \"<|im_end|>\" into id {id}, but the model's vocab_size is {id}",
        bench.path.display(),
        id = bench.settings.vocab_size
    );
    assert!(bench.error().starts_with(&expected), "{}", bench.error());

    // The end that is added is a token like any other.
    let mut bench = Bench::new(Task::ContinuedPretrain, "a.txt", "abc");
    bench.settings.vocab_size = token_id("<|end|>") as usize;
    assert!(bench.error().contains("turns \"<|end|>\" into id"), "{}", bench.error());
}

#[test]
fn paths_that_hold_no_data() {
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", "\n  \r\n\n");
    assert!(
        bench.error().contains("a.jsonl is empty: INSTRUCTION_FINETUNE expects rows {"),
        "{}",
        bench.error()
    );
    bench.settings.task = Task::ContinuedPretrain;
    bench.path = bench.folder.path().to_owned();
    assert!(bench.error().contains("is empty: CONTINUED_PRETRAIN expects"), "{}", bench.error());
    fs::remove_file(bench.folder.path().join("a.jsonl")).unwrap();
    fs::write(bench.folder.path().join("a.md"), "text").unwrap();
    bench.settings.task = Task::ChatCompletion;
    assert!(
        bench.error().contains("is a folder without such files in it; CHAT_COMPLETION expects rows {"),
        "{}",
        bench.error()
    );
    bench.path = "s3://bucket/a.jsonl".into();
    assert!(
        bench.error().contains("is in an object store or on a server, from which nothing is read yet"),
        "{}",
        bench.error()
    );
    for path in ["a/missing/file.jsonl", "a.b.jsonl", "./a/b", "/a/b/c"] {
        bench.path = path.into();
        assert!(bench.error().contains("no such file or folder"), "{path}");
    }
    bench.path = bench.folder.path().join("missing.jsonl");
    assert!(bench.error().contains("missing.jsonl: no such file or folder"), "{}", bench.error());
}

#[test]
fn nothing_left_to_train_on() {
    let mut bench =
        Bench::new(Task::InstructionFinetune, "a.jsonl", pair(&"q".repeat(20), "a") + "\n" + &pair("", "a"));
    bench.settings.context_length = 10;
    let error = bench.error();
    assert!(
        error
            .contains("none of the 2 examples can be trained on: 1 have an empty text, 1 have no loss token"),
        "{error}"
    );
    bench.settings.context_length = 0;
    assert!(bench.error().starts_with("context_length is 0"), "{}", bench.error());
}

#[test]
fn tokenizer_files_that_do_not_fit() {
    let fails = |json: &str, config: Value| {
        TextTokenizer::new(json.as_bytes(), Some(&config), None).err().unwrap().to_string()
    };
    assert!(fails("{", json!({})).starts_with("tokenizer: tokenizer.json: EOF"));
    let error = fails(TOKENIZER, json!({"eos_token": "</s>"}));
    assert!(error.contains("names \"</s>\" as eos_token, but tokenizer.json has no such token"), "{error}");
}
