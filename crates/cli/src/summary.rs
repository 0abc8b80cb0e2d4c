//! What a run will be, in words: shown by `validate` and `plan`, and before training.

use std::time::Duration;

use serde_json::{Value, json};
use tessera_data::{SourceSummary, Summary};
use tessera_train::plan::RunPlan;
use tessera_train::spec::{DataPath, MixedSource};

use crate::output::{HEADING, Paint};
use crate::text::{bytes, count, counted, duration, percent, rate};

/// Columns that labels take.
const LABEL: usize = 18;

/// Labels in bold, values beside them, further lines of a value below its first.
pub fn labelled(paint: Paint, rows: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (label, value) in rows {
        let mut label = *label;
        for line in value.lines() {
            let padding = " ".repeat(LABEL.saturating_sub(label.chars().count()));
            text.push_str(&format!("{}{padding}{line}\n", paint.paint(HEADING, label)));
            label = "";
        }
    }
    text
}

/// What becomes of a data set's examples.
pub fn data_lines(path: &DataPath, summary: &Summary) -> String {
    let mut text = format!(
        "{path}: {}, {}, {}",
        counted(summary.examples, "example", "examples"),
        counted(summary.tokens, "token", "tokens"),
        counted(summary.loss_tokens, "loss token", "loss tokens")
    );
    let length = summary.context_length;
    let fates = [
        (summary.dropped_empty, "dropped: a text in it is empty".to_owned()),
        (
            summary.dropped_no_loss_token,
            format!("dropped: no loss token in the first {} tokens", count(length)),
        ),
        (
            summary.truncated,
            format!("cut to {} tokens, {} lost", count(length), count(summary.truncated_tokens)),
        ),
    ];
    if let DataPath::Mix(sources) = path {
        let uses = |(source, account): (&MixedSource, &SourceSummary)| {
            let examples = counted(account.kept, "example", "examples");
            let times = account.used as f64 / account.kept.max(1) as f64;
            let again =
                if account.used > account.kept { format!(", each {times:.2} times") } else { String::new() };
            format!("\n{}: {examples}{again}", source.path)
        };
        text.extend(sources.iter().zip(&summary.sources).map(uses));
    }
    for (examples, fate) in fates.into_iter().filter(|(examples, _)| *examples > 0) {
        text.push_str(&format!("\n{} {fate}", count(examples)));
    }
    text
}

fn rows_line(summary: &Summary) -> String {
    format!(
        "{} of {} tokens, {} full",
        counted(summary.rows, "row", "rows"),
        count(summary.context_length),
        percent(summary.packing_efficiency())
    )
}

/// What the run does, in the words of its schedule.
fn run_line(plan: &RunPlan) -> String {
    let settings = &plan.settings;
    let rows = settings.global_train_batch_size;
    format!(
        "{}: {} of {}, {} at a time\nlearning rate {} after {} of warm-up",
        settings.training_duration,
        counted(plan.length.total_batches, "batch", "batches"),
        counted(rows, "row", "rows"),
        counted(settings.microbatch_rows(), "row", "rows"),
        rate(settings.learning_rate),
        counted(plan.schedule.warmup_batches(), "batch", "batches"),
    )
}

/// The time of a run at the speed that may be expected, for people.
pub fn time_line(plan: &RunPlan) -> String {
    let (Some(time), Some(flops_per_second)) = (plan.estimated_time(), plan.expected_flops_per_second())
    else {
        return "unknown: nothing is known of the speed of this GPU".to_owned();
    };
    let gigaflops = count((flops_per_second / 1e9).round() as u64);
    let about = if time < Duration::from_secs(1) { "" } else { "about " };
    format!("{about}{} for the batches (an estimate, at {gigaflops} GFLOP/s)", duration(time))
}

/// Everything about a run in a few lines.
pub fn run_summary(paint: Paint, plan: &RunPlan, train: &Summary, eval: Option<&Summary>) -> String {
    let settings = &plan.settings;
    let mut rows = vec![
        ("Model", format!("{}, {}", settings.model, counted(plan.parameters, "parameter", "parameters"))),
        ("Task", settings.task_type.to_string()),
        ("Training data", data_lines(&settings.train_data_path, train)),
        ("Packed", rows_line(train)),
    ];
    if let Some(eval) = eval {
        let lines = match (&settings.eval_data_path, settings.eval_split) {
            (Some(path), _) => data_lines(path, eval),
            (None, share) => {
                let share = percent(share.unwrap_or_default());
                format!(
                    "{share} of the training data, set aside\n{}",
                    data_lines(&settings.train_data_path, eval)
                )
            }
        };
        rows.push(("Evaluation data", lines));
    }
    rows.extend([
        ("Run", run_line(plan)),
        ("Memory", bytes(plan.memory_bytes())),
        ("Time", time_line(plan)),
        ("Run folder", settings.run_folder().display().to_string()),
    ]);
    labelled(paint, &rows)
}

/// A data set's account for programs.
pub fn data_json(summary: &Summary) -> Value {
    let buckets = summary.lengths.buckets();
    let lengths: Vec<_> = buckets
        .map(|(shortest, longest, examples)| json!({"from": shortest, "to": longest, "examples": examples}))
        .collect();
    json!({
        "examples": summary.examples,
        "dropped_empty": summary.dropped_empty,
        "dropped_no_loss_token": summary.dropped_no_loss_token,
        "truncated": summary.truncated,
        "truncated_tokens": summary.truncated_tokens,
        "tokens": summary.tokens,
        "loss_tokens": summary.loss_tokens,
        "rows": summary.rows,
        "context_length": summary.context_length,
        "packing_efficiency": summary.packing_efficiency(),
        "longest": summary.lengths.longest,
        "lengths": lengths,
    })
}

/// A plan for programs.
pub fn plan_json(plan: &RunPlan) -> Value {
    let named = |parts: Vec<(&str, usize)>| -> serde_json::Map<_, _> {
        parts.into_iter().map(|(part, bytes)| (part.replace(' ', "_"), bytes.into())).collect()
    };
    json!({
        "settings": plan.settings,
        "run_folder": plan.settings.run_folder(),
        "parameters": plan.parameters,
        "batches": plan.length.total_batches,
        "batches_per_epoch": plan.length.epoch.batches(),
        "warmup_batches": plan.schedule.warmup_batches(),
        "memory_bytes": named(plan.memory_parts()),
        "memory_total_bytes": plan.memory_bytes(),
        "host_memory_bytes": named(plan.host_memory_parts()),
        "flops_per_epoch": plan.epoch_flops,
        "flops_per_second": plan.expected_flops_per_second(),
        "estimated_seconds": plan.estimated_time().map(|time| time.as_secs_f64()),
    })
}
