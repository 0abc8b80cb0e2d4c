//! The filters and functions of chat templates whose results depend on Python's own conventions.

use std::io;

use jiff::civil::Date;
use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// `datetime.now().strftime(format)` at midnight of `date`.
pub(super) fn strftime(date: Date, format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, date.at(0, 0, 0, 0)).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    })
}

/// `json.dumps(value, ensure_ascii=False, indent=None)`, the `tojson` of transformers: no HTML escapes, and a
/// blank after `,` and `:`.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let blanks = vec![b' '; width];
            write(
                value,
                &mut bytes,
                Python { layout: PrettyFormatter::with_indent(&blanks), ascii, spaced: false },
            )
        }
        None => write(value, &mut bytes, Python { layout: CompactFormatter, ascii, spaced: true }),
    };
    written
        .map_err(|error| error.to_string())
        .and_then(|()| String::from_utf8(bytes).map_err(|error| error.to_string()))
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error))
}

fn write<F: Formatter>(value: &Value, bytes: &mut Vec<u8>, formatter: F) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(bytes, formatter))
}

/// A layout of serde_json with Python's separators and, where asked for, its `\u` escapes.
struct Python<F> {
    layout: F,
    ascii: bool,
    spaced: bool,
}

impl<F: Formatter> Python<F> {
    fn separate<W: ?Sized + io::Write>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}

impl<F: Formatter> Formatter for Python<F> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.layout.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.layout.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if self.spaced { self.separate(writer, first) } else { self.layout.begin_array_value(writer, first) }
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.layout.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.layout.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.layout.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if self.spaced { self.separate(writer, first) } else { self.layout.begin_object_key(writer, first) }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.layout.end_object_value(writer)
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
        self.layout.write_char_escape(writer, escape)
    }
}
