//! `tessera plan`: what a run needs of memory and time.

use clap::Args;
use tessera_train::speed::expected_flops_per_second;

use crate::failure::Failure;
use crate::output::{Paint, print, print_json};
use crate::run_file::RunFile;
use crate::summary::{labelled, plan_json, time_line};
use crate::text::{Align, bytes, count, counted, table};

/// Shows the memory, the batches and the time that a run will take.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera plan run.yaml global_train_batch_size=32 save_async=false")]
pub struct PlanArguments {
    #[command(flatten)]
    run_file: RunFile,
    /// Print the plan as JSON, with every setting filled in
    #[arg(long)]
    json: bool,
}

impl PlanArguments {
    /// Plans, and prints the plan.
    pub fn run(self) -> Result<(), Failure> {
        let plan = self.run_file.prepare()?.plan;
        let speed = expected_flops_per_second();
        if self.json {
            return print_json(&plan_json(&plan, speed));
        }
        let settings = &plan.settings;
        let mut rows: Vec<_> =
            plan.memory_parts().into_iter().map(|(part, size)| [part.to_owned(), bytes(size)]).collect();
        rows.push(["in all".to_owned(), bytes(plan.memory_bytes())]);
        let epoch = &plan.length.epoch;
        let batches = format!(
            "{}, {} an epoch\n{} of {} tokens each, {} at a time",
            counted(plan.length.total_batches, "batch", "batches"),
            count(epoch.batches()),
            counted(settings.global_train_batch_size, "row", "rows"),
            count(settings.context_length),
            counted(settings.microbatch_rows(), "row", "rows"),
        );
        let labels = [
            ("Model", format!("{}, {}", settings.model, counted(plan.parameters, "parameter", "parameters"))),
            ("Memory", table([Align::Left, Align::Right], &rows)),
            ("Batches", batches),
            ("Time", time_line(plan.estimated_time(speed), speed)),
        ];
        print(&labelled(Paint::of_stdout(), &labels))
    }
}
