//! Names: what a register, a variable or a parameter is called in the function at hand, and where it lies.

use std::collections::HashMap;

use crate::EmulatorError;
use crate::ptx::{Space, Type, Variable};

/// Addresses of a module's global and constant variables.
pub(crate) type Symbols = HashMap<String, u64>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Binding {
    Register { kind: Type, place: u32 },
    Memory { space: Space, address: u64, size: u64 },
}

/// Sizes of what a kernel needs; they only grow.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pub rows: u32,
    pub predicates: u32,
    pub shared: u64,
    pub local: u64,
}

/// Nested scopes: an inner `{ .reg .pred p; … }` hides an outer `p`.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    levels: Vec<HashMap<String, Binding>>,
    /// `%r<9>`: the prefix and its registers' common type and first place.
    ranges: Vec<HashMap<String, (Type, u32, u32)>>,
    pub sizes: Sizes,
}

impl Scopes {
    pub fn open(&mut self) {
        self.levels.push(HashMap::new());
        self.ranges.push(HashMap::new());
    }

    pub fn close(&mut self) {
        self.levels.pop();
        self.ranges.pop();
    }

    pub fn bind(&mut self, name: &str, binding: Binding) {
        if let Some(level) = self.levels.last_mut() {
            level.insert(name.to_owned(), binding);
        }
    }

    pub fn declare_registers(&mut self, kind: Type, name: &str, count: Option<u32>) {
        let first = self.reserve(kind, count.unwrap_or(1));
        match (count, self.ranges.last_mut()) {
            (Some(count), Some(level)) => drop(level.insert(name.to_owned(), (kind, first, count))),
            _ => self.bind(name, Binding::Register { kind, place: first }),
        }
    }

    /// A place for `count` registers.
    pub fn reserve(&mut self, kind: Type, count: u32) -> u32 {
        let (places, each) = if kind == Type::Pred {
            (&mut self.sizes.predicates, 1)
        } else {
            (&mut self.sizes.rows, rows(kind))
        };
        let first = *places;
        *places = places.saturating_add(count.saturating_mul(each));
        first
    }

    /// Gives a `.shared`, `.local` or called function's `.param` variable its place.
    pub fn declare_variable(&mut self, variable: &Variable) -> Result<Binding, EmulatorError> {
        let (space, size) = match variable.space {
            Space::Shared => (Space::Shared, &mut self.sizes.shared),
            Space::Local | Space::Param => (Space::Local, &mut self.sizes.local),
            _ => {
                return Err(EmulatorError::Unsupported {
                    line: variable.line,
                    what: format!("the variable '{}' declared inside a function", variable.name),
                });
            }
        };
        let address = size.next_multiple_of(variable.alignment);
        *size = address + variable.size;
        let binding = Binding::Memory { space, address, size: variable.size };
        self.bind(&variable.name, binding);
        Ok(binding)
    }

    /// A variable of the module, bound where every function sees it.
    pub fn declare_outer(&mut self, variable: &Variable) -> Result<Binding, EmulatorError> {
        let inner = self.levels.split_off(self.levels.len().min(1));
        let binding = self.declare_variable(variable);
        self.levels.extend(inner);
        binding
    }

    pub fn find(&self, name: &str) -> Option<Binding> {
        let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(digits);
        for (level, ranges) in self.levels.iter().zip(&self.ranges).rev() {
            if let Some(binding) = level.get(name) {
                return Some(*binding);
            }
            let index = number.parse::<u32>().ok();
            if let (Some((kind, first, count)), Some(index)) = (ranges.get(prefix), index)
                && index < *count
            {
                let each = if *kind == Type::Pred { 1 } else { rows(*kind) };
                return Some(Binding::Register { kind: *kind, place: first + index * each });
            }
        }
        None
    }
}

/// Rows that a register of this type takes.
fn rows(kind: Type) -> u32 {
    match kind.size() {
        16 => 4,
        8 => 2,
        _ => 1,
    }
}
