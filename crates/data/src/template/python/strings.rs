//! Methods of Python's strings that templates use and the engine's own set lacks, or gives Rust's meaning: for Python
//! the four ASCII separators are blanks, and more than a line feed ends a line.

use minijinja::value::{Kwargs, Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::bounded;

/// What the environment calls for a method that a value does not have.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        bounded::check_method(text, name, arguments)?;
    }
    let found = value.as_str().and_then(|text| of_string(text, name, arguments));
    found.unwrap_or_else(|| pycompat::unknown_method_callback(state, value, name, arguments))
}

/// The filter: `str(value).strip(characters)`.
pub(super) fn trim(value: &Value, characters: Option<&str>) -> String {
    strip(&value.to_string(), characters, Sides { left: true, right: true }).to_owned()
}

/// The result of a method that is defined here.
fn of_string(text: &str, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let stripped = |left, right| {
        from_args(arguments)
            .map(|(characters,): (Option<&str>,)| strip(text, characters, Sides { left, right }).into())
    };
    Some(match name {
        "strip" => stripped(true, true),
        "lstrip" => stripped(true, false),
        "rstrip" => stripped(false, true),
        "split" => split(text, arguments, |text, separator, most| text.splitn(most, separator).collect()),
        "rsplit" => split(text, arguments, |text, separator, most| {
            let mut parts: Vec<_> = text.rsplitn(most, separator).collect();
            parts.reverse();
            parts
        }),
        "splitlines" => from_args(arguments).map(|(keep,): (Option<bool>,)| lines(text, keep == Some(true))),
        "partition" => from_args(arguments).map(|(separator,): (&str,)| match text.split_once(separator) {
            Some((before, after)) => tuple([before, separator, after]),
            None => tuple([text, "", ""]),
        }),
        "rpartition" => from_args(arguments).map(|(separator,): (&str,)| match text.rsplit_once(separator) {
            Some((before, after)) => tuple([before, separator, after]),
            None => tuple(["", "", text]),
        }),
        "removeprefix" => {
            from_args(arguments).map(|(prefix,): (&str,)| text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            from_args(arguments).map(|(suffix,): (&str,)| text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "title" => from_args(arguments).map(|()| title(text).into()),
        _ => return None,
    })
}

/// The ends of a text that are stripped.
struct Sides {
    left: bool,
    right: bool,
}

fn strip<'text>(text: &'text str, characters: Option<&str>, sides: Sides) -> &'text str {
    let stripped = |character: char| match characters {
        Some(characters) => characters.contains(character),
        None => is_space(character),
    };
    let text = if sides.left { text.trim_start_matches(stripped) } else { text };
    if sides.right { text.trim_end_matches(stripped) } else { text }
}

/// `str.isspace` of one character.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// `split` and `rsplit`, which differ in `at`: it cuts a text at a separator into so many parts at most.
fn split<'text>(
    text: &'text str,
    arguments: &[Value],
    at: impl FnOnce(&'text str, &str, usize) -> Vec<&'text str>,
) -> Result<Value, Error> {
    let (separator, most, options): (Option<&str>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = separator.map_or_else(|| options.get("sep"), |separator| Ok(Some(separator)))?;
    let most = most.map_or_else(|| options.get("maxsplit"), |most| Ok(Some(most)))?;
    options.assert_all_used()?;
    let most = most.and_then(|most| usize::try_from(most).ok());
    let parts = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => at(text, separator, most.map_or(usize::MAX, |most| most.saturating_add(1))),
        None if most.is_none() => text.split(is_space).filter(|word| !word.is_empty()).collect(),
        None => {
            let problem = "a text is split at blanks into all of its words only; leave maxsplit out";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The lines of a text, with their ends if they are to be kept.
fn lines(text: &str, keep_ends: bool) -> Value {
    let ends_line = |character| {
        matches!(
            character,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some((line, end)) = rest.find(ends_line).map(|place| rest.split_at(place)) {
        let width = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(0, char::len_utf8) };
        let (whole, after) = rest.split_at(line.len() + width);
        found.push(Value::from(if keep_ends { whole } else { line }));
        rest = after;
    }
    if !rest.is_empty() {
        found.push(Value::from(rest));
    }
    Value::from(found)
}

/// Every run of letters with one capital, its first.
fn title(text: &str) -> String {
    let (mut titled, mut inside) = (String::with_capacity(text.len()), false);
    for character in text.chars() {
        match inside {
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(character.to_uppercase()),
        }
        inside = character.is_alphabetic();
    }
    titled
}

fn tuple(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}
