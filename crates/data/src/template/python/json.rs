//! `tojson` of transformers: `json.dumps(value, ensure_ascii=False, indent=None, separators=None)`. Unlike Jinja's own
//! it escapes no HTML.

use std::io::{self, Read as _};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, Serializer};

use super::bounded::Buffer;

/// The widest indent; templates take 4 at most.
const INDENT: usize = 100;

/// The deepest nesting, short of Python's own limit of about a thousand.
const DEPTH: usize = 500;

/// The filter.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    if let Some(width) = indent.filter(|&width| width > INDENT) {
        let problem = format!("tojson: indent is {width}; it may be {INDENT} at most");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    let (item, key) = match separators.as_deref() {
        // Python leaves the blank out where a line ends after the separator.
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => {
            let problem = "tojson: separators are two texts, between items and after keys";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
    };
    let mut text = Buffer::default();
    let layout = Layout { indent, item, key, ascii, depth: 0, empty: true };
    let written = value.serialize(&mut Serializer::with_formatter(&mut text, layout));
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    text.into_text()
}

/// How Python lays JSON out.
struct Layout<'a> {
    /// Blanks for each level; none: all on one line.
    indent: Option<usize>,
    /// Between items.
    item: &'a str,
    /// Between a key and its value.
    key: &'a str,
    /// Whether characters beyond ASCII are written as `\u` escapes.
    ascii: bool,
    depth: usize,
    /// Whether the innermost list or object has no item yet.
    empty: bool,
}

impl Layout<'_> {
    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        if self.depth == DEPTH {
            return Err(io::Error::other(format!("the value is nested more than {DEPTH} levels deep")));
        }
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.new_line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn separate<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(width) = self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        io::copy(&mut io::repeat(b' ').take((width * self.depth) as u64), writer).map(drop)
    }
}

impl Formatter for Layout<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(text.as_bytes());
        }
        for character in text.chars() {
            let mut units = [0; 2];
            match character.is_ascii() {
                true => write!(writer, "{character}")?,
                false => character
                    .encode_utf16(&mut units)
                    .iter()
                    .try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        CompactFormatter.write_char_escape(writer, escape)
    }
}
