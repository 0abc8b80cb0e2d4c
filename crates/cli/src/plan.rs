//! `tessera plan`: what a run needs of memory and time, on this machine or on a cluster that is not there.

mod catalogue;
mod cluster;

use std::num::NonZeroUsize;

use clap::Args;
use tessera_train::plan::cluster::{Cluster, ClusterError, ClusterPlan, Workload, find_gpu};

use crate::failure::Failure;
use crate::output::{Paint, print, print_json};
use crate::run_file::RunFile;
use crate::summary::{labelled, plan_json, time_line};
use crate::text::{Align, bytes, count, counted, table};

const EXAMPLES: &str = "\
Examples:
  tessera plan run.yaml global_train_batch_size=32 save_async=false
  tessera plan run.yaml --processes 4
  tessera plan run.yaml --nodes 8 --gpus 8 --gpu h100
  tessera plan --model meta-llama/Meta-Llama-3.1-70B --nodes 4 --gpu-mtbf-hours 50000 parallel.replicate=2
  tessera plan --catalogue

Without --model and the flags of a cluster, the plan is that of this machine, and the data is read.";

/// GPUs of a node, and their kind, where nothing else is asked for.
const USUAL_GPUS: usize = 8;
const USUAL_GPU: &str = "h100";

/// Shows the memory, the batches and the time that a run will take, here or on GPUs.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PlanArguments {
    /// The run file; with --model, the first of the keys
    #[arg(value_name = "RUN.yaml", required_unless_present_any = ["model", "catalogue"])]
    run_file: Option<String>,
    /// Keys laid over the run file, such as context_length=4096 or parallel.context=2
    #[arg(value_name = "key=value")]
    overrides: Vec<String>,
    /// Plan for this model instead of a run file: its name in the catalogue, its folder, or its config.json
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Tokens of a row
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<usize>,
    /// Plan for one of so many processes, as mpirun or srun start them
    #[arg(long, conflicts_with_all = ["model", "context_length", "nodes", "gpus", "gpu", "network_gbit", "gpu_mtbf_hours"])]
    processes: Option<NonZeroUsize>,
    /// Machines of the cluster [default: 1]
    #[arg(long)]
    nodes: Option<usize>,
    /// GPUs of each machine [default: 8]
    #[arg(long)]
    gpus: Option<usize>,
    /// Their kind [default: h100]
    #[arg(long, value_name = "KIND")]
    gpu: Option<String>,
    /// The network of each GPU in Gbit/s, where it is not the usual one
    #[arg(long, value_name = "GBIT")]
    network_gbit: Option<f64>,
    /// The mean time between failures of one GPU: plans how often to save
    #[arg(long, value_name = "HOURS")]
    gpu_mtbf_hours: Option<f64>,
    /// Say for every model of the catalogue what is the smallest cluster that fine-tunes it
    #[arg(long, conflicts_with_all = ["run_file", "model", "context_length", "nodes", "gpus", "network_gbit", "gpu_mtbf_hours", "processes"])]
    catalogue: bool,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

impl PlanArguments {
    /// Plans, and prints the plan.
    pub fn run(self) -> Result<(), Failure> {
        if self.catalogue {
            let gpu = find_gpu(self.gpu.as_deref().unwrap_or(USUAL_GPU))?;
            return catalogue::show(gpu, self.json);
        }
        if self.is_of_a_cluster() { self.plan_cluster() } else { self.plan_machine() }
    }

    fn is_of_a_cluster(&self) -> bool {
        self.model.is_some()
            || self.context_length.is_some()
            || self.nodes.is_some()
            || self.gpus.is_some()
            || self.gpu.is_some()
            || self.network_gbit.is_some()
            || self.gpu_mtbf_hours.is_some()
    }

    fn plan_cluster(self) -> Result<(), Failure> {
        let gpu = find_gpu(self.gpu.as_deref().unwrap_or(USUAL_GPU))?;
        let cluster =
            Cluster::new(self.nodes.unwrap_or(1), self.gpus.unwrap_or(USUAL_GPUS), gpu, self.network_gbit)?;
        let hours = self.gpu_mtbf_hours;
        let plan = ClusterPlan::new(&self.workload()?, cluster)?;
        let failures = hours.map(|hours| plan.failures(hours)).transpose()?;
        cluster::show(&plan, failures.as_ref(), self.json)
    }

    fn workload(&self) -> Result<Workload, Failure> {
        let length = self.context_length.map(|tokens| format!("context_length={tokens}"));
        let keys = self.overrides.iter().cloned().chain(length);
        match (&self.model, &self.run_file) {
            (Some(model), first) => {
                let keys: Vec<String> = first.iter().cloned().chain(keys).collect();
                Ok(Workload::of_model(model, &keys)?)
            }
            (None, run_file) => {
                let run_file = RunFile::new(run_file.clone().unwrap_or_default(), keys.collect());
                Ok(Workload::of_run(run_file.load()?)?)
            }
        }
    }

    fn plan_machine(self) -> Result<(), Failure> {
        let run_file = RunFile::new(self.run_file.unwrap_or_default(), self.overrides);
        let plan = run_file.prepare_over(self.processes)?.plan;
        if self.json {
            return print_json(&plan_json(&plan));
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
        let mut labels = vec![
            ("Model", format!("{}, {}", settings.model, counted(plan.parameters, "parameter", "parameters"))),
            ("Memory", table([Align::Left, Align::Right], &rows)),
        ];
        let on_host: Vec<_> =
            plan.host_memory_parts().into_iter().map(|(part, size)| [part.to_owned(), bytes(size)]).collect();
        if !on_host.is_empty() {
            labels.push(("Host memory", table([Align::Left, Align::Right], &on_host)));
        }
        labels.extend([("Batches", batches), ("Time", time_line(&plan))]);
        print(&labelled(Paint::of_stdout(), &labels))
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Train(error) => Self::Train(error),
            error => Self::Argument(error.to_string()),
        }
    }
}
