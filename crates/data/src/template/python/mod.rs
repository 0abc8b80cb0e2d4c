//! Where chat templates expect Python: they are written for Jinja2 as transformers sets it up, and the engine differs
//! from it in what a blank is, in what can be iterated over, in JSON, and in methods of strings.

pub(super) mod bounded;
mod json;
mod strings;

use jiff::civil::Date;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};

/// Makes `environment` behave as transformers' does. `date` is the day that templates print.
pub(super) fn install(environment: &mut Environment<'static>, date: Date) {
    environment.set_unknown_method_callback(strings::method);
    bounded::install(environment);
    environment.add_filter("trim", strings::trim);
    environment.add_filter("tojson", json::to_json);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| strftime(date, format));
}

/// What a template said on input that it does not take, as the source of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(String);

/// What templates call on input that they do not take.
fn raise_exception(message: &Value) -> Result<(), Error> {
    let raised = Raised(message.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, raised.0.clone()).with_source(raised))
}

/// The engine also iterates over none, as if it were empty.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Whatever has a length and an index. Templates tell content that is text from content in parts by it.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
}

/// `datetime.now().strftime(format)` at midnight of `date`.
fn strftime(date: Date, format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, date.at(0, 0, 0, 0)).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    })
}
