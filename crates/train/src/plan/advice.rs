//! What is allowed but rarely meant: told before a run costs anything. The amounts of data are those that the service's
//! guide named.

use std::fmt;

use tessera_data::Task;

use crate::error::TrainError;
use crate::observe::Observer;
use crate::plan::Prepared;
use crate::state;

/// Tokens below which further pre-training has little to learn from.
const PRETRAINING_TOKENS: u64 = 1_500_000;
/// The share of the examples from which on cut or dropped ones deserve a word.
const NOTABLE_SHARE: f64 = 0.01;
/// Batches below which a learning rate can hardly rise and fall.
const FEW_BATCHES: u64 = 10;

/// One thing that the user may want to change before the run.
#[derive(Debug, Clone, PartialEq)]
pub enum Advice {
    /// The data has fewer tokens than its task usually needs.
    LittleData {
        /// What the data is for.
        task: Task,
        /// Tokens of the training data.
        tokens: u64,
        /// Tokens from which on a run is worth while.
        wanted: u64,
    },
    /// Many examples lose tokens or are not used at all.
    ShortContext {
        /// Examples that are cut.
        truncated: usize,
        /// Examples without a loss token in what is left of them.
        dropped: usize,
        /// All examples.
        examples: usize,
        /// Tokens of the longest.
        longest: u64,
        /// Where they are cut.
        context_length: usize,
    },
    /// The learning rate reaches its peak in the last batch or never.
    WarmupFillsRun {
        /// Batches of the warm-up.
        warmup: u64,
        /// Batches of the run.
        total: u64,
    },
    /// Nothing tells the model where an answer ends.
    NoEndToken,
    /// The tokenizer brings no chat template, so ChatML frames the conversations.
    DefaultTemplate,
    /// The run is over before the learning rate has done much.
    FewBatches {
        /// Batches of the run.
        total: u64,
    },
}

/// Everything about a run that is worth a second thought.
pub fn advise(prepared: &Prepared) -> Vec<Advice> {
    let (plan, summary) = (&prepared.plan, &prepared.train_summary);
    let task = plan.settings.task();
    let context_length = plan.settings.context_length;
    let wanted = match task {
        Task::ChatCompletion | Task::InstructionFinetune => context_length as u64,
        Task::ContinuedPretrain => PRETRAINING_TOKENS,
    };
    let (warmup, total) = (plan.schedule.warmup_batches(), plan.length.total_batches);
    let shortened = summary.truncated + summary.dropped_no_loss_token;
    let many_shortened = shortened as f64 > NOTABLE_SHARE * summary.examples as f64;
    let mut advice = Vec::new();
    if summary.tokens < wanted {
        advice.push(Advice::LittleData { task, tokens: summary.tokens, wanted });
    }
    if many_shortened {
        advice.push(Advice::ShortContext {
            truncated: summary.truncated,
            dropped: summary.dropped_no_loss_token,
            examples: summary.examples,
            longest: summary.lengths.longest,
            context_length,
        });
    }
    if warmup > 0 && warmup >= total {
        advice.push(Advice::WarmupFillsRun { warmup, total });
    } else if total < FEW_BATCHES {
        advice.push(Advice::FewBatches { total });
    }
    if prepared.tokenizer.eos().is_none() {
        advice.push(Advice::NoEndToken);
    }
    if task == Task::ChatCompletion && prepared.tokenizer.uses_chatml_fallback() {
        advice.push(Advice::DefaultTemplate);
    }
    advice
}

impl Advice {
    /// Whether it touches every example, so that a run says it too.
    pub fn touches_every_example(&self) -> bool {
        matches!(self, Self::NoEndToken | Self::DefaultTemplate)
    }
}

impl Prepared {
    /// Reads all the weights that the run starts from, which it would do itself at its start. A run that goes on from a
    /// checkpoint starts from none.
    ///
    /// # Errors
    /// When they are missing, damaged, those of another model, or not all finite.
    pub fn check_first_weights(&self, observer: &dyn Observer) -> Result<(), TrainError> {
        if self.resumes {
            return Ok(());
        }
        state::check_values(&self.plan.settings, &self.source, &self.config, observer)
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LittleData { task, tokens, wanted } => write!(
                out,
                "the training data has {tokens} tokens; {task} usually needs at least {wanted}: add data, or expect \
                 little to change"
            ),
            Self::ShortContext { truncated, dropped, examples, longest, context_length } => write!(
                out,
                "{truncated} of {examples} examples are cut at context_length {context_length} and {dropped} more have \
                 nothing to learn before it; the longest has {longest} tokens: raise context_length if the model allows, \
                 or shorten them"
            ),
            Self::WarmupFillsRun { warmup, total } => write!(
                out,
                "the warm-up takes {warmup} batches and the run has {total}, so the learning rate only rises: lower \
                 scheduler.t_warmup or train longer"
            ),
            Self::FewBatches { total } => write!(
                out,
                "the run has only {total} {batches}: a longer training_duration or a smaller global_train_batch_size \
                 gives the learning rate time to rise and fall",
                batches = if *total == 1 { "batch" } else { "batches" }
            ),
            Self::DefaultTemplate => write!(
                out,
                "the tokenizer brings no chat template: conversations are framed as ChatML (<|im_start|>role … <|im_end|>), and \
                 the export carries that template; give the model's folder a chat_template.jinja for another"
            ),
            Self::NoEndToken => write!(
                out,
                "the tokenizer names no end-of-sequence token, so examples end without one and the model does not learn \
                 to stop: set eos_token in tokenizer_config.json"
            ),
        }
    }
}
