//! Chat templates: the Jinja text that a tokenizer brings, rendered as transformers renders it, and ChatML for
//! a tokenizer that brings none.
//!
//! A template may print the day. The day is therefore fixed when the template is made, so that one data set
//! is rendered with one day, and it is part of the template's identity exactly if the template asks for it.

mod generation;
mod python;
mod turns;

use std::collections::BTreeMap;

use jiff::civil::Date;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::error::DataError;

/// The format of a tokenizer that has no template of its own.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                      + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

/// The only name in the environment.
const NAME: &str = "chat_template";

/// How many of the engine's instructions one rendering may take: enough for some hundred thousand messages, and over
/// in a second or two where a loop was to go on for ever.
const STEPS: u64 = 10_000_000;

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
    /// the template, or the engine, said against them.
    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, String> {
        let context = minijinja::context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
            ..Value::from(&self.special_tokens)
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| {
            let verdict = if is_raised(&error) { "refuses" } else { "fails on" };
            format!("the chat template {verdict} this conversation: {}", reason(&error))
        })
    }
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
        template.render(&[], true)
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
        assert!(error.contains("takes more than 10000000 steps"), "{error}");
        assert!(error.ends_with("(line 2 of the template)"), "{error}");
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
