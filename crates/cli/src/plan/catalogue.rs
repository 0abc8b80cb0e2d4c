//! `tessera plan --catalogue`: the smallest clusters, as a table for a README.

use serde_json::json;
use tessera_train::plan::cluster::{Gpu, Need, SmallestCluster, smallest_clusters};

use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::text::{bytes, count};

/// Prints the smallest cluster of `gpu` for every model of the catalogue, in Markdown.
pub fn show(gpu: &Gpu, as_json: bool) -> Result<(), Failure> {
    let rows = smallest_clusters(gpu)?;
    if as_json {
        return print_json(&json!({"gpu": gpu, "models": rows}));
    }
    let mut text = format!(
        "| model | parameters (billion) | at 8,192 tokens, {gpu} | at its longest, {gpu} |\n|---|---:|---|---|\n",
        gpu = gpu.name
    );
    for row in &rows {
        let parameters = row.parameters as f64 / 1e9;
        text.push_str(&format!(
            "| {} | {parameters:.2} | {} | {} |\n",
            names(row),
            need(&row.usual),
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

fn need(need: &Need) -> String {
    let tokens = count(need.context_length);
    let Some(smallest) = need.cluster else { return format!("{tokens} tokens: not with 4,096 GPUs") };
    let gpus = match smallest.gpus {
        gpus @ 0..=8 => count(gpus),
        gpus => format!("{} ({} nodes)", count(gpus), gpus / 8),
    };
    let shared = match smallest.context {
        1 => String::new(),
        context => format!(", context {context}"),
    };
    format!("{gpus}: {} each{shared} ({tokens} tokens)", bytes(smallest.memory_bytes))
}
