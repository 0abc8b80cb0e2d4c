//! How a command fails: the text on standard error and the exit code.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use tessera_train::{Fault, TrainError};

use crate::output;

/// What a shell takes for the user's mistake; clap ends with the same.
const INPUT: u8 = 2;
const MACHINE: u8 = 3;
/// Another rank or the network: a scheduler may start the run again.
pub const NETWORK: u8 = 4;

/// Why a command ended without its result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The library says what and why.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// An argument asks for something that is not there.
    #[error("{0}")]
    Argument(String),
    /// The result could not be printed.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// The result could not be written as JSON.
    #[error("cannot write the result as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The doctor's finding.
    #[error("a device that is there cannot be used, or computes wrong: see above")]
    Unwell,
    /// The system refuses to tell of signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}

impl Failure {
    /// Prints the error and gives the exit code. A reader that has seen enough and closed the pipe is no error.
    pub fn report(&self) -> ExitCode {
        if self.is_closed_pipe() {
            return ExitCode::SUCCESS;
        }
        self.say();
        ExitCode::from(self.exit_code())
    }

    /// Prints the error.
    pub fn say(&self) {
        output::complain("error", &self.text());
    }

    /// What the process is to end with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Train(error) => match error.fault() {
                Fault::Input => INPUT,
                Fault::Machine => MACHINE,
                Fault::Network => NETWORK,
            },
            Self::Argument(_) => INPUT,
            Self::Output(_) | Self::Json(_) | Self::Unwell | Self::Signals(_) => MACHINE,
        }
    }

    /// Whether the reader of standard output has gone.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The message, and those of its causes that it does not already hold.
    fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.contains(&message) {
                text.push_str(&format!("\n  because: {message}"));
            }
            cause = error.source();
        }
        text
    }
}
