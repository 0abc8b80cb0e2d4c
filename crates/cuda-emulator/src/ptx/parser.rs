//! Tokens to functions and statements.

use super::lexer::{Token, tokens};
use super::{Function, Guard, Instruction, Module, Operand, Space, Statement, Type, Variable};
use crate::EmulatorError;

/// In one declaration; nvcc needs a few thousand at most.
const MOST_REGISTERS: u32 = 1 << 20;

impl Module {
    /// Parses a module's text. Any text gives a module or an error that names the line.
    pub fn parse(text: &str) -> Result<Self, EmulatorError> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0 };
        let mut module = Self::default();
        while parser.at < parser.tokens.len() {
            parser.top_level(&mut module)?;
        }
        Ok(module)
    }
}

pub(super) struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
}

impl Parser {
    pub fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    pub fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    pub fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).map(|(token, _)| token.clone());
        self.at += 1;
        token
    }

    /// An error at the token that was taken last, or would have been.
    pub fn unexpected(&self, token: Option<&Token>, expected: &'static str) -> EmulatorError {
        let found = token.map_or_else(|| "the end of the text".to_owned(), Token::describe);
        let line = self.tokens.get(self.at.saturating_sub(1)).map_or_else(|| self.line(), |(_, line)| *line);
        EmulatorError::Syntax { line, found, expected }
    }

    pub fn take(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(&Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    pub fn expect(&mut self, mark: char, expected: &'static str) -> Result<(), EmulatorError> {
        match self.next() {
            Some(Token::Mark(found)) if found == mark => Ok(()),
            other => Err(self.unexpected(other.as_ref(), expected)),
        }
    }

    pub fn word(&mut self, expected: &'static str) -> Result<String, EmulatorError> {
        match self.next() {
            Some(Token::Word(word)) => Ok(word),
            other => Err(self.unexpected(other.as_ref(), expected)),
        }
    }

    pub fn peek_word(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    fn skip_past(&mut self, mark: char) -> Result<(), EmulatorError> {
        loop {
            match self.next() {
                Some(Token::Mark(found)) if found == mark => return Ok(()),
                Some(_) => {}
                None => return Err(self.unexpected(None, "the ';' that ends a directive")),
            }
        }
    }

    fn top_level(&mut self, module: &mut Module) -> Result<(), EmulatorError> {
        let mut word = self.word("a directive such as .version, .func or .entry")?;
        while matches!(word.as_str(), ".visible" | ".weak" | ".extern" | ".common") {
            word = self.word("what is declared")?;
        }
        match word.as_str() {
            ".version" => self.at += 1,
            ".address_size" => self.at += 1,
            ".target" => {
                self.at += 1;
                while self.take(',') {
                    self.at += 1;
                }
            }
            ".file" => self.skip_file(),
            ".section" => self.skip_past('}')?,
            ".alias" | ".pragma" => self.skip_past(';')?,
            ".entry" | ".func" => {
                let function = self.function(word == ".entry")?;
                let known = module.functions.get(&function.name).is_some_and(|known| known.body.is_some());
                if !known {
                    module.functions.insert(function.name.clone(), function);
                }
            }
            _ => match space(&word) {
                Some(space) => module.variables.extend(self.variables(space)?),
                None => return Err(self.unexpected(Some(&Token::Word(word)), "a directive of a module")),
            },
        }
        Ok(())
    }

    /// `.file 1 "name"` with, maybe, `, time, size`: no semicolon ends it.
    fn skip_file(&mut self) {
        self.at += 2;
        while self.take(',') {
            self.at += 1;
        }
    }

    fn function(&mut self, is_entry: bool) -> Result<Function, EmulatorError> {
        let results =
            if self.peek() == Some(&Token::Mark('(')) { self.parameter_list()? } else { Vec::new() };
        let name = self.word("the function's name")?;
        let parameters =
            if self.peek() == Some(&Token::Mark('(')) { self.parameter_list()? } else { Vec::new() };
        // Limits such as .maxntid 256, 1, 1 and .noreturn stand between the list and the body.
        while !matches!(self.peek(), Some(Token::Mark('{' | ';')) | None) {
            self.at += 1;
        }
        let body = if self.take(';') { None } else { Some(self.body()?) };
        Ok(Function { name, is_entry, results, parameters, body })
    }

    fn parameter_list(&mut self) -> Result<Vec<Variable>, EmulatorError> {
        self.expect('(', "a parameter list")?;
        let mut list = Vec::new();
        while !self.take(')') {
            let word = self.word(".param")?;
            if word != ".param" {
                return Err(self.unexpected(Some(&Token::Word(word)), ".param"));
            }
            list.push(self.declarator(Space::Param)?);
            self.take(',');
        }
        Ok(list)
    }

    fn body(&mut self) -> Result<Vec<Statement>, EmulatorError> {
        self.expect('{', "the function's body")?;
        let mut statements = Vec::new();
        let mut depth = 1_u32;
        while depth > 0 {
            if self.take('{') {
                depth += 1;
                statements.push(Statement::OpenScope);
            } else if self.take('}') {
                depth -= 1;
                if depth > 0 {
                    statements.push(Statement::CloseScope);
                }
            } else if !self.take(';') {
                self.statement(&mut statements)?;
            }
        }
        Ok(statements)
    }

    fn statement(&mut self, statements: &mut Vec<Statement>) -> Result<(), EmulatorError> {
        if self.peek() == Some(&Token::Mark('@')) {
            statements.push(self.instruction()?);
            return Ok(());
        }
        let Some(word) = self.peek_word().map(str::to_owned) else {
            let token = self.next();
            return Err(self.unexpected(token.as_ref(), "an instruction, a label or a directive"));
        };
        if self.tokens.get(self.at + 1).map(|(token, _)| token) == Some(&Token::Mark(':')) {
            self.at += 2;
            statements.push(self.label(word)?);
        } else if let Some(space) = space(&word) {
            self.at += 1;
            statements.extend(self.variables(space)?.into_iter().map(Statement::Variable));
        } else {
            match word.as_str() {
                ".reg" => statements.push(self.registers()?),
                ".pragma" => self.skip_past(';')?,
                // Source lines: `.loc 1 2 3`, with attributes after commas.
                ".loc" => self.skip_location(),
                _ => statements.push(self.instruction()?),
            }
        }
        Ok(())
    }

    fn skip_location(&mut self) {
        self.at += 4;
        while self.take(',') {
            while !matches!(self.peek(), None | Some(Token::Mark(',' | '}'))) && !self.starts_line() {
                self.at += 1;
            }
        }
    }

    fn starts_line(&self) -> bool {
        let line_of = |at: usize| self.tokens.get(at).map(|(_, line)| *line);
        self.at > 0 && line_of(self.at) != line_of(self.at - 1)
    }

    fn label(&mut self, name: String) -> Result<Statement, EmulatorError> {
        match self.peek_word() {
            Some(".branchtargets") => {
                self.at += 1;
                let mut labels = vec![self.word("a label")?];
                while self.take(',') {
                    labels.push(self.word("a label")?);
                }
                self.expect(';', "';' after the branch targets")?;
                Ok(Statement::BranchTargets { name, labels })
            }
            // A call's prototype says nothing that the call does not.
            Some(".callprototype") => {
                self.skip_past(';')?;
                Ok(Statement::Label(name))
            }
            _ => Ok(Statement::Label(name)),
        }
    }

    fn registers(&mut self) -> Result<Statement, EmulatorError> {
        self.at += 1;
        let word = self.word("the registers' type")?;
        let kind = word.strip_prefix('.').and_then(Type::parse);
        let kind = kind.ok_or_else(|| self.unexpected(Some(&Token::Word(word)), "the registers' type"))?;
        let mut names = vec![self.register()?];
        while self.take(',') {
            names.push(self.register()?);
        }
        self.expect(';', "';' after the registers")?;
        Ok(Statement::Registers { kind, names })
    }

    /// `x`, or `%r<9>`.
    fn register(&mut self) -> Result<(String, Option<u32>), EmulatorError> {
        let name = self.word("a register's name")?;
        if !self.take('<') {
            return Ok((name, None));
        }
        let token = self.next();
        let count = match &token {
            Some(Token::Integer(count)) => {
                u32::try_from(*count).ok().filter(|count| *count <= MOST_REGISTERS)
            }
            _ => None,
        };
        let count =
            count.ok_or_else(|| self.unexpected(token.as_ref(), "a number of registers up to 1048576"))?;
        self.expect('>', "'>' after the number of registers")?;
        Ok((name, Some(count)))
    }

    fn instruction(&mut self) -> Result<Statement, EmulatorError> {
        let line = self.line();
        let mut guard = None;
        if self.take('@') {
            let negated = self.take('!');
            guard = Some(Guard { predicate: self.word("the guard's predicate")?, negated });
        }
        let opcode = self.word("an instruction")?;
        let mut operands = Vec::new();
        while !self.take(';') {
            if !operands.is_empty() {
                self.expect(',', "',' or ';' after an operand")?;
            }
            operands.push(self.operand()?);
        }
        Ok(Statement::Instruction(Instruction { guard, opcode, operands, line }))
    }

    fn operand(&mut self) -> Result<Operand, EmulatorError> {
        if self.take('{') {
            return Ok(Operand::Vector(self.simple_list('}')?));
        }
        if self.take('(') {
            return Ok(Operand::List(self.simple_list(')')?));
        }
        if self.take('[') {
            let base = Box::new(self.simple()?);
            let offset = self.offset()?;
            self.expect(']', "']' after an address")?;
            return Ok(Operand::Address { base, offset });
        }
        let first = self.simple()?;
        if self.take('|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.simple()?)));
        }
        // `mov.u64 %rd1, table+8;`
        if matches!(first, Operand::Name(_)) && matches!(self.peek(), Some(Token::Mark('+' | '-'))) {
            let offset = self.offset()?;
            return Ok(Operand::Address { base: Box::new(first), offset });
        }
        Ok(first)
    }

    fn simple_list(&mut self, end: char) -> Result<Vec<Operand>, EmulatorError> {
        let mut list = Vec::new();
        while !self.take(end) {
            list.push(self.simple()?);
            if !self.take(',') && self.peek() != Some(&Token::Mark(end)) {
                let token = self.next();
                return Err(self.unexpected(token.as_ref(), "',' or the end of the list"));
            }
        }
        Ok(list)
    }

    /// What follows a base: nothing, `+8`, `+-8` or `-8`.
    pub fn offset(&mut self) -> Result<i64, EmulatorError> {
        let plus = self.take('+');
        if !plus && self.peek() != Some(&Token::Mark('-')) {
            return Ok(0);
        }
        match self.simple()? {
            Operand::Integer(value) => Ok(value as i64),
            _ => Err(self.unexpected(None, "an offset in bytes")),
        }
    }

    fn simple(&mut self) -> Result<Operand, EmulatorError> {
        let negative = self.take('-');
        match self.next() {
            Some(Token::Integer(value)) if negative => Ok(Operand::Integer(value.wrapping_neg())),
            Some(Token::Float64(bits)) if negative => Ok(Operand::Float64(bits ^ 1 << 63)),
            Some(Token::Float32(bits)) if negative => Ok(Operand::Float32(bits ^ 1 << 31)),
            Some(Token::Integer(value)) => Ok(Operand::Integer(value)),
            Some(Token::Float32(bits)) => Ok(Operand::Float32(bits)),
            Some(Token::Float64(bits)) => Ok(Operand::Float64(bits)),
            Some(Token::Word(word)) if !negative && word == "_" => Ok(Operand::Sink),
            Some(Token::Word(word)) if !negative => Ok(Operand::Name(word)),
            Some(Token::Mark('!')) if !negative => Ok(Operand::Not(self.word("a predicate")?)),
            other => Err(self.unexpected(other.as_ref(), "an operand")),
        }
    }
}

fn space(directive: &str) -> Option<Space> {
    Some(match directive {
        ".global" => Space::Global,
        ".const" => Space::Const,
        ".shared" => Space::Shared,
        ".local" => Space::Local,
        ".param" => Space::Param,
        _ => return None,
    })
}
