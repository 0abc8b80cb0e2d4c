//! Declarations of variables: `.global .align 4 .b8 name[2][8] = {1, 2, other+8};`

use super::lexer::Token;
use super::parser::Parser;
use super::{Initial, Space, Type, Variable};
use crate::EmulatorError;

/// No real variable comes near; a larger one is a mistake in the text.
const LARGEST_VARIABLE: u64 = 1 << 32;

impl Parser {
    /// The variables of one declaration, past its semicolon.
    pub fn variables(&mut self, space: Space) -> Result<Vec<Variable>, EmulatorError> {
        let mut found = vec![self.declarator(space)?];
        while self.take(',') {
            let (line, first) = (self.line(), &found[0]);
            let more = Variable { line, initial: Vec::new(), ..first.clone() };
            let name = self.word("a variable's name")?;
            found.push(Variable { name, ..more });
        }
        self.expect(';', "';' after a declaration")?;
        Ok(found)
    }

    /// One declarator, past its initialiser.
    pub fn declarator(&mut self, space: Space) -> Result<Variable, EmulatorError> {
        let line = self.line();
        let (mut alignment, mut kind, mut vector) = (None, None, 1);
        while let Some(word) = self.peek_word().filter(|word| word.starts_with('.')).map(str::to_owned) {
            self.next();
            match word.as_str() {
                ".align" => alignment = Some(self.alignment()?),
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                // `.param .u64 .ptr .global .align 16 name` tells of what is pointed to.
                ".ptr" => self.skip_pointee(),
                _ => match Type::parse(&word[1..]) {
                    Some(parsed) => kind = Some(parsed),
                    None => {
                        return Err(self.unexpected(Some(&Token::Word(word)), "a type, .align or .ptr"));
                    }
                },
            }
        }
        let name = self.word("a variable's name")?;
        let kind = kind.ok_or_else(|| self.unexpected(None, "a type before the variable's name"))?;
        let (count, open) = self.extents()?;
        let mut initial = Vec::new();
        if self.take('=') {
            self.initialiser(kind, &mut initial)?;
        }
        let size = match (open, kind.size().checked_mul(vector).and_then(|size| size.checked_mul(count))) {
            (true, _) => initial.iter().map(Initial::size).sum(),
            (false, Some(size)) if size <= LARGEST_VARIABLE => size,
            (false, _) => return Err(self.unexpected(None, "a variable of at most 4 GiB")),
        };
        let alignment = alignment.unwrap_or((kind.size() * vector).max(1));
        Ok(Variable { name, space, alignment, size, initial, line })
    }

    fn alignment(&mut self) -> Result<u64, EmulatorError> {
        match self.next() {
            Some(Token::Integer(value)) if value.is_power_of_two() && value <= 1 << 16 => Ok(value),
            other => Err(self.unexpected(other.as_ref(), "an alignment: a power of two up to 65536")),
        }
    }

    fn skip_pointee(&mut self) {
        while matches!(self.peek_word(), Some(".global" | ".const" | ".shared" | ".local" | ".align")) {
            if self.peek_word() == Some(".align") {
                self.next();
            }
            self.next();
        }
    }

    /// The product of `[2][8]`, and whether one extent was left open: `[]`.
    fn extents(&mut self) -> Result<(u64, bool), EmulatorError> {
        let (mut count, mut open) = (1_u64, false);
        while self.take('[') {
            match self.next() {
                Some(Token::Mark(']')) => open = true,
                Some(Token::Integer(extent)) => {
                    count =
                        count.checked_mul(extent).ok_or_else(|| self.unexpected(None, "a smaller array"))?;
                    self.expect(']', "']' after an extent")?;
                }
                other => return Err(self.unexpected(other.as_ref(), "an extent")),
            }
        }
        Ok((count, open))
    }

    /// Nested braces are read flat: rows are given whole.
    fn initialiser(&mut self, kind: Type, initial: &mut Vec<Initial>) -> Result<(), EmulatorError> {
        let mut depth = 0_u32;
        loop {
            if self.take('{') {
                depth += 1;
                continue;
            }
            if self.take('}') {
                depth = depth.checked_sub(1).ok_or_else(|| self.unexpected(None, "an initialiser"))?;
            } else if !self.take(',') {
                initial.push(self.initial(kind)?);
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn initial(&mut self, kind: Type) -> Result<Initial, EmulatorError> {
        let negative = self.take('-');
        let bits = match self.next() {
            Some(Token::Integer(value)) if negative => value.wrapping_neg(),
            Some(Token::Integer(value)) => value,
            Some(Token::Float32(bits)) if kind == Type::F32 => u64::from(bits ^ u32::from(negative) << 31),
            Some(Token::Float64(bits)) => bits ^ u64::from(negative) << 63,
            Some(Token::Word(word)) if !negative => return self.initial_address(word),
            other => return Err(self.unexpected(other.as_ref(), "an initial value")),
        };
        let size = usize::try_from(kind.size()).unwrap_or(8).min(8);
        Ok(Initial::Bytes(bits.to_le_bytes()[..size].to_vec()))
    }

    /// `name`, `name+8` or `generic(name)`.
    fn initial_address(&mut self, word: String) -> Result<Initial, EmulatorError> {
        let symbol = if word == "generic" {
            self.expect('(', "'(' after generic")?;
            let inner = self.word("a variable's name")?;
            self.expect(')', "')' after the name")?;
            inner
        } else {
            word
        };
        Ok(Initial::Address { symbol, offset: self.offset()? })
    }
}

impl Initial {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Address { .. } => 8,
        }
    }
}
