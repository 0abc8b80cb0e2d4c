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
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(STEPS));
        environment.add_filter("tojson", python::to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| python::strftime(date, format));
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
        let prints_day = source.contains("strftime_now") || source.contains("date_string");
        let day = if prints_day { self.date.to_string() } else { String::new() };
        format!("{:?}", (source, &self.special_tokens, day))
    }

    /// The text of `messages`, as transformers' `apply_chat_template(tokenize=False)` gives it. `Err` is what
    /// the template said against them.
    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, String> {
        let context = minijinja::context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
            date_string => self.date.strftime("%d %b %Y").to_string(),
            ..Value::from(&self.special_tokens)
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| format!("the chat template refuses this conversation: {}", reason(&error)))
    }
}

/// What templates call on input that they do not take.
fn raise_exception(message: &str) -> Result<(), Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
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
        assert_eq!(
            render("{{ strftime_now('%d %b %Y') }}|{{ date_string }}").unwrap(),
            "26 Jul 2024|26 Jul 2024"
        );
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(render(r#"{{ ["a<'é", 1, none, 1.5] | tojson }}"#).unwrap(), r#"["a<'é", 1, null, 1.5]"#);
        assert_eq!(
            render("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}").unwrap(),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
        assert_eq!(render("{{ 'é𝄞' | tojson(ensure_ascii=true) }}").unwrap(), r#""\u00e9\ud834\udd1e""#);
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
        assert_ne!(identity("{{ date_string }}", 1), identity("{{ date_string }}", 2));
    }
}
