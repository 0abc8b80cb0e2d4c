//! `tessera generate`: what a model says.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;
use tessera_data::Task;
use tessera_train::generate::{Generator, GeneratorSettings, NextToken};
use tessera_train::observe::Observer;
use tessera_train::spec::GenerationSpec;

use crate::failure::Failure;
use crate::output::{HEADING, Paint, print, print_json};
use crate::text::{Align, harmless, table};
use crate::watch::Watcher;

/// Answers prompts with a model or a checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tessera generate runs/my-run/huggingface/ba30 --prompt 'Who are you?' --greedy
  tessera generate HuggingFaceTB/SmolLM2-135M-Instruct --weights runs/my-run/checkpoints/ep0-ba10 --prompt Hello")]
pub struct GenerateArguments {
    /// A hub id, a model folder, or a .gguf file, the last two also by url
    model: String,
    /// What to answer; give it several times for several answers
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// A checkpoint whose weights replace the model's: ep#-ba#, latest-sharded-rank0.symlink, or a Composer .pt, also by url
    #[arg(long, value_name = "CHECKPOINT")]
    weights: Option<PathBuf>,
    /// What a prompt is: a user message in the chat template, or text to go on from [default: a message if the model brings
    /// a template]
    #[arg(long, value_enum, ignore_case = true)]
    task: Option<TaskArgument>,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = GenerationSpec::default().max_new_tokens, value_parser = at_least_one)]
    max_new_tokens: usize,
    /// Take the likeliest token each time, instead of drawing one
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    greedy: bool,
    /// What logits are divided by before a draw
    #[arg(long, default_value_t = GenerationSpec::default().temperature, value_parser = above_zero)]
    temperature: f64,
    /// How many of the likeliest tokens a draw considers
    #[arg(long, default_value_t = GenerationSpec::default().top_k, value_parser = at_least_one)]
    top_k: usize,
    /// The probability that the considered tokens make up
    #[arg(long, default_value_t = GenerationSpec::default().top_p, value_parser = share)]
    top_p: f64,
    /// The seed of the draws
    #[arg(long, default_value_t = 17)]
    seed: u64,
    /// Tokens that a prompt and its answer may have together [default: what the model was made for, at most 8192]
    #[arg(long)]
    context_length: Option<usize>,
    /// Instead of an answer, the N likeliest next tokens with their logits
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    top_logits: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// The tasks, spelt as in run files.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum TaskArgument {
    ChatCompletion,
    InstructionFinetune,
    ContinuedPretrain,
}

impl From<TaskArgument> for Task {
    fn from(argument: TaskArgument) -> Self {
        match argument {
            TaskArgument::ChatCompletion => Self::ChatCompletion,
            TaskArgument::InstructionFinetune => Self::InstructionFinetune,
            TaskArgument::ContinuedPretrain => Self::ContinuedPretrain,
        }
    }
}

/// A prompt and what may follow it.
#[derive(Debug, Serialize)]
struct Ranked<'a> {
    prompt: &'a str,
    next_tokens: Vec<NextToken>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or("expected a whole number of at least 1".to_owned())
}

fn above_zero(text: &str) -> Result<f64, String> {
    let fits = |number: &f64| number.is_finite() && *number > 0.0;
    text.parse().ok().filter(fits).ok_or("expected a number above 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let fits = |number: &f64| *number > 0.0 && *number <= 1.0;
    text.parse().ok().filter(fits).ok_or("expected a number above 0 and at most 1".to_owned())
}

impl GenerateArguments {
    /// Prints the answers, or the logits.
    pub fn run(self) -> Result<(), Failure> {
        let watcher = Arc::new(Watcher::default());
        let observer: Arc<dyn Observer> = watcher.clone();
        let settings = GeneratorSettings {
            model: self.model.clone(),
            weights: self.weights.clone(),
            task: self.task.map(Task::from),
            context_length: self.context_length,
        };
        let generator = Generator::load(&settings, &observer);
        watcher.clear();
        match self.top_logits {
            Some(most) => self.print_logits(generator?, most),
            None => self.print_answers(generator?),
        }
    }

    fn print_answers(&self, mut generator: Generator) -> Result<(), Failure> {
        let spec = GenerationSpec {
            do_sample: !self.greedy,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
        };
        let answers = generator.answers(&self.prompt, &spec, self.seed)?;
        if self.json {
            let answers: Vec<_> = answers
                .iter()
                .map(|answer| json!({"prompt": answer.prompt, "answer": answer.text}))
                .collect();
            return print_json(&answers);
        }
        if let [answer] = answers.as_slice() {
            return print(&(harmless(&answer.text) + "\n"));
        }
        let paint = Paint::of_stdout();
        let shown = |answer: &tessera_train::observe::Answer| {
            let prompt = paint.paint(HEADING, &format!("> {}", harmless(&answer.prompt)));
            format!("{prompt}\n{}\n", harmless(&answer.text))
        };
        print(&answers.iter().map(shown).collect::<Vec<_>>().join("\n"))
    }

    fn print_logits(&self, mut generator: Generator, most: usize) -> Result<(), Failure> {
        let mut found = Vec::with_capacity(self.prompt.len());
        for prompt in &self.prompt {
            found.push(Ranked { prompt, next_tokens: generator.next_tokens(prompt, most)? });
        }
        if self.json {
            return print_json(&found);
        }
        let paint = Paint::of_stdout();
        let shown = found.iter().map(|Ranked { prompt, next_tokens }| {
            let mut rows = vec![["LOGIT", "ID", "TEXT"].map(str::to_owned)];
            rows.extend(next_tokens.iter().map(|token| {
                [format!("{:.6}", token.logit), token.id.to_string(), format!("{:?}", token.text)]
            }));
            let heading = paint.paint(HEADING, &format!("> {}", harmless(prompt)));
            format!("{heading}\n{}", table([Align::Right, Align::Right, Align::Left], &rows))
        });
        print(&shown.collect::<Vec<_>>().join("\n"))
    }
}
