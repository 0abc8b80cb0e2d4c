//! `tessera plan --catalogue`: the smallest clusters, as a table for a README.

use serde_json::json;
use tessera_train::plan::DEFAULT_CONTEXT_LENGTH;
use tessera_train::plan::cluster::{Gpu, Need, SmallestCluster, smallest_clusters};

use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::text::{bytes, count, counted};

/// Where there is nothing to say.
const NONE: &str = "–";

/// Prints the smallest cluster of `gpu` for every model of the catalogue, in Markdown.
pub fn show(gpu: &Gpu, as_json: bool) -> Result<(), Failure> {
    let rows = smallest_clusters(gpu)?;
    if as_json {
        return print_json(&json!({"gpu": gpu, "models": rows}));
    }
    let mut text = format!(
        "| models | parameters, billion | {gpu} at 8,192 tokens | longest context | {gpu} at the longest |\n\
         |---|---:|---|---:|---|\n",
        gpu = gpu.name
    );
    for row in &rows {
        let too_short = row.usual.context_length < DEFAULT_CONTEXT_LENGTH;
        text.push_str(&format!(
            "| {} | {:.2} | {} | {} | {} |\n",
            names(row),
            row.parameters as f64 / 1e9,
            if too_short { NONE.to_owned() } else { need(&row.usual) },
            count(row.maximum.context_length),
            need(&row.maximum)
        ));
    }
    print(&text)
}

/// The models' names without their owners.
fn names(row: &SmallestCluster) -> String {
    let bare = row.models.iter().map(|name| name.rsplit('/').next().unwrap_or(name));
    bare.collect::<Vec<_>>().join(", ")
}

/// GPUs, or whole nodes of eight, and the memory of each.
fn need(need: &Need) -> String {
    let Some(smallest) = need.cluster else { return NONE.to_owned() };
    let gpus = match smallest.gpus {
        gpus @ 0..=8 => counted(gpus, "GPU", "GPUs"),
        gpus => format!("{} nodes", count(gpus / 8)),
    };
    let shared = match smallest.context {
        1 => String::new(),
        context => format!(", context {context}"),
    };
    format!("{gpus}{shared}, {}", bytes(smallest.memory_bytes))
}
