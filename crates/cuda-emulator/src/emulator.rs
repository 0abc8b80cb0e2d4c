//! One emulated device as a Rust value: modules, memory, launches.

use std::sync::Arc;

use bytemuck::{NoUninit, Pod};

use crate::EmulatorError;
use crate::machine::memory::DeviceMemory;
use crate::machine::{Launch, Report, check_extents, run};
use crate::program::{Program, Symbols, decode};
use crate::ptx::{self, Initial, Space, Variable};

/// Which uses of memory are watched; out-of-bounds and misaligned accesses always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Warps of a block without a barrier between them.
    pub shared_races: bool,
    /// Blocks, or warps without a barrier, on the same global memory. It takes ten times the memory checked.
    pub global_races: bool,
    /// Reads of bytes that nothing wrote.
    pub uninitialised: bool,
}

impl Checks {
    /// All of them.
    pub const ALL: Self = Self { shared_races: true, global_races: true, uninitialised: true };
}

/// How a device behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of device memory.
    pub memory: u64,
    /// Draws the order of blocks, warps and atomics.
    pub seed: u64,
    /// What is watched.
    pub checks: Checks,
    /// Warp instructions that one launch may issue before it counts as hung.
    pub instruction_limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory: 8 << 30, seed: 0, checks: Checks::ALL, instruction_limit: 20_000_000_000 }
    }
}

/// A place in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePointer(pub u64);

impl DevicePointer {
    /// The place `bytes` further on.
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// An emulated device.
#[derive(Debug)]
pub struct Emulator {
    memory: DeviceMemory,
    options: Options,
    launches: u32,
}

/// A loaded module: parsed, with its variables in device memory.
#[derive(Debug)]
pub struct Module {
    parsed: ptx::Module,
    symbols: Symbols,
}

/// A kernel that can be launched.
#[derive(Clone)]
pub struct Function {
    program: Arc<Program>,
    shared_limit: u64,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(formatter, "Function({}, {} instructions)", self.program.name, self.program.instructions.len())
    }
}

/// A kernel's argument, of the size that its parameter has.
#[derive(Debug, Clone)]
pub enum Argument {
    /// A pointer.
    Pointer(DevicePointer),
    /// A number or struct, as its bytes.
    Value(Vec<u8>),
}

impl From<DevicePointer> for Argument {
    fn from(pointer: DevicePointer) -> Self {
        Self::Pointer(pointer)
    }
}

macro_rules! value_arguments {
    ($($number:ty),*) => {$(
        impl From<$number> for Argument {
            fn from(value: $number) -> Self {
                Self::Value(value.to_le_bytes().to_vec())
            }
        }
    )*};
}

value_arguments!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl Argument {
    /// A struct passed by value.
    pub fn of<T: NoUninit>(value: &T) -> Self {
        Self::Value(bytemuck::bytes_of(value).to_vec())
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Pointer(pointer) => pointer.0.to_le_bytes().to_vec(),
            Self::Value(bytes) => bytes.clone(),
        }
    }
}

impl Emulator {
    /// A device with nothing on it.
    pub fn new(options: Options) -> Self {
        Self::numbered(0, options)
    }

    /// Device `index` of several: its addresses tell it from the others.
    pub(crate) fn numbered(index: usize, options: Options) -> Self {
        Self { memory: DeviceMemory::new(index, options.memory), options, launches: 0 }
    }

    /// Parses a module and lays its variables out. A kernel is decoded when it is asked for, so a module may hold
    /// kernels that use what the emulator does not have.
    pub fn load_module(&mut self, ptx: &str) -> Result<Module, EmulatorError> {
        let parsed = ptx::Module::parse(ptx)?;
        let in_memory = |variable: &&Variable| matches!(variable.space, Space::Global | Space::Const);
        let mut symbols = Symbols::new();
        for variable in parsed.variables.iter().filter(in_memory) {
            symbols.insert(variable.name.clone(), self.memory.allocate(variable.size)?);
        }
        for variable in parsed.variables.iter().filter(in_memory) {
            let bytes = initial_bytes(variable, &symbols)?;
            self.memory.write(symbols[&variable.name], &bytes)?;
        }
        Ok(Module { parsed, symbols })
    }

    /// Frees a module's variables.
    pub fn unload_module(&mut self, module: &Module) -> Result<(), EmulatorError> {
        module.symbols.values().try_for_each(|address| self.memory.free(*address))
    }

    /// Memory that nothing has written.
    pub fn alloc(&mut self, bytes: u64) -> Result<DevicePointer, EmulatorError> {
        self.memory.allocate(bytes).map(DevicePointer)
    }

    /// Frees what [`alloc`](Self::alloc) gave. The address is never used again.
    pub fn free(&mut self, pointer: DevicePointer) -> Result<(), EmulatorError> {
        self.memory.free(pointer.0)
    }

    /// Allocations that were not freed, those of loaded modules' variables included.
    pub fn live_allocations(&self) -> usize {
        self.memory.live()
    }

    /// New memory with the values of a slice.
    pub fn upload<T: NoUninit>(&mut self, values: &[T]) -> Result<DevicePointer, EmulatorError> {
        let bytes = bytemuck::cast_slice(values);
        let pointer = self.alloc(bytes.len() as u64)?;
        self.write(pointer, bytes)?;
        Ok(pointer)
    }

    /// `count` values from device memory.
    pub fn download<T: Pod>(
        &mut self,
        pointer: DevicePointer,
        count: usize,
    ) -> Result<Vec<T>, EmulatorError> {
        let bytes = self.memory.read(pointer.0, count * size_of::<T>())?;
        Ok(bytemuck::pod_collect_to_vec(bytes))
    }

    /// Copies bytes to the device.
    pub fn write(&mut self, pointer: DevicePointer, bytes: &[u8]) -> Result<(), EmulatorError> {
        self.memory.write(pointer.0, bytes)
    }

    /// Copies bytes from the device.
    pub fn read(&mut self, pointer: DevicePointer, bytes: usize) -> Result<Vec<u8>, EmulatorError> {
        self.memory.read(pointer.0, bytes).map(<[u8]>::to_vec)
    }

    /// What a library's kernel reads: written bytes, where that is watched.
    pub(crate) fn read_input(
        &mut self,
        what: &'static str,
        address: u64,
        bytes: usize,
    ) -> Result<Vec<u8>, EmulatorError> {
        if self.options.checks.uninitialised {
            return self.memory.read_written(what, address, bytes);
        }
        self.memory.read(address, bytes).map(<[u8]>::to_vec)
    }

    pub(crate) fn memory(&mut self) -> &mut DeviceMemory {
        &mut self.memory
    }

    /// Runs a kernel to its end. What is wrong with it but does not stop it is in the report's hazards.
    pub fn launch(
        &mut self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        arguments: &[Argument],
    ) -> Result<Report, EmulatorError> {
        let parameters = function.parameter_bytes(arguments)?;
        self.launch_bytes(function, grid, block, shared_bytes, parameters)
    }

    /// As [`launch`](Self::launch), with the parameters laid out already.
    pub(crate) fn launch_bytes(
        &mut self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        parameters: Vec<u8>,
    ) -> Result<Report, EmulatorError> {
        self.launches = self.launches.wrapping_add(1).max(1);
        let launch = Launch {
            program: &function.program,
            grid,
            block,
            dynamic_shared: u64::from(shared_bytes),
            shared_limit: function.shared_limit,
            parameters,
            checks: self.options.checks,
            seed: self.options.seed ^ u64::from(self.launches) << 32,
            generation: self.launches,
            instruction_limit: self.options.instruction_limit,
        };
        run(&launch, &mut self.memory)
    }
}

impl Module {
    /// The names of the module's kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.parsed.kernels()
    }

    /// Where a global variable lies and how many bytes it has.
    pub fn variable(&self, name: &str) -> Option<(DevicePointer, u64)> {
        let variable = self.parsed.variables.iter().find(|variable| variable.name == name)?;
        Some((DevicePointer(*self.symbols.get(name)?), variable.size))
    }

    /// Decodes a kernel.
    pub fn function(&self, name: &str) -> Result<Function, EmulatorError> {
        let program = Arc::new(decode(&self.parsed, name, &self.symbols)?);
        // As if the host had allowed all that the device has; the driver's functions start from less.
        Ok(Function { program, shared_limit: u64::MAX })
    }
}

impl Function {
    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// Sizes of the parameters, in order.
    pub fn parameter_sizes(&self) -> impl Iterator<Item = usize> {
        self.program.parameters.iter().map(|parameter| parameter.size)
    }

    /// Bytes of `.shared` arrays whose size is fixed.
    pub fn static_shared_bytes(&self) -> u64 {
        self.program.static_shared
    }

    /// With at most this much shared memory, as `cuFuncSetAttribute` sets it.
    pub(crate) fn with_shared_limit(self, shared_limit: u64) -> Self {
        Self { shared_limit, ..self }
    }

    /// Whether a launch of this size is possible at all.
    pub(crate) fn check_launch(
        &self,
        extents: [[u32; 3]; 2],
        shared_bytes: u32,
    ) -> Result<(), EmulatorError> {
        check_extents(&self.program, extents, u64::from(shared_bytes), self.shared_limit)
    }

    fn parameter_bytes(&self, arguments: &[Argument]) -> Result<Vec<u8>, EmulatorError> {
        let refuse = |problem: String| EmulatorError::Launch { kernel: self.program.name.clone(), problem };
        let parameters = &self.program.parameters;
        if arguments.len() != parameters.len() {
            return Err(refuse(format!("{} arguments for {} parameters", arguments.len(), parameters.len())));
        }
        let mut bytes = vec![0; self.program.parameter_bytes];
        for (argument, parameter) in arguments.iter().zip(parameters) {
            let value = argument.bytes();
            if value.len() != parameter.size {
                let (name, size) = (&parameter.name, parameter.size);
                return Err(refuse(format!(
                    "an argument of {} bytes for {name}, which has {size}",
                    value.len()
                )));
            }
            bytes[parameter.offset..parameter.offset + parameter.size].copy_from_slice(&value);
        }
        Ok(bytes)
    }

    /// The parameter bytes out of separate values, each read by `read(index, size)`.
    pub(crate) fn collect_parameters(&self, mut read: impl FnMut(usize, usize) -> Vec<u8>) -> Vec<u8> {
        let mut bytes = vec![0; self.program.parameter_bytes];
        for (index, parameter) in self.program.parameters.iter().enumerate() {
            bytes[parameter.offset..parameter.offset + parameter.size]
                .copy_from_slice(&read(index, parameter.size));
        }
        bytes
    }
}

/// A variable's first contents: what is not given is 0, as in C.
fn initial_bytes(variable: &Variable, symbols: &Symbols) -> Result<Vec<u8>, EmulatorError> {
    let mut bytes = Vec::with_capacity(variable.size as usize);
    for part in &variable.initial {
        match part {
            Initial::Bytes(part) => bytes.extend(part),
            Initial::Address { symbol, offset } => {
                let unknown = || EmulatorError::UnknownName { line: variable.line, name: symbol.clone() };
                let address = symbols.get(symbol).ok_or_else(unknown)?;
                bytes.extend(address.wrapping_add_signed(*offset).to_le_bytes());
            }
        }
    }
    bytes.resize(variable.size as usize, 0);
    Ok(bytes)
}
