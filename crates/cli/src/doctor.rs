//! `tessera doctor`: what this build finds on this machine, and whether it computes right.

use clap::Args;
use tessera_train::doctor::{self, Cuda, Found, GpuReport, Report, Verdict};

use crate::failure::Failure;
use crate::output::{BAD, GOOD, Paint, print};
use crate::summary::labelled;
use crate::text::{bytes, counted};

/// Says what this build finds on this machine, and tries every device with a tiny training step
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with exit code 3 where a device that is there cannot be used or computes wrong."
)]
pub struct DoctorArguments {}

impl DoctorArguments {
    /// Prints the report.
    pub fn run(self) -> Result<(), Failure> {
        let report = doctor::examine();
        print(&shown(&report, Paint::of_stdout()))?;
        if report.is_well() { Ok(()) } else { Err(Failure::Unwell) }
    }
}

fn shown(report: &Report, paint: Paint) -> String {
    let kernels = if cfg!(feature = "cuda") { "with CUDA kernels" } else { "without CUDA kernels" };
    let mpi = if cfg!(feature = "mpi") { ", with MPI" } else { "" };
    let mut rows = vec![
        ("Build", format!("tessera {}, {kernels}{mpi}", env!("CARGO_PKG_VERSION"))),
        (
            "Processors",
            format!(
                "{}, {} of memory\ntwo steps: {}",
                counted(report.threads, "thread", "threads"),
                bytes(report.memory),
                verdict(&report.steps, paint)
            ),
        ),
    ];
    match &report.cuda {
        Found::None(reason) => rows.push(("GPUs", format!("none: {reason}"))),
        Found::Broken(reason) => {
            rows.push(("GPUs", format!("{} {reason}", paint.paint(BAD, "cannot be used:"))));
        }
        Found::Here(cuda) => rows.extend(cuda_rows(cuda, paint)),
    }
    labelled(paint, &rows)
}

fn cuda_rows(cuda: &Cuda, paint: Paint) -> Vec<(&'static str, String)> {
    let version = |version: Option<(i32, i32)>| {
        version
            .map_or_else(|| "an unknown version".to_owned(), |(major, minor)| format!("CUDA {major}.{minor}"))
    };
    let nccl = match &cuda.nccl {
        Ok((major, minor, patch)) => format!("NCCL {major}.{minor}.{patch}"),
        Err(reason) => format!("no NCCL: {reason}"),
    };
    let libraries =
        format!("driver of {}, kernels compiled by {}\n{nccl}", version(cuda.driver), version(cuda.toolkit));
    let gpus = cuda.gpus.iter().enumerate().map(|(ordinal, gpu)| match gpu {
        Ok(gpu) => format!("cuda:{ordinal}  {}", gpu_lines(gpu, paint)),
        Err(reason) => format!("cuda:{ordinal}  {} {reason}", paint.paint(BAD, "cannot be used:")),
    });
    vec![("CUDA", libraries), ("GPUs", gpus.collect::<Vec<_>>().join("\n"))]
}

fn gpu_lines(gpu: &GpuReport, paint: Paint) -> String {
    let ((major, minor), (free, total)) = (gpu.capability, gpu.memory);
    let head =
        format!("{}, compute capability {major}.{minor}, {} of {} free", gpu.name, bytes(free), bytes(total));
    let steps =
        gpu.steps.iter().map(|(name, steps)| format!("\ntwo steps in {name}: {}", verdict(steps, paint)));
    [head].into_iter().chain(steps).collect()
}

fn verdict(verdict: &Verdict, paint: Paint) -> String {
    match verdict {
        Verdict::Right(error) => format!("{}, losses within {error:.1e}", paint.paint(GOOD, "right")),
        Verdict::Wrong(error, allowed) => {
            format!("{}: losses are off by {error:.1e}, allowed is {allowed:.0e}", paint.paint(BAD, "WRONG"))
        }
        Verdict::Failed(reason) => format!("{}: {reason}", paint.paint(BAD, "failed")),
    }
}
