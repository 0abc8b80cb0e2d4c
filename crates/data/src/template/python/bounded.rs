//! Filters and methods that make much of little: texts widened, repeated or joined and lists filled up. The engine's
//! own would take all memory, so their results are measured before they are made and refused beyond a limit.

use std::io;

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, Rest, StringInput, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

/// The longest text that a template may make, in bytes.
pub(in crate::template) const TEXT: usize = 64 << 20;

/// The longest list.
const ITEMS: usize = 1_000_000;

/// A buffer for text up to the limit.
#[derive(Debug, Default)]
pub(in crate::template) struct Buffer(Vec<u8>);

impl Buffer {
    /// The text written.
    pub(in crate::template) fn into_text(self) -> Result<String, Error> {
        String::from_utf8(self.0).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
    }
}

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > TEXT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, too_long().to_string()));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts the bounded filters in place of the engine's.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("indent", indent);
    environment.add_filter("replace", replace);
    environment.add_filter("format", format);
    environment.add_filter("join", join);
    environment.add_filter("list", list);
    environment.add_filter("slice", slice);
    environment.add_filter("batch", batch);
    // Its work grows with the third power of the depth, and its text is not Python's.
    environment.remove_filter("pprint");
}

/// Refuses a call of a string's method whose result would be too long.
pub(super) fn check_method(text: &str, name: &str, arguments: &[Value]) -> Result<(), Error> {
    let string = |index: usize| arguments.get(index).and_then(Value::as_str);
    match (name, arguments.first()) {
        ("replace", _) => match (string(0), string(1)) {
            (Some(from), Some(to)) => check(replaced(text, from, to)),
            _ => Ok(()),
        },
        ("format", _) => check(formatted(text, '{', arguments)),
        ("join", Some(items)) => check(joined(items, text)?),
        _ => Ok(()),
    }
}

fn indent(
    value: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let width = width.map_or_else(|| options.get("width"), |width| Ok(Some(width)))?.unwrap_or(4);
    let lines = value.as_str().matches('\n').count() + 1;
    // The engine makes one line's blanks even where no line takes them.
    check(value.as_str().len().saturating_add(lines.saturating_mul(width)))?;
    filters::indent(value, Some(width), first, blank, options)
}

fn replace(
    state: &mut State,
    value: StringInput<'_>,
    from: StringInput<'_>,
    to: StringInput<'_>,
) -> Result<Value, Error> {
    check(replaced(value.as_str(), from.as_str(), to.as_str()))?;
    filters::replace(state, value, from, to)
}

/// `text % arguments`.
fn format(text: &str, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let arguments: Vec<Value> = arguments.0.into_iter().map(ValueOrKwargs::into_value).collect();
    check(formatted(text, '%', &arguments))?;
    formatting::format(FormatStyle::Printf, text, &arguments)
}

fn join(
    state: &mut State,
    value: &Value,
    joiner: Option<StringInput<'_>>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Result<Value, Error> {
    if value.kind() != ValueKind::Undefined {
        check(joined(value, joiner.as_ref().map_or("", StringInput::as_str))?)?;
    }
    filters::join(state, value, joiner, attribute, options)
}

fn list(state: &State, value: Value) -> Result<Value, Error> {
    if let Some(length) = value.len() {
        check_items(length)?;
    }
    filters::list(state, value)
}

fn slice(state: &State, value: Value, count: usize, filling: Option<Value>) -> Result<Value, Error> {
    check_items(count)?;
    filters::slice(state, value, count, filling)
}

fn batch(state: &State, value: Value, count: usize, filling: Option<Value>) -> Result<Value, Error> {
    check_items(count)?;
    filters::batch(state, value, count, filling)
}

fn replaced(text: &str, from: &str, to: &str) -> usize {
    let growth = to.len().saturating_sub(from.len());
    text.len().saturating_add(text.matches(from).count().saturating_mul(growth))
}

/// At least as many bytes as `text` takes with `arguments` in its fields, each begun by `mark`. Widths and precisions are
/// numbers within a field.
fn formatted(text: &str, mark: char, arguments: &[Value]) -> usize {
    let longest = arguments.iter().map(longest).max().unwrap_or(0);
    let fields = text.split(mark).skip(1).map(|field| {
        let numbers = specification(field, mark).split(|character: char| !character.is_ascii_digit());
        let widths =
            numbers.filter(|number| !number.is_empty()).map(|number| number.parse().unwrap_or(usize::MAX));
        widths.fold(longest, usize::saturating_add)
    });
    fields.fold(text.len(), usize::saturating_add)
}

/// A field up to its end: a brace, or the letter of its type after a name in brackets.
fn specification(field: &str, mark: char) -> &str {
    let field = match field.strip_prefix('(').and_then(|named| named.split_once(')')) {
        Some((_, after)) if mark == '%' => after,
        _ => field,
    };
    let ends = |character: char| if mark == '{' { character == '}' } else { character.is_alphabetic() };
    field.split(ends).next().unwrap_or(field)
}

/// The bytes of an argument, or of the longest among arguments with names, that are texts.
fn longest(argument: &Value) -> usize {
    let named = || {
        let names = argument.try_iter().ok()?;
        names.filter_map(|name| argument.get_item(&name).ok()?.as_str().map(str::len)).max()
    };
    match argument.kind() {
        ValueKind::Map => named().unwrap_or(0),
        _ => argument.as_str().map_or(0, str::len),
    }
}

fn joined(items: &Value, joiner: &str) -> Result<usize, Error> {
    let mut length = 0_usize;
    for item in items.try_iter()? {
        length = length.saturating_add(joiner.len()).saturating_add(item.as_str().map_or(0, str::len));
        check(length)?;
    }
    Ok(length)
}

fn check(length: usize) -> Result<(), Error> {
    if length > TEXT { Err(too_long()) } else { Ok(()) }
}

fn check_items(count: usize) -> Result<(), Error> {
    if count <= ITEMS {
        return Ok(());
    }
    let problem = format!("a list of {count} items; a template may make lists of up to {ITEMS}");
    Err(Error::new(ErrorKind::InvalidOperation, problem))
}

/// What is said against a text beyond the limit.
pub(in crate::template) fn too_long() -> Error {
    let problem = format!("a text of more than {} MiB, the most that a template may make", TEXT >> 20);
    Error::new(ErrorKind::InvalidOperation, problem)
}
