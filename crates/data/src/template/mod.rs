//! Chat templates: the Jinja text that a tokenizer brings, rendered as transformers renders it, and ChatML for
//! a tokenizer that brings none.
//!
//! A template may print the day. The day is therefore fixed when the template is made, so that one data set
//! is rendered with one day, and it is part of the template's identity exactly if the template asks for it.
//!
//! A template is the model's code. It cannot reach anything outside, and mistakes in it end in errors: loops without end
//! by [`STEPS`], nesting without end by [`STACK`], and filters and methods that blow a text up by [`python`]. What an
//! operator makes cannot be measured beforehand: a template that doubles a text with `~` or `+` over and over takes
//! all memory. So a template is trusted as far as that.

mod generation;
mod python;
mod turns;

use std::collections::BTreeMap;

use jiff::civil::Date;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::error::DataError;
use python::bounded::{Buffer, too_long};

/// The format of a tokenizer that has no template of its own.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                      + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

/// The only name in the environment.
const NAME: &str = "chat_template";

/// How many of the engine's instructions one rendering may take: enough for thousands of messages, and over at once
/// where a loop was to go on for ever.
const STEPS: u64 = 500_000;

/// The stack that templates are rendered on, of which only what is used takes memory. A step nests a value one level deeper
/// at most; to print, compare or drop it takes less than a kilobyte a level.
const STACK: usize = STEPS as usize * 1024;

/// A rendered text.
struct Rendered {
    text: String,
    /// The engine's instructions that it took.
    steps: u64,
}

/// A parsed chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The text given, if one was.
    source: Option<String>,
    special_tokens: BTreeMap<String, String>,
    date: Date,
}

impl ChatTemplate {
    /// Parses `source`, or takes ChatML. `special_tokens` are visible to the template by name (`bos_token`,
    /// `eos_token`, …).
    pub fn new(
        source: Option<&str>,
        special_tokens: BTreeMap<String, String>,
        date: Date,
    ) -> Result<Self, DataError> {
        let source = source.map(str::to_owned);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| DataError::Template(error.to_string()))?);
        environment.set_fuel(Some(STEPS));
        python::install(&mut environment, date);
        environment
            .add_template_owned(NAME, generation::without_marks(source.as_deref().unwrap_or(CHATML)))
            .map_err(|error| DataError::Template(format!("it cannot be parsed: {}", reason(&error))))?;
        Ok(Self { environment, source, special_tokens, date })
    }

    /// The template's text, as given or ChatML's.
    pub(crate) fn source(&self) -> &str {
        self.source.as_deref().unwrap_or(CHATML)
    }

    /// Whether none was given.
    pub(crate) fn is_fallback(&self) -> bool {
        self.source.is_none()
    }

    /// What tells two templates apart: the source, the special tokens and, if it can be printed, the day.
    pub(crate) fn identity(&self) -> String {
        let source = self.source();
        let day = if source.contains("strftime_now") { self.date.to_string() } else { String::new() };
        format!("{:?}", (source, &self.special_tokens, day))
    }

    /// The text of `messages`, as transformers' `apply_chat_template(tokenize=False)` gives it. `Err` is what
    /// the template, or the engine, said against them. To be called on a deep stack.
    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<Rendered, String> {
        let context = minijinja::context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
            ..Value::from(&self.special_tokens)
        };
        let rendered = || {
            let mut text = Buffer::default();
            let captured = self.environment.get_template(NAME)?.render_captured_to(context, &mut text)?;
            let steps = captured.state().fuel_levels().map_or(STEPS, |(consumed, _)| consumed);
            Ok(Rendered { text: text.into_text()?, steps })
        };
        rendered().map_err(|error: Error| {
            let verdict = if is_raised(&error) { "refuses" } else { "fails on" };
            format!("the chat template {verdict} this conversation: {}", reason(&error))
        })
    }
}

/// Does `work` on a thread that has a stack of [`STACK`] bytes.
fn on_deep_stack<Output: Send>(work: impl FnOnce() -> Output + Send) -> Result<Output, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| {
            format!("no thread with a stack of {} MiB for the chat template: {error}", STACK >> 20)
        })?;
        thread.join().or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether a template raised the error itself. Errors within its macros are sources of errors.
fn is_raised(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<python::Raised>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// An error's own words and the template line, without the engine's wrapping.
fn reason(error: &Error) -> String {
    let detail = match error.kind() {
        ErrorKind::OutOfFuel => {
            format!("rendering it takes more than {STEPS} steps; look for a loop without end")
        }
        ErrorKind::WriteFailure => too_long().detail().unwrap_or_default().to_owned(),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let template = ChatTemplate::new(Some(source), special, jiff::civil::date(2024, 7, 26)).unwrap();
        on_deep_stack(|| template.render(&[], true).map(|rendered| rendered.text))?
    }

    #[test]
    fn the_day_is_the_one_given() {
        // transformers gives no `date_string`: templates that ask for one print the day that they were written for.
        let source = "{{ strftime_now('%d %b %Y') }}|{{ date_string is defined }}";
        assert_eq!(render(source).unwrap(), "26 Jul 2024|False");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(render(r#"{{ ["a<'é", 1, none, 1.5] | tojson }}"#).unwrap(), r#"["a<'é", 1, null, 1.5]"#);
        assert_eq!(
            render("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}").unwrap(),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
        assert_eq!(render("{{ 'é𝄞' | tojson(ensure_ascii=true) }}").unwrap(), r#""\u00e9\ud834\udd1e""#);
        assert_eq!(
            render("{{ {'b': [1, 2], 'a': 0} | tojson(separators=(',', ':')) }}").unwrap(),
            r#"{"b":[1,2],"a":0}"#
        );
        assert!(render("{{ 1 | tojson(separators=(',',)) }}").unwrap_err().contains("two texts"));
    }

    #[test]
    fn blanks_and_lines_are_pythons() {
        for (source, expected) in [
            (
                "{{ '\x1f a\u{85}'.strip() }}|{{ 'xax'.rstrip('x') }}|{{ '\x1c1 ' | trim }}|{{ 12 | trim }}",
                "a|xa|1|12",
            ),
            ("{{ 'a\x1f b '.split() }}|{{ 'a,b,c'.split(',', 1) }}", "['a', 'b']|['a', 'b,c']"),
            ("{{ 'a,b,c'.rsplit(',', maxsplit=1) }}|{{ 'a'.split(sep='b') }}", "['a,b', 'c']|['a']"),
            (
                "{{ 'a\r\nb\u{85}c\n'.splitlines() }}|{{ 'a\x0bb'.splitlines(true) }}",
                "['a', 'b', 'c']|['a\\x0b', 'b']",
            ),
            (
                "{{ 'a=b=c'.partition('=') }}|{{ 'a=b=c'.rpartition('=') }}",
                "('a', '=', 'b=c')|('a=b', '=', 'c')",
            ),
            ("{{ 'a'.partition('=')[0] }}|{{ 'a'.rpartition('=')[2] }}", "a|a"),
            (
                "{{ 'abc'.removeprefix('a') }}|{{ 'abc'.removesuffix('a') }}|{{ \"they're\".title() }}",
                "bc|abc|They'Re",
            ),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
        assert!(render("{{ 'a'.split('') }}").unwrap_err().contains("empty separator"));
        assert!(render("{{ 'a'.split(maxsplit=1) }}").unwrap_err().contains("leave maxsplit out"));
    }

    #[test]
    fn none_cannot_be_iterated_over_and_texts_are_sequences() {
        assert_eq!(
            render("{{ none is iterable }}{{ 'a' is iterable }}{{ 'a' is sequence }}{{ 1 is sequence }}")
                .unwrap(),
            "FalseTrueTrueFalse"
        );
        assert_eq!(render("{% if tools is iterable and tools | length > 0 %}tools{% endif %}").unwrap(), "");
    }

    #[test]
    fn keys_keep_their_order() {
        assert_eq!(
            render("{{ {'b': 1, 'a': 2} }}{% for k, v in {'z': 1, 'y': 2}.items() %}{{ k }}{% endfor %}")
                .unwrap(),
            "{'b': 1, 'a': 2}zy"
        );
    }

    #[test]
    fn blocks_and_methods_behave_as_in_transformers() {
        let source = "{{ bos_token }}\n  {% if tools is none %}\n{{ ' x '.strip() }}\n  {% endif %}\n";
        assert_eq!(render(source).unwrap(), "<s>\nx\n");
    }

    #[test]
    fn marked_words_of_the_assistant_are_rendered_as_they_stand() {
        let source =
            "a\n  {% generation %}\n{% set x = 1 %}b{{ x }}\n {%- endgeneration -%}\n c{{ x is defined }}";
        assert_eq!(render(source).unwrap(), "a\nb1cFalse");
    }

    #[test]
    fn work_without_end_is_stopped() {
        let source = "\n{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
        let error = render(source).unwrap_err();
        assert!(error.contains("takes more than 500000 steps"), "{error}");
        assert!(error.ends_with("(line 2 of the template)"), "{error}");
    }

    #[test]
    fn texts_and_lists_that_grow_too_far_are_refused() {
        for source in [
            "{{ 'a\nb' | indent(9999999999) }}",
            "{{ 'a\nb' | indent(width=9999999999) }}",
            "{{ '%99999999999d' | format(1) }}",
            "{{ '%(a)99999999d' | format(a=1) }}",
            "{{ '%99999999999999999999999d' | format(1) }}",
            "{{ ('%s' * 9000) | format('a' * 9000) }}",
            "{{ '{:>99999999}'.format(1) }}",
            "{{ ('{a}' * 9000).format(a='a' * 9000) }}",
            "{{ ('a' * 9000).replace('a', 'a' * 9000) }}",
            "{{ ('a' * 9000) | replace('a', 'a' * 9000) }}",
            "{{ ('a' * 9000).join(range(9000)) }}",
            "{{ range(9000) | join('a' * 9000) }}",
            "{{ ['a' * 9000] * 9000 }}",
            "{% for a in range(9000) %}{{ 'a' * 9000 }}{% endfor %}",
            "{{ (['a' * 9000] * 9000) | tojson }}",
        ] {
            let error = render(source).unwrap_err();
            assert!(
                error.contains("of more than 64 MiB, the most that a template may make"),
                "{source}: {error}"
            );
        }
        for source in
            ["{{ ([1] * 9000000) | list }}", "{{ [1] | slice(9000000) }}", "{{ [1] | batch(9000000, 0) }}"]
        {
            let error = render(source).unwrap_err();
            assert!(error.contains("a list of 9000000 items; a template may make"), "{source}: {error}");
        }
    }

    #[test]
    fn bounded_filters_are_the_engines_otherwise() {
        for (source, expected) in [
            ("{{ 'a\nb' | indent }}|{{ 'a\nb' | indent(width=1, first=true) }}", "a\n    b| a\n b"),
            ("{{ '%03d %(a)s' | format(7) }}", ""),
            ("{{ '%(a)s-%(b)5.1f' | format(a='x', b=1.25) }}", "x-  1.2"),
            ("{{ '{:>4}|{a}'.format(1, a='2026 100%') }}", "   1|2026 100%"),
            ("{{ 'aa'.replace('a', 'b', 1) }}{{ 'aa' | replace('a', 'b') }}", "babb"),
            ("{{ '-'.join(['a', 1]) }}|{{ [{'n': 1}, {'n': 2}] | join('-', attribute='n') }}", "a-1|1-2"),
            ("{{ 'ab' | list }}{{ nothing | list }}{{ nothing | join }}", "['a', 'b'][]"),
            (
                "{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}",
                "[[1, 2], [3, 0]][[1, 2], [3]]",
            ),
        ] {
            match expected {
                "" => assert!(render(source).is_err(), "{source}"),
                _ => assert_eq!(render(source).unwrap(), expected, "{source}"),
            }
        }
    }

    #[test]
    fn values_nested_without_end_are_printed_or_refused() {
        let nested =
            "{% set ns = namespace(x=[]) %}{% for i in range(60000) %}{% set ns.x = [ns.x] %}{% endfor %}";
        assert_eq!(render(nested).unwrap(), "");
        assert_eq!(render(&format!("{nested}{{{{ ns.x }}}}")).unwrap().len(), 120_002);
        assert_eq!(render(&format!("{nested}{{{{ ns.x == [ns.x] }}}}")).unwrap(), "False");
        let error = render(&format!("{nested}{{{{ ns.x | tojson }}}}")).unwrap_err();
        assert!(error.contains("tojson: the value is nested more than 500 levels deep"), "{error}");
        // A template can nest by a level a step.
        let (open, close) = ("[".repeat(20), "]".repeat(20));
        let deepest = format!(
            "{{% set ns = namespace(x={{}}) %}}{{% for i in range(18000) %}}{{% set ns.x = {open}ns.x{close} %}}{{% endfor %}}"
        );
        assert_eq!(render(&format!("{deepest}{{{{ ns.x }}}}")).unwrap().len(), 720_002);
    }

    #[test]
    fn an_indent_without_sense_is_refused() {
        for indent in [101, 70_000, i64::MAX] {
            let error = render(&format!("{{{{ [1, [2]] | tojson(indent={indent}) }}}}")).unwrap_err();
            assert!(error.contains(&format!("tojson: indent is {indent}; it may be 100 at most")), "{error}");
        }
        assert!(render("{{ [1] | tojson(indent=-1) }}").is_err());
        // Levels times indent beyond what the formatting machinery takes.
        let (open, close) = ("[".repeat(20), "]".repeat(20));
        let deep = format!(
            "{{% set x = {open}1{close} %}}{}{{{{ x | tojson(indent=100) | length }}}}",
            "{% set x = [[[[[[[[x]]]]]]]] %}".repeat(59)
        );
        assert!(render(&deep).unwrap().parse::<usize>().unwrap() > 20_000_000);
    }

    #[test]
    fn refusals_carry_the_templates_words() {
        let error = render("\n{{ raise_exception('no system, please') }}").unwrap_err();
        assert_eq!(
            error,
            "the chat template refuses this conversation: no system, please (line 2 of the template)"
        );
        let error = render("{% macro check() %}{{ raise_exception('no') }}{% endmacro %}\n{{ check() }}")
            .unwrap_err();
        assert!(error.starts_with("the chat template refuses this conversation: no (line "), "{error}");
    }

    #[test]
    fn failures_are_the_engines() {
        let error = render("{{ 'a' + 1 }}").unwrap_err();
        assert!(error.starts_with("the chat template fails on this conversation: tried to use +"), "{error}");
    }

    #[test]
    fn a_template_that_is_none_is_refused() {
        let error = ChatTemplate::new(Some("{% if %}"), BTreeMap::new(), jiff::civil::date(2024, 1, 1))
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("chat template: it cannot be parsed: "), "{error}");
    }

    #[test]
    fn the_day_matters_only_to_templates_that_print_it() {
        let identity = |source, day| {
            ChatTemplate::new(Some(source), BTreeMap::new(), jiff::civil::date(2024, 1, day))
                .unwrap()
                .identity()
        };
        assert_eq!(identity("a", 1), identity("a", 2));
        let printing = "{{ strftime_now('%d') }}";
        assert_ne!(identity(printing, 1), identity(printing, 2));
    }
}
