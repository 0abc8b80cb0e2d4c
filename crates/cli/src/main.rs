//! The `tessera` binary: arguments in, results and errors out. What the commands do is the library's; here is how it is
//! asked for and shown.

mod checkpoint;
mod doctor;
mod failure;
mod generate;
mod inspect;
mod models;
mod output;
mod plan;
mod run_file;
mod runs;
mod summary;
mod sweep;
mod text;
mod train;
mod validate;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// Fine-tunes every parameter of Llama, Mistral, Mixtral and DBRX models.
#[derive(Parser)]
#[command(name = "tessera", version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Example, from a run file to an answer:
  tessera validate run.yaml
  tessera train run.yaml
  tessera generate runs/my-run/huggingface/ba30 --prompt 'Who are you?'

Exit codes: 0 done, 2 something in the input, 3 the machine (memory, disk, device), 4 the network,
130 or 143 stopped by SIGINT or SIGTERM.";

#[derive(Subcommand)]
enum Command {
    Train(train::TrainArguments),
    Validate(validate::ValidateArguments),
    Inspect(inspect::InspectArguments),
    Plan(plan::PlanArguments),
    Models(models::ModelsArguments),
    Checkpoint(checkpoint::CheckpointArguments),
    Generate(generate::GenerateArguments),
    Runs(runs::RunsArguments),
    Sweep(sweep::SweepArguments),
    Doctor(doctor::DoctorArguments),
}

impl Command {
    fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Train(arguments) => return arguments.run(),
            Self::Validate(arguments) => arguments.run(),
            Self::Inspect(arguments) => arguments.run(),
            Self::Plan(arguments) => arguments.run(),
            Self::Models(arguments) => arguments.run(),
            Self::Checkpoint(arguments) => arguments.run(),
            Self::Generate(arguments) => arguments.run(),
            Self::Runs(arguments) => return arguments.run(),
            Self::Sweep(arguments) => return arguments.run(),
            Self::Doctor(arguments) => arguments.run(),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command.run() {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
