//! Where the loss is, in the formats that matter.

use super::*;

const TWO_TURNS: [(&str, &str); 5] = [
    ("system", "Be brief."),
    ("user", "hello"),
    ("assistant", "hello you"),
    ("user", "and?"),
    ("assistant", "no"),
];

#[test]
fn chatml_has_loss_on_every_response_and_its_end() {
    let bench = Bench::new(Task::ChatCompletion, "a.jsonl", chat(&TWO_TURNS));
    assert_eq!(
        bench.marked(),
        [
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n\
          [[hello you<|im_end|>\n]]<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n\
          [[no<|im_end|>\n<|end|>]]"
        ]
    );
}

#[test]
fn dbrxs_form_has_loss_up_to_the_end_of_a_turn() {
    // As in DBRX's template, a line end stands before a turn and not after it, and the end of a text is another token.
    let template = "{% for message in messages %}{{ '' if loop.first else '\n' }}<|im_start|>{{ message.role + '\n' + message.content }}\
                    <|im_end|>{% endfor %}{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}";
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", chat(&TWO_TURNS));
    bench.tokenizer = tokenizer(TOKENIZER, "<|end|>", Some(template));
    assert_eq!(
        bench.marked(),
        [
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n\
          [[hello you<|im_end|>]]\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n[[no<|im_end|><|end|>]]"
        ]
    );
}

#[test]
fn target_responses_last_keeps_the_last_one() {
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", chat(&TWO_TURNS));
    bench.settings.target_responses = TargetResponses::Last;
    let marked = bench.marked();
    assert!(marked[0].contains("\nhello you<|im_end|>\n<|im_start|>user"), "{marked:?}");
    assert!(marked[0].ends_with("assistant\n[[no<|im_end|>\n<|end|>]]"), "{marked:?}");
}

#[test]
fn a_template_with_bos_and_eot_gets_neither_twice() {
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", chat(&TWO_TURNS));
    bench.tokenizer = tokenizer(&with_bos(), "<|eot|>", Some(ROLES));
    assert_eq!(
        bench.marked(),
        ["<|begin|><|role|>system<|/role|>\nBe brief.<|eot|><|role|>user<|/role|>\nhello<|eot|>\
          <|role|>assistant<|/role|>\n[[hello you<|eot|>]]<|role|>user<|/role|>\nand?<|eot|>\
          <|role|>assistant<|/role|>\n[[no<|eot|>]]"]
    );
}

#[test]
fn instructions_have_one_bos_and_loss_on_the_response() {
    let completion = json!({"prompt": "1+1=", "completion": "2"}).to_string();
    let lines = format!("{}\n{completion}", pair("the ", "end"));
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", lines);
    assert_eq!(bench.marked(), ["the [[end<|end|>]]", "1+1=[[2<|end|>]]"]);
    bench.tokenizer = tokenizer(&with_bos(), "<|end|>", None);
    assert!(bench.tokenizer.adds_bos());
    assert_eq!(bench.marked(), ["<|begin|>the [[end<|end|>]]", "<|begin|>1+1=[[2<|end|>]]"]);
}

#[test]
fn a_begin_that_is_there_is_not_added() {
    let text = "<|begin|>hello";
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", pair(text, "you"));
    bench.tokenizer = tokenizer(&with_bos(), "<|end|>", None);
    assert_eq!(bench.marked(), ["<|begin|>hello[[you<|end|>]]"]);
    let tokens = bench.tokenizer.encode_prompt(text, Task::InstructionFinetune).unwrap();
    assert_eq!(tokens, [token_id("<|begin|>"), token_id("hello")]);
    let mut bench = Bench::new(Task::ContinuedPretrain, "a.txt", text);
    bench.tokenizer = tokenizer(&with_bos(), "<|end|>", None);
    assert_eq!(bench.marked(), ["<|begin|>[[hello<|end|>]]"]);
}

#[test]
fn an_end_that_is_there_is_not_added() {
    let bench = Bench::new(Task::InstructionFinetune, "a.jsonl", pair("q", "a<|end|>"));
    assert_eq!(bench.marked(), ["q[[a<|end|>]]"]);
}

#[test]
fn characters_of_several_tokens_are_shown_whole() {
    let bench = Bench::new(Task::InstructionFinetune, "a.jsonl", pair("é", "日本"));
    assert_eq!(bench.marked(), ["é[[日本<|end|>]]"]);
}

#[test]
fn a_template_whose_texts_do_not_extend_each_other_is_refused() {
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", chat(&TWO_TURNS));
    let mut error = |template: &str| {
        bench.tokenizer = tokenizer(TOKENIZER, "<|end|>", Some(template));
        bench.error()
    };
    let forgets = "{% for message in messages %}{{ message.content if message.role == 'user' or loop.last else '-' }}\
                   {% endfor %}";
    let found = error(forgets);
    assert!(
        found.contains("line 1: the chat template rewrites earlier messages: the text of the first 5"),
        "{found}"
    );
    let found = error("{{ 'Q' if add_generation_prompt else 'A' }}");
    assert!(found.contains("line 1: the chat template renders message 3 differently"), "{found}");
}

#[test]
fn prompts_are_framed_as_the_task_frames_them() {
    let tokenizer = tokenizer(&with_bos(), "<|eot|>", Some(ROLES));
    let text = |task| tokenizer.decode(&tokenizer.encode_prompt("hello", task).unwrap(), false).unwrap();
    assert_eq!(
        text(Task::ChatCompletion),
        "<|begin|><|role|>user<|/role|>\nhello<|eot|><|role|>assistant<|/role|>\n"
    );
    assert_eq!(text(Task::InstructionFinetune), "<|begin|>hello");
    assert_eq!(chatml().encode_prompt("hello", Task::ContinuedPretrain).unwrap(), [token_id("hello")]);
    let tokens = tokenizer.encode_prompt("hello", Task::ContinuedPretrain).unwrap();
    assert_eq!(tokenizer.decode(&tokens, true).unwrap(), "hello");
}

#[test]
fn the_models_end_is_taken_where_the_files_name_none() {
    let (end, turn) = (token_id("<|end|>"), token_id("<|eot|>"));
    assert_eq!(chatml().with_eos_id(Some(turn)).eos(), Some(end));
    let mut bench = Bench::new(Task::InstructionFinetune, "a.jsonl", pair("q", "a"));
    let unnamed = || TextTokenizer::new(TOKENIZER.as_bytes(), None, None).unwrap();
    bench.tokenizer = unnamed().with_eos_id(None);
    assert_eq!(bench.marked(), ["q[[a]]"]);
    bench.tokenizer = unnamed().with_eos_id(Some(turn));
    assert_eq!(bench.marked(), ["q[[a<|eot|>]]"]);
}

#[test]
fn a_tokenizer_shows_its_template() {
    let given = tokenizer(TOKENIZER, "<|end|>", Some(ROLES));
    assert_eq!((given.uses_chatml_fallback(), given.chat_template_source()), (false, ROLES));
    assert!(chatml().uses_chatml_fallback());
    let source = chatml().chat_template_source().to_owned();
    let again = tokenizer(TOKENIZER, "<|end|>", Some(&source));
    let prompt = |tokenizer: TextTokenizer| tokenizer.encode_prompt("hello", Task::ChatCompletion).unwrap();
    assert_eq!(prompt(again), prompt(chatml()));
}

#[test]
fn a_template_in_the_configuration_is_used() {
    for template in [
        json!(NO_SYSTEM),
        json!([{"name": "tool", "template": "x"}, {"name": "default", "template": NO_SYSTEM}]),
    ] {
        let config = json!({"eos_token": "<|end|>", "chat_template": template});
        let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", chat(&TWO_TURNS[1..3]));
        bench.tokenizer = TextTokenizer::new(TOKENIZER.as_bytes(), Some(&config), None).unwrap();
        assert_eq!(bench.marked(), ["hello\n[[hello you<|end|>]]"]);
    }
}

/// A conversation of so many exchanges.
fn long(exchanges: usize) -> String {
    let turns: Vec<_> = (0..exchanges).flat_map(|_| [("user", "abc"), ("assistant", "defg")]).collect();
    chat(&turns)
}

#[test]
fn a_conversation_far_beyond_the_context_is_cut_without_rendering_every_turn() {
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", long(5000));
    let (_, summary) = bench.prepare().unwrap();
    assert_eq!((summary.examples, summary.truncated, summary.tokens), (1, 1, 256));
    let shorter = Bench::new(Task::ChatCompletion, "a.jsonl", long(50));
    let (dataset, account) = shorter.prepare().unwrap();
    assert_eq!(account.truncated, 1);
    // All but the one EOS a hundred times.
    assert_eq!(summary.lengths.longest - 1, 100 * (account.lengths.longest - 1));
    assert_eq!(
        bench.prepare().unwrap().0.micro_batch(&[Some(0)]).labels,
        dataset.micro_batch(&[Some(0)]).labels
    );

    bench.settings.target_responses = TargetResponses::Last;
    assert!(bench.error().contains("1 have no loss token within the first 256 tokens"), "{}", bench.error());
}

#[test]
fn a_conversation_of_endless_work_is_refused() {
    let mut bench = Bench::new(Task::ChatCompletion, "a.jsonl", long(500));
    bench.settings.context_length = 1 << 20;
    let slow = format!("{{% for i in range(60000) %}}{{% endfor %}}{ROLES}");
    bench.tokenizer = tokenizer(TOKENIZER, "<|end|>", Some(&slow));
    let error = bench.error();
    assert!(error.contains("line 1: the conversation is too long: rendering its first "), "{error}");
    assert!(error.ends_with("takes more than 50000000 steps; split it into several rows"), "{error}");
}
