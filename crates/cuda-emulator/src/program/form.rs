//! An opcode taken apart. Each decoder takes the modifiers it knows; one that is left over is not silently ignored.

use crate::ptx::{Instruction, Type};

pub(super) struct Form<'i> {
    pub base: &'i str,
    modifiers: Vec<&'i str>,
    /// The types, in the order written.
    types: Vec<Type>,
}

impl<'i> Form<'i> {
    pub fn new(instruction: &'i Instruction) -> Self {
        let mut parts = instruction.opcode.split('.');
        let base = parts.next().unwrap_or_default();
        let (mut modifiers, mut types) = (Vec::new(), Vec::new());
        for part in parts {
            match Type::parse(part) {
                Some(kind) => types.push(kind),
                None => modifiers.push(part),
            }
        }
        Self { base, modifiers, types }
    }

    /// Whether the modifier is there; it is then dealt with.
    pub fn take(&mut self, modifier: &str) -> bool {
        let at = self.modifiers.iter().position(|found| *found == modifier);
        at.map(|at| self.modifiers.remove(at)).is_some()
    }

    /// The value of the first modifier of the table that is there.
    pub fn take_one<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        table.iter().find(|(name, _)| self.take(name)).map(|(_, value)| *value)
    }

    /// Modifiers that change nothing here: cache hints, scopes, orderings.
    pub fn ignore(&mut self, modifiers: &[&str]) {
        self.modifiers.retain(|found| !modifiers.contains(found));
    }

    /// Takes every modifier that starts so: `L2::128B`.
    pub fn ignore_prefix(&mut self, prefix: &str) {
        self.modifiers.retain(|found| !found.starts_with(prefix));
    }

    /// The type of an instruction that has one.
    pub fn single(&self) -> Option<Type> {
        match self.types[..] {
            [kind] => Some(kind),
            _ => None,
        }
    }

    pub fn types(&self) -> &[Type] {
        &self.types
    }

    /// Whether every modifier was dealt with.
    pub fn is_spent(&self) -> bool {
        self.modifiers.is_empty()
    }
}
