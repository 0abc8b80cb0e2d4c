//! What can go wrong, in words that name the kernel, the thread and the line of PTX.

use std::fmt;

/// Everything that the engine refuses or stops at.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EmulatorError {
    /// The text is not PTX.
    #[error("PTX line {line}: found {found}, expected {expected}")]
    Syntax {
        /// Counted from 1.
        line: u32,
        /// The token.
        found: String,
        /// What the grammar has here.
        expected: &'static str,
    },
    /// An instruction or form that the emulator does not have.
    #[error("PTX line {line}: the emulator does not have {what}: add it to crates/cuda-emulator/src/program")]
    Unsupported {
        /// Counted from 1.
        line: u32,
        /// The opcode, or what else it is.
        what: String,
    },
    /// An operand of the wrong sort.
    #[error("PTX line {line}: {opcode} has {found}, expected {expected}")]
    Operand {
        /// Counted from 1.
        line: u32,
        /// As written.
        opcode: String,
        /// The operand.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A register, label or variable that is not declared.
    #[error("PTX line {line}: '{name}' is not declared")]
    UnknownName {
        /// Counted from 1.
        line: u32,
        /// As written.
        name: String,
    },
    /// A kernel that the module does not have.
    #[error("the module has no kernel '{name}'; it has: {known}")]
    UnknownKernel {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A launch that the hardware would refuse.
    #[error("launch of {kernel}: {problem}")]
    Launch {
        /// The kernel's name.
        kernel: String,
        /// What is wrong with its grid, block, shared memory or arguments.
        problem: String,
    },
    /// No device memory left.
    #[error("out of device memory: {wanted} bytes wanted, {used} of {limit} in use")]
    OutOfMemory {
        /// Bytes of the allocation.
        wanted: u64,
        /// Bytes in use.
        used: u64,
        /// Bytes of the device.
        limit: u64,
    },
    /// A copy or fill by the host that leaves its allocation.
    #[error("{what} of {bytes} bytes at {address:#x}: {problem}")]
    Copy {
        /// The call.
        what: &'static str,
        /// Its length.
        bytes: u64,
        /// Where it starts.
        address: u64,
        /// What lies there.
        problem: String,
    },
    /// A launch that ran to its end and did what it must not.
    #[error("{found}")]
    Hazards {
        /// One line each.
        found: String,
    },
    /// The settings wanted the device to fail.
    #[error("the device is lost at launch {launches}, as TESSERA_EMULATOR_FAIL says")]
    DeviceLost {
        /// Its index.
        device: usize,
        /// Launches before.
        launches: u64,
    },
    /// Ranks that call different collectives.
    #[error("a collective that ranks do not agree on: {problem}")]
    Collective {
        /// Who calls what.
        problem: String,
    },
    /// The kernel did what stops a launch.
    #[error("{place}: {problem}")]
    Fault {
        /// Where.
        place: Box<Place>,
        /// What.
        problem: String,
    },
}

/// A place in a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The kernel's name.
    pub kernel: String,
    /// The block's index.
    pub block: [u32; 3],
    /// The thread's index in its block.
    pub thread: [u32; 3],
    /// The line of PTX, counted from 1.
    pub line: u32,
    /// The opcode there.
    pub opcode: String,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(
            formatter,
            "kernel {}, block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz}), PTX line {} ({})",
            self.kernel, self.line, self.opcode
        )
    }
}
