//! PTX text to words, numbers and marks, each with its line.

use crate::EmulatorError;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A name, a directive (`.reg`) or a whole opcode (`cvt.rn.f32.s32`).
    Word(String),
    Integer(u64),
    Float32(u32),
    Float64(u64),
    Text,
    Mark(char),
}

impl Token {
    /// The token as a message shows it.
    pub fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("'{word}'"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float32(bits) => format!("the number {}", f32::from_bits(*bits)),
            Self::Float64(bits) => format!("the number {}", f64::from_bits(*bits)),
            Self::Text => "a string".to_owned(),
            Self::Mark(mark) => format!("'{mark}'"),
        }
    }
}

/// The tokens of `text` with their lines, counted from 1.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token, u32)>, EmulatorError> {
    let mut lexer = Lexer { bytes: text.as_bytes(), at: 0, line: 1 };
    let mut found = Vec::with_capacity(text.len() / 4);
    while lexer.skip_blank()? {
        let line = lexer.line;
        found.push((lexer.token()?, line));
    }
    Ok(found)
}

struct Lexer<'t> {
    bytes: &'t [u8],
    at: usize,
    line: u32,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn error(&self, found: impl Into<String>, expected: &'static str) -> EmulatorError {
        EmulatorError::Syntax { line: self.line, found: found.into(), expected }
    }

    /// Skips blanks and comments; false at the end of the text.
    fn skip_blank(&mut self) -> Result<bool, EmulatorError> {
        while let Some(byte) = self.peek(0) {
            match byte {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b'/' if self.peek(1) == Some(b'/') => {
                    while self.peek(0).is_some_and(|byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                b'/' if self.peek(1) == Some(b'*') => self.skip_comment()?,
                // A driver takes PTX as a C string.
                0 => return Ok(false),
                _ if byte.is_ascii_whitespace() => self.at += 1,
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    fn skip_comment(&mut self) -> Result<(), EmulatorError> {
        self.at += 2;
        loop {
            match self.peek(0) {
                None => return Err(self.error("the end of the text", "the comment's '*/'")),
                Some(b'*') if self.peek(1) == Some(b'/') => {
                    self.at += 2;
                    return Ok(());
                }
                Some(byte) => {
                    self.line += u32::from(byte == b'\n');
                    self.at += 1;
                }
            }
        }
    }

    fn token(&mut self) -> Result<Token, EmulatorError> {
        match self.peek(0) {
            Some(b'0'..=b'9') => self.number(),
            Some(b'"') => self.text(),
            Some(byte) if is_word(byte) => Ok(Token::Word(self.word())),
            Some(byte) if b"{}()[],;:@!+-=<>|&~*".contains(&byte) => {
                self.at += 1;
                Ok(Token::Mark(char::from(byte)))
            }
            Some(byte) => Err(self.error(format!("the byte {byte:#04x}"), "PTX")),
            None => Err(self.error("the end of the text", "PTX")),
        }
    }

    /// `a::b` belongs to an opcode (`.shared::cta`), a single colon ends a label. A directive ends at the next dot:
    /// `.reg.b32` is two.
    fn word(&mut self) -> String {
        let start = self.at;
        let is_directive = self.peek(0) == Some(b'.');
        self.at += 1;
        loop {
            match self.peek(0) {
                Some(b'.') if is_directive => break,
                Some(byte) if is_word(byte) || byte.is_ascii_digit() => self.at += 1,
                Some(b':') if self.peek(1) == Some(b':') => self.at += 2,
                _ => break,
            }
        }
        String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()
    }

    fn text(&mut self) -> Result<Token, EmulatorError> {
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            match byte {
                b'"' => return Ok(Token::Text),
                b'\n' => break,
                _ => {}
            }
        }
        Err(self.error("the end of the line", "the string's closing '\"'"))
    }

    fn number(&mut self) -> Result<Token, EmulatorError> {
        let start = self.at;
        while self.peek(0).is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'.') {
            self.at += 1;
        }
        let written = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
        parse_number(&written)
            .ok_or_else(|| self.error(format!("'{written}'"), "a number of at most 64 bits"))
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || b"_$%.".contains(&byte)
}

fn parse_number(written: &str) -> Option<Token> {
    if let Some(digits) = strip(written, "0f") {
        return u32::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 8).map(Token::Float32);
    }
    if let Some(digits) = strip(written, "0d") {
        return u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16).map(Token::Float64);
    }
    if written.contains('.') {
        return written.parse::<f64>().ok().map(|value| Token::Float64(value.to_bits()));
    }
    let unsigned = written.strip_suffix('U').unwrap_or(written);
    let value = if let Some(digits) = strip(unsigned, "0x") {
        u64::from_str_radix(digits, 16)
    } else if let Some(digits) = strip(unsigned, "0b") {
        u64::from_str_radix(digits, 2)
    } else if unsigned.len() > 1 && unsigned.starts_with('0') {
        u64::from_str_radix(unsigned, 8)
    } else {
        unsigned.parse()
    };
    value.ok().map(Token::Integer)
}

fn strip<'t>(written: &'t str, prefix: &str) -> Option<&'t str> {
    let (head, tail) = written.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(tail)
}
