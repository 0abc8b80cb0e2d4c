//! The plan of a cluster as it is printed.

use serde_json::json;
use tessera_train::TrainError;
use tessera_train::plan::cluster::{ClusterPlan, Failures, Interval, Split};

use crate::failure::Failure;
use crate::output::{BAD, GOOD, Paint, print, print_json};
use crate::summary::labelled;
use crate::text::{Align, bytes, count, counted, duration, percent, table, value};

/// Prints a plan, with what failures make of it.
pub fn show(plan: &ClusterPlan, failures: Option<&Failures>, as_json: bool) -> Result<(), Failure> {
    let failing =
        failures.map(|failures| Ok((failures, failures.best_interval().map_err(TrainError::from)?)));
    let failing = failing.transpose().map_err(Failure::Train)?;
    if as_json {
        let mut json = serde_json::to_value(plan)?;
        json["memory_total_bytes"] = plan.memory.total_bytes().into();
        if let Some((failures, interval)) = &failing {
            json["failures"] = json!({"model": failures, "interval": interval});
        }
        return print_json(&json);
    }
    let paint = Paint::of_stdout();
    let mut rows = vec![
        ("Model", model(plan)),
        ("Cluster", cluster(plan)),
        ("Batch", batch(plan)),
        ("Memory of a GPU", memory(plan, paint)),
        ("Host and disk", host(plan)),
        ("A GPU sends", links(plan)),
        ("Step, estimated", time(plan)),
    ];
    if let Some((failures, interval)) = &failing {
        rows.push(("Failures", failing_text(failures, interval)));
    }
    rows.push(("Assumed", plan.assumptions.join("\n")));
    print(&labelled(paint, &rows))
}

fn model(plan: &ClusterPlan) -> String {
    let mut text = format!("{}, {} parameters", plan.model, count(plan.parameters));
    if plan.active_parameters != plan.parameters {
        text.push_str(&format!(", of which a token uses {}", count(plan.active_parameters)));
    }
    text
}

fn cluster(plan: &ClusterPlan) -> String {
    let (cluster, parallel) = (&plan.cluster, plan.parallel);
    format!(
        "{} of {} {}\nshard {}, replicate {}, context {}",
        counted(cluster.nodes, "node", "nodes"),
        cluster.gpus_per_node,
        cluster.gpu.name,
        parallel.shard,
        parallel.replicate,
        parallel.context
    )
}

fn batch(plan: &ClusterPlan) -> String {
    let rows = plan.rows;
    let most = match rows.largest_micro_batch {
        Some(most) => format!("the most that fit: {}", count(most)),
        None => "not even one fits".to_owned(),
    };
    let mut text = format!(
        "{} of {} tokens; {} of {} on each rank ({most})",
        counted(rows.global_batch, "row", "rows"),
        count(plan.context_length),
        counted(rows.micro_batches, "micro-batch", "micro-batches"),
        counted(rows.micro_batch, "row", "rows"),
    );
    let idle = plan.parallel.data().saturating_sub(rows.global_batch);
    if idle > 0 {
        text.push_str(&format!(
            "\n{} of {} ranks that take rows have none: raise global_train_batch_size",
            count(idle),
            count(plan.parallel.data())
        ));
    }
    text
}

fn memory(plan: &ClusterPlan, paint: Paint) -> String {
    let parts = plan.memory.parts().into_iter().filter(|(_, size)| *size > 0);
    let mut rows: Vec<_> = parts.map(|(part, size)| [part.to_owned(), bytes(size)]).collect();
    rows.push(["in all".to_owned(), bytes(plan.memory.total_bytes())]);
    rows.push(["usable".to_owned(), bytes(plan.usable_bytes)]);
    let verdict = match plan.fits {
        true => paint.paint(GOOD, "fits"),
        false => paint.paint(
            BAD,
            "does not fit: take more GPUs, offload: optimizer, parallel.context, a shorter context_length or a smaller micro-batch",
        ),
    };
    table([Align::Left, Align::Right], &rows) + &verdict
}

fn host(plan: &ClusterPlan) -> String {
    let saving = &plan.saving;
    let moments = plan.memory.host_moment_bytes;
    let pinned = saving.pinned_bytes + moments;
    let node = pinned * plan.cluster.gpus_per_node as u64;
    let of_it = if moments > 0 {
        format!(" ({} of it the optimizer's moments)", bytes(moments))
    } else {
        String::new()
    };
    format!(
        "{} pinned for each GPU{of_it}, {} a node\ncheckpoint {}, export {}\nsaving takes {}, of which the training stands for {}",
        bytes(pinned),
        bytes(node),
        bytes(saving.checkpoint_bytes),
        bytes(saving.export_bytes),
        seconds(saving.save_seconds),
        seconds(saving.stall_seconds)
    )
}

fn links(plan: &ClusterPlan) -> String {
    let links = &plan.links;
    let row = |name, split: Split| [name, bytes(split.nvlink_bytes), bytes(split.network_bytes)];
    let mut rows = vec![["in a step".to_owned(), "NVLink".to_owned(), "network".to_owned()]];
    let reduced = plan.reduce_dtype;
    let named = [
        ("weights, bf16".to_owned(), links.gathered),
        (format!("gradients, {reduced}"), links.reduced),
        (format!("sums of replicas, {reduced}"), links.replicated),
        ("sequences, bf16".to_owned(), links.exchanged),
        ("in all".to_owned(), links.total()),
    ];
    rows.extend(
        named.into_iter().filter(|(_, split)| split.bytes() > 0).map(|(name, split)| row(name, split)),
    );
    table([Align::Left, Align::Right, Align::Right], &rows)
}

fn time(plan: &ClusterPlan) -> String {
    let time = &plan.time;
    let parts = [
        ("compute", time.compute_seconds),
        ("weights and gradients on the links", time.transfer_seconds),
        ("sums of replicas", time.replication_seconds),
        ("exchanges of sequences", time.exchange_seconds),
        ("update", time.optimizer_seconds),
        ("in all, what is hidden left out", time.step_seconds),
    ];
    let rows: Vec<_> = parts
        .into_iter()
        .filter(|(_, time)| *time > 0.0)
        .map(|(part, time)| [part.to_owned(), seconds(time)])
        .collect();
    format!(
        "{}{} TFLOP needed, {} done\n{} tokens/s, {} a GPU\nMFU {} (attention counted over its causal half; {} over the whole square)",
        table([Align::Left, Align::Right], &rows),
        count((time.model_flops / 1e12).round() as u64),
        count((time.hardware_flops / 1e12).round() as u64),
        count(time.tokens_per_second.round() as u64),
        count(time.tokens_per_second_per_gpu.round() as u64),
        percent(time.mfu),
        percent(time.mfu_full_attention)
    )
}

fn failing_text(failures: &Failures, interval: &Interval) -> String {
    let share = |share: f64| format!("{} %", value((share * 1e5).round() / 1e3));
    let span = |seconds: f64| duration(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default());
    format!(
        "one every {} on average, {:.3} restarts a day\nsave every {} ({}): it loses {} of the time ({} in a simulation), \
         the least\nsaving twice as often loses {}, half as often {}",
        span(failures.mean_seconds),
        interval.restarts_per_day,
        span(interval.seconds),
        counted(interval.batches, "batch", "batches"),
        share(interval.expected_loss),
        share(interval.simulated_loss),
        share(failures.expected_loss(interval.seconds / 2.0)),
        share(failures.expected_loss(interval.seconds * 2.0))
    )
}

/// Seconds with as many digits as an estimate has.
fn seconds(time: f64) -> String {
    match time {
        0.0 => "0 s".to_owned(),
        60.0.. => duration(std::time::Duration::try_from_secs_f64(time).unwrap_or_default()),
        _ => format!("{} s", value((time * 1e4).round() / 1e4)),
    }
}
