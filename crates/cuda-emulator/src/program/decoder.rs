//! Walks a kernel's statements and emits its instructions.

use std::collections::HashMap;

use super::form::Form;
use super::operands::Operands;
use super::scope::{Binding, Scopes, Symbols};
use super::{CallArgument, Instruction, Operation, Parameter, Program, Special};
use super::{bits, carry, compare, convert, float, halves, integer, memory, warp};
use crate::EmulatorError;
use crate::ptx::{self, Function, Module, Operand, Space, Statement, Type};

/// Calls deeper than this are taken for recursion, which cannot be expanded.
const DEEPEST_CALL: usize = 32;
/// Expanded calls could make a small text very large.
const MOST_INSTRUCTIONS: usize = 4 << 20;

/// Decodes one kernel of a module whose global variables lie at `symbols`.
pub(crate) fn decode(module: &Module, name: &str, symbols: &Symbols) -> Result<Program, EmulatorError> {
    let kernel = module.functions.get(name).filter(|function| function.is_entry && function.body.is_some());
    let kernel = kernel.ok_or_else(|| EmulatorError::UnknownKernel {
        name: name.to_owned(),
        known: module.kernels().collect::<Vec<_>>().join(", "),
    })?;
    let mut decoder = Decoder {
        module,
        symbols,
        scopes: Scopes::default(),
        instructions: Vec::new(),
        opcodes: Vec::new(),
        opcode_indices: HashMap::new(),
        specials: Vec::new(),
        depth: 0,
        carry: None,
    };
    decoder.scopes.open();
    let (parameters, parameter_bytes) = decoder.bind_parameters(kernel);
    decoder.expand(kernel)?;
    Ok(decoder.finish(name, parameters, parameter_bytes))
}

pub(super) struct Decoder<'m> {
    module: &'m Module,
    symbols: &'m Symbols,
    pub scopes: Scopes,
    instructions: Vec<Instruction>,
    opcodes: Vec<String>,
    opcode_indices: HashMap<String, u32>,
    specials: Vec<(Special, u32)>,
    depth: usize,
    /// The carry flag, `CC.CF`, in kernels that use it.
    carry: Option<u32>,
}

/// The labels of one expanded function, and the branches that wait for them.
#[derive(Default)]
struct Flow {
    labels: HashMap<String, usize>,
    tables: HashMap<String, Vec<String>>,
    branches: Vec<(usize, u32, Jump)>,
}

enum Jump {
    Label(String),
    Table(String),
    End,
}

impl<'m> Decoder<'m> {
    fn bind_parameters(&mut self, kernel: &Function) -> (Vec<Parameter>, usize) {
        let mut bytes = 0_u64;
        let mut parameters = Vec::with_capacity(kernel.parameters.len());
        for parameter in &kernel.parameters {
            let address = bytes.next_multiple_of(parameter.alignment);
            bytes = address + parameter.size;
            self.scopes.bind(
                &parameter.name,
                Binding::Memory { space: Space::Param, address, size: parameter.size },
            );
            parameters.push(Parameter {
                name: parameter.name.clone(),
                offset: address as usize,
                size: parameter.size as usize,
            });
        }
        (parameters, bytes as usize)
    }

    fn finish(mut self, name: &str, parameters: Vec<Parameter>, parameter_bytes: usize) -> Program {
        self.emit(None, Operation::Exit, "exit", 0, 0);
        Program {
            name: name.to_owned(),
            parameters,
            parameter_bytes,
            instructions: self.instructions,
            opcodes: self.opcodes,
            specials: self.specials,
            rows: self.scopes.sizes.rows,
            predicates: self.scopes.sizes.predicates,
            static_shared: self.scopes.sizes.shared,
            dynamic_alignment: self.module.dynamic_shared().map_or(16, |variable| variable.alignment),
            local_bytes: self.scopes.sizes.local.next_multiple_of(16) as usize,
        }
    }

    /// The body of a function, at this place; its parameters are bound already.
    fn expand(&mut self, function: &'m Function) -> Result<(), EmulatorError> {
        let mut flow = Flow::default();
        for statement in function.body.iter().flatten() {
            self.statement(statement, &mut flow)?;
        }
        let end = self.instructions.len();
        for (at, line, jump) in std::mem::take(&mut flow.branches) {
            let place = |label: &String| {
                let unknown = || EmulatorError::UnknownName { line, name: label.clone() };
                flow.labels.get(label).copied().ok_or_else(unknown)
            };
            match (&jump, &mut self.instructions[at].operation) {
                (Jump::Label(label), Operation::Branch(target)) => *target = place(label)?,
                (Jump::End, Operation::Branch(target)) => *target = end,
                (Jump::Table(name), Operation::BranchTable { targets, .. }) => {
                    let unknown = || EmulatorError::UnknownName { line, name: name.clone() };
                    let labels = flow.tables.get(name).ok_or_else(unknown)?;
                    *targets = labels.iter().map(place).collect::<Result<_, _>>()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn statement(&mut self, statement: &'m Statement, flow: &mut Flow) -> Result<(), EmulatorError> {
        match statement {
            Statement::OpenScope => self.scopes.open(),
            Statement::CloseScope => self.scopes.close(),
            Statement::Registers { kind, names } => {
                for (name, count) in names {
                    self.scopes.declare_registers(*kind, name, *count);
                }
            }
            Statement::Variable(variable) => drop(self.scopes.declare_variable(variable)?),
            Statement::Label(name) => drop(flow.labels.insert(name.clone(), self.instructions.len())),
            Statement::BranchTargets { name, labels } => {
                flow.tables.insert(name.clone(), labels.clone());
            }
            Statement::Instruction(instruction) => self.instruction(instruction, flow)?,
        }
        Ok(())
    }

    fn instruction(
        &mut self,
        instruction: &'m ptx::Instruction,
        flow: &mut Flow,
    ) -> Result<(), EmulatorError> {
        if self.instructions.len() >= MOST_INSTRUCTIONS {
            return Err(EmulatorError::Unsupported {
                line: instruction.line,
                what: format!("a kernel of more than {MOST_INSTRUCTIONS} instructions"),
            });
        }
        let guard = self.guard(instruction)?;
        let mut form = Form::new(instruction);
        let operation = match form.base {
            "call" => return self.call(instruction, guard),
            "bra" | "brx" | "ret" | "exit" => self.jump(&mut form, instruction, flow)?,
            _ => {
                let mut operands = Operands { decoder: self, instruction };
                let operation = operation(&mut form, &mut operands)?;
                operation.filter(|_| form.is_spent()).ok_or_else(|| operands.unsupported())?
            }
        };
        let flops = flops(&form);
        self.emit(guard, operation, &instruction.opcode, instruction.line, flops);
        Ok(())
    }

    fn guard(&self, instruction: &ptx::Instruction) -> Result<Option<(u32, bool)>, EmulatorError> {
        let Some(guard) = &instruction.guard else { return Ok(None) };
        match self.scopes.find(&guard.predicate) {
            Some(Binding::Register { kind: Type::Pred, place }) => Ok(Some((place, guard.negated))),
            _ => Err(EmulatorError::UnknownName { line: instruction.line, name: guard.predicate.clone() }),
        }
    }

    fn emit(
        &mut self,
        guard: Option<(u32, bool)>,
        operation: Operation,
        opcode: &str,
        line: u32,
        flops: u32,
    ) {
        let next = self.opcodes.len() as u32;
        let index = *self.opcode_indices.entry(opcode.to_owned()).or_insert(next);
        if index == next {
            self.opcodes.push(opcode.to_owned());
        }
        self.instructions.push(Instruction { guard, operation, opcode: index, line, flops });
    }

    fn jump(
        &mut self,
        form: &mut Form,
        instruction: &ptx::Instruction,
        flow: &mut Flow,
    ) -> Result<Operation, EmulatorError> {
        form.ignore(&["uni"]);
        let indexed = form.take("idx");
        let at = self.instructions.len();
        let mut operands = Operands { decoder: self, instruction };
        let (operation, jump) = match form.base {
            "ret" if operands.decoder.depth > 0 => (Operation::Branch(usize::MAX), Jump::End),
            "ret" | "exit" => return Ok(Operation::Exit),
            "brx" if indexed => {
                let index = operands.source(0, Type::U32)?;
                let Operand::Name(table) = operands.operand(1)? else { return Err(operands.unsupported()) };
                (Operation::BranchTable { index, targets: Vec::new() }, Jump::Table(table.clone()))
            }
            "bra" => match operands.operand(0)? {
                Operand::Name(label) => (Operation::Branch(usize::MAX), Jump::Label(label.clone())),
                _ => return Err(operands.unsupported()),
            },
            _ => return Err(operands.unsupported()),
        };
        flow.branches.push((at, instruction.line, jump));
        Ok(operation)
    }

    /// `call (results), function, (arguments);`: the function's body comes here, under its own names.
    fn call(
        &mut self,
        instruction: &'m ptx::Instruction,
        guard: Option<(u32, bool)>,
    ) -> Result<(), EmulatorError> {
        let unsupported = |what: String| EmulatorError::Unsupported { line: instruction.line, what };
        let mut name = None;
        let mut lists: [&[Operand]; 2] = [&[], &[]];
        for operand in &instruction.operands {
            match operand {
                Operand::List(list) => lists[usize::from(name.is_some())] = list,
                Operand::Name(found) if name.is_none() => name = Some(found),
                _ => return Err(unsupported("an indirect call".to_owned())),
            }
        }
        let function = name.and_then(|name| self.module.functions.get(name));
        let function = function.ok_or_else(|| unsupported(format!("a call of {name:?}")))?;
        let results = self.places(instruction, lists[0])?;
        let arguments = self.places(instruction, lists[1])?;
        if function.body.is_none() {
            let operation = system_call(&function.name, &arguments, &results);
            let operation = operation.ok_or_else(|| unsupported(format!("a call of '{}'", function.name)))?;
            self.emit(guard, operation, &format!("call {}", function.name), instruction.line, 0);
            return Ok(());
        }
        if self.depth == DEEPEST_CALL {
            return Err(unsupported(format!("the recursion of '{}'", function.name)));
        }
        let skip = guard.map(|(place, negated)| {
            let at = self.instructions.len();
            self.emit(Some((place, !negated)), Operation::Branch(usize::MAX), "call", instruction.line, 0);
            at
        });
        self.scopes.open();
        self.bind_call(instruction, function, &results, &arguments)?;
        self.depth += 1;
        self.expand(function)?;
        self.depth -= 1;
        self.scopes.close();
        if let Some(at) = skip {
            self.instructions[at].operation = Operation::Branch(self.instructions.len());
        }
        Ok(())
    }

    fn bind_call(
        &mut self,
        instruction: &ptx::Instruction,
        function: &Function,
        results: &[CallArgument],
        arguments: &[CallArgument],
    ) -> Result<(), EmulatorError> {
        for (formal, actual) in [(&function.results, results), (&function.parameters, arguments)] {
            if formal.len() != actual.len()
                || formal.iter().zip(actual).any(|(f, a)| f.size as usize > a.size)
            {
                return Err(EmulatorError::Unsupported {
                    line: instruction.line,
                    what: format!("a call of '{}' with other parameters than it declares", function.name),
                });
            }
            for (formal, actual) in formal.iter().zip(actual) {
                let (address, size) = (actual.offset as u64, actual.size as u64);
                self.scopes.bind(&formal.name, Binding::Memory { space: Space::Local, address, size });
            }
        }
        Ok(())
    }

    fn places(
        &self,
        instruction: &ptx::Instruction,
        list: &[Operand],
    ) -> Result<Vec<CallArgument>, EmulatorError> {
        let place = |operand: &Operand| match operand {
            Operand::Name(name) => match self.scopes.find(name) {
                Some(Binding::Memory { space: Space::Local, address, size }) => {
                    Ok(CallArgument { offset: address as usize, size: size as usize })
                }
                _ => Err(EmulatorError::UnknownName { line: instruction.line, name: name.clone() }),
            },
            other => Err(EmulatorError::Operand {
                line: instruction.line,
                opcode: instruction.opcode.clone(),
                found: format!("{other:?}"),
                expected: "a .param variable",
            }),
        };
        list.iter().map(place).collect()
    }

    /// A name of the function or of the module; dynamic shared memory has no fixed place and is not found.
    pub fn find(&mut self, name: &str) -> Result<Option<Binding>, EmulatorError> {
        if let Some(binding) = self.scopes.find(name) {
            return Ok(Some(binding));
        }
        if let Some(address) = self.symbols.get(name) {
            return Ok(Some(Binding::Memory { space: Space::Global, address: *address, size: 0 }));
        }
        let shared = |variable: &&ptx::Variable| {
            variable.name == name && variable.space == Space::Shared && variable.size > 0
        };
        match self.module.variables.iter().find(shared) {
            Some(variable) => Ok(Some(self.scopes.declare_outer(variable)?)),
            None => Ok(None),
        }
    }

    pub fn is_dynamic_shared(&self, name: &str) -> bool {
        let named = |variable: &ptx::Variable| {
            variable.name == name && variable.space == Space::Shared && variable.size == 0
        };
        self.module.variables.iter().any(named)
    }

    /// The row of a special register; the row above it is 0, so that it reads as 64 bits too.
    pub fn special(&mut self, special: Special) -> u32 {
        if let Some((_, row)) = self.specials.iter().find(|(known, _)| *known == special) {
            return *row;
        }
        let row = self.scopes.reserve(Type::U64, 1);
        self.specials.push((special, row));
        row
    }

    pub fn carry_flag(&mut self) -> u32 {
        *self.carry.get_or_insert_with(|| self.scopes.reserve(Type::Pred, 1))
    }
}

/// Each family is asked in turn; none knows another's opcodes.
fn operation(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    for family in [carry::decode, integer::decode, float::decode, halves::decode, bits::decode] {
        if let Some(compute) = family(form, operands)? {
            return Ok(Some(Operation::Compute(compute)));
        }
    }
    for family in [compare::decode, convert::decode] {
        if let Some(compute) = family(form, operands)? {
            return Ok(Some(Operation::Compute(compute)));
        }
    }
    match memory::decode(form, operands)? {
        Some(operation) => Ok(Some(operation)),
        None => warp::decode(form, operands),
    }
}

/// What the driver itself provides to device code.
fn system_call(name: &str, arguments: &[CallArgument], results: &[CallArgument]) -> Option<Operation> {
    match (name, arguments) {
        ("__assertfail", [message, file, line, function, _]) => {
            Some(Operation::AssertFail { arguments: [*message, *file, *line, *function] })
        }
        ("vprintf", [format, arguments]) => Some(Operation::Print {
            format: *format,
            arguments: *arguments,
            target: results.first().map(|result| result.offset),
        }),
        _ => None,
    }
}

/// Floating-point operations of one lane of an arithmetic instruction.
fn flops(form: &Form) -> u32 {
    let each = match form.base {
        "fma" | "mad" => 2,
        "add" | "sub" | "mul" | "div" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
            1
        }
        _ => 0,
    };
    match form.types().last() {
        Some(Type::F32 | Type::F64 | Type::F16 | Type::Bf16) => each,
        Some(Type::F16x2 | Type::Bf16x2) => 2 * each,
        _ => 0,
    }
}

impl Module {
    /// The names of the kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.functions.values().filter(|function| function.is_entry).map(|function| function.name.as_str())
    }

    fn dynamic_shared(&self) -> Option<&ptx::Variable> {
        let dynamic =
            self.variables.iter().filter(|variable| variable.space == Space::Shared && variable.size == 0);
        dynamic.max_by_key(|variable| variable.alignment)
    }
}
