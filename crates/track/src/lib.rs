//! Where events and metrics go: the files of the run folder, the report made from them, and programs that follow a run: MLflow,
//! TensorBoard, Prometheus.
//!
//! The run folder's JSON Lines files are the only record: what a terminal, a report or a tracking server shows
//! is read from them, or is handed the same [`Record`] and [`Event`] values that were written to them. Every
//! file survives the death of its writer at any moment, and a resumed run writes what a run never interrupted
//! would have written.

mod cancel;
mod compare;
mod error;
mod events;
mod generations;
mod jsonl;
pub mod metrics;
pub mod mlflow;
pub mod prometheus;
mod report;
mod runs;
pub mod tensorboard;
mod throughput;

pub use cancel::{clear_cancel, is_cancel_requested, request_cancel};
pub use compare::{COMPARED, Comparison, DifferentSetting, compare_runs, flattened};
pub use error::TrackError;
pub use events::{Event, EventLog, EventType, FILE as EVENTS_FILE, RunStatus, read_events};
pub use generations::{Generation, GenerationsLog, read_generations};
pub use jsonl::ResumePoint;
pub use metrics::{FILE as METRICS_FILE, MetricsLine, MetricsLog, Number, Record, names, read_metrics};
pub use report::write_report;
pub use runs::{RunListing, RunSummary, StoredFolder, list_runs, read_run};
pub use throughput::{Speed, SpeedMonitor, StepWork};
