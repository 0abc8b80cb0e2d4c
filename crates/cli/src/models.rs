//! `tessera models`: the models that the fine-tuning service offered, and what each is and needs.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tessera_model::catalogue::{self, Entry, SERVICE_WITHDRAWN, ServiceStatus};
use tessera_model::config::{ModelConfig, NormKind, RopeScaling};
use tessera_train::TrainError;

use crate::failure::Failure;
use crate::output::{Paint, print, print_json};
use crate::summary::labelled;
use crate::text::{Align, bytes, count, table};

const NOTE: &str = "\
\"retired by\": the service ended on that day; it had retired models before. Here every one of them trains, as does any
folder or repository of these families.
";

/// Lists the models that the fine-tuning service offered; all of them train here.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  tessera models\n  tessera models show meta-llama/Llama-3.2-1B-Instruct"
)]
pub struct ModelsArguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(ShowArguments),
}

/// Shows a model's architecture and what a run with it needs.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera models show mistralai/Mixtral-8x7B-v0.1")]
struct ShowArguments {
    /// The model's name on the hub
    #[arg(value_name = "NAME")]
    name: String,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl ModelsArguments {
    /// Prints the list, or one model.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Some(Command::Show(arguments)) => arguments.run(),
            None if self.json => {
                let models = catalogue::all().iter().map(|entry| Ok(model_json(entry, &config(entry)?)));
                print_json(&models.collect::<Result<Vec<_>, Failure>>()?)
            }
            None => {
                let heading = ["NAME", "FAMILY", "PARAMETERS", "ACTIVE", "CONTEXT", "STATUS", "LICENCE"];
                let mut rows = vec![heading.map(str::to_owned)];
                for entry in catalogue::all() {
                    rows.push(row(entry, &config(entry)?));
                }
                use Align::{Left, Right};
                let table = table([Left, Left, Right, Right, Right, Left, Left], &rows);
                print(&format!("{table}\n{NOTE}"))
            }
        }
    }
}

impl ShowArguments {
    fn run(self) -> Result<(), Failure> {
        let entry = catalogue::find(&self.name).map_err(|error| Failure::Argument(error.to_string()))?;
        let config = config(entry)?;
        if self.json { print_json(&shown_json(entry, &config)?) } else { print(&shown(entry, &config)) }
    }
}

fn config(entry: &Entry) -> Result<ModelConfig, Failure> {
    Ok(entry.config().map_err(TrainError::from)?)
}

fn row(entry: &Entry, config: &ModelConfig) -> [String; 7] {
    let status = match entry.service {
        ServiceStatus::Withdrawn => format!("retired by {SERVICE_WITHDRAWN}"),
        ServiceStatus::NotListed => "never listed".to_owned(),
    };
    [
        entry.name.to_owned(),
        config.family.to_string(),
        count(config.parameter_count()),
        count(config.active_parameter_count()),
        count(config.max_position_embeddings as u64),
        status,
        entry.series.licence.to_owned(),
    ]
}

/// Everything about a model in a few lines.
fn shown(entry: &Entry, config: &ModelConfig) -> String {
    let kind = if entry.chat { "tuned to answer" } else { "continues text" };
    let template =
        if entry.chat { entry.series.template } else { "none: chat data needs a tuned model's tokenizer" };
    let service = match entry.service {
        ServiceStatus::Withdrawn => {
            format!("retired by {SERVICE_WITHDRAWN}, the day on which the service ended")
        }
        ServiceStatus::NotListed => "not in the service's published lists".to_owned(),
    };
    let needs = format!(
        "{} of files to fetch\n{} for weights, gradients and AdamW's moments in fp32, over all devices\n\
         what tokens take comes on top: tessera plan",
        bytes(config.stored_bytes()),
        bytes(config.training_state_bytes()),
    );
    let rows = [
        ("Model", format!("{}\n{}, {kind}", entry.name, entry.series.name)),
        ("Parameters", parameters(config)),
        ("Architecture", architecture(config)),
        ("Maximum context", format!("{} tokens", count(config.max_position_embeddings as u64))),
        ("Needs", needs),
        ("Tokenizer", entry.series.tokenizer.to_owned()),
        ("Chat template", template.to_owned()),
        ("Licence", entry.series.licence.to_owned()),
        ("Service", service),
        ("Run file", run_file(entry)),
    ];
    labelled(Paint::of_stdout(), &rows)
}

fn parameters(config: &ModelConfig) -> String {
    let (all, active) = (config.parameter_count(), config.active_parameter_count());
    if all == active {
        return count(all);
    }
    format!("{}, of which a token uses {}", count(all), count(active))
}

/// The blocks in words.
fn architecture(config: &ModelConfig) -> String {
    let size = |size: usize| count(size as u64);
    let norm = match config.norm {
        NormKind::RmsNorm => "RMSNorm",
        NormKind::LayerNorm => "LayerNorm without bias",
    };
    let feed_forward = match config.experts {
        None => format!("feed-forward layer of width {}", size(config.intermediate_size)),
        Some(experts) => format!(
            "{} experts of width {}, {} for each token; load-balancing loss × {}",
            experts.count,
            size(config.intermediate_size),
            experts.active,
            experts.balance_loss_coefficient
        ),
    };
    let mut lines = vec![
        format!(
            "{}: {} blocks of width {}, {norm}",
            config.family,
            config.num_hidden_layers,
            size(config.hidden_size)
        ),
        format!(
            "{} query heads and {} key and value heads of width {}",
            config.num_attention_heads, config.num_key_value_heads, config.head_dim
        ),
    ];
    lines.extend(
        config
            .sliding_window
            .map(|window| format!("a token sees the last {}, itself included", size(window))),
    );
    lines.extend(config.clip_qkv.map(|bound| format!("queries, keys and values clamped to ±{bound}")));
    let head =
        if config.tie_word_embeddings { "the embedding is also the head" } else { "a head of its own" };
    lines.extend([feed_forward, rope(config), format!("vocabulary of {}, {head}", size(config.vocab_size))]);
    lines.join("\n")
}

fn rope(config: &ModelConfig) -> String {
    let scaling = match config.rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Llama3 { factor, original_max_position_embeddings, .. } => {
            let original = count(original_max_position_embeddings as u64);
            format!(", long wavelengths stretched by {factor} after a first context of {original} (llama3)")
        }
        RopeScaling::Linear { factor } => format!(", stretched by {factor} (linear)"),
        RopeScaling::Dynamic { factor } => format!(", stretched by {factor} beyond the context (dynamic)"),
    };
    format!("rotary embedding of base {}{scaling}", count(config.rope.theta as u64))
}

/// A run file to begin with.
fn run_file(entry: &Entry) -> String {
    let task = if entry.chat { "CHAT_COMPLETION" } else { "INSTRUCTION_FINETUNE" };
    format!("model: {}\ntrain_data_path: data/train.jsonl\ntask_type: {task}", entry.name)
}

/// What the list says of a model, for programs.
fn model_json(entry: &Entry, config: &ModelConfig) -> Value {
    let (status, retired_by) = match entry.service {
        ServiceStatus::Withdrawn => ("retired", Some(SERVICE_WITHDRAWN)),
        ServiceStatus::NotListed => ("never listed", None),
    };
    json!({
        "name": entry.name,
        "series": entry.series.name,
        "family": config.family.to_string(),
        "chat": entry.chat,
        "parameters": config.parameter_count(),
        "active_parameters": config.active_parameter_count(),
        "max_context_length": config.max_position_embeddings,
        "licence": entry.series.licence,
        "status": status,
        "retired_by": retired_by,
    })
}

/// Everything about a model, for programs.
fn shown_json(entry: &Entry, config: &ModelConfig) -> Result<Value, Failure> {
    let mut json = model_json(entry, config);
    json["config"] = serde_json::from_str(entry.config_text())?;
    json["stored_bytes"] = config.stored_bytes().into();
    json["training_state_bytes"] = config.training_state_bytes().into();
    json["tokenizer"] = entry.series.tokenizer.into();
    json["chat_template"] = entry.chat.then_some(entry.series.template).into();
    json["run_file"] = run_file(entry).into();
    Ok(json)
}
