//! What a run tells whoever watches it. The run itself prints nothing.

use std::path::Path;
use std::time::Duration;

use tessera_checkpoint::huggingface::HubProgress;
use tessera_data::Summary;
use tessera_dist::Alarm;

use crate::plan::RunPlan;

/// Takes updates as they come, from any thread.
pub trait Observer: Send + Sync {
    /// One update. It must return quickly: the run waits for it.
    fn observe(&self, update: Update<'_>);
}

/// A data set of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is evaluated on.
    Eval,
}

/// Something that happened, or how far something has come.
#[derive(Clone, Copy)]
pub enum Update<'a> {
    /// A file is being fetched from the hub, a store or a workspace.
    Downloading(HubProgress<'a>),
    /// A file of the run is on its way to where runs are kept, which the run's end waits for.
    Uploading(HubProgress<'a>),
    /// All of the run is at this url.
    Uploaded(&'a str),
    /// A data set is being checked or tokenised.
    Preparing(Split, tessera_data::Progress),
    /// A data set is ready.
    Prepared(Split, &'a Summary),
    /// Every default is filled and every size known.
    Planned(&'a RunPlan),
    /// Ranks wait for one another in vain. It comes from a thread of its own, and the run will not end by itself: whoever is told
    /// must end the process.
    Stalled(&'a Alarm),
    /// So many of all parameters have been looked at.
    CheckingWeights {
        /// Elements looked at.
        done: usize,
        /// Elements in all.
        total: usize,
    },
    /// So many of all parameters have been read.
    LoadingWeights {
        /// Elements read.
        done: usize,
        /// Elements in all.
        total: usize,
    },
    /// Training goes on from a checkpoint.
    Resumed {
        /// The checkpoint's folder.
        checkpoint: &'a Path,
        /// Batches done.
        batch: u64,
    },
    /// So many of the evaluation's rows are done.
    Evaluating {
        /// Rows done.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// An evaluation is complete.
    Evaluated(&'a EvaluationReport),
    /// The eval prompts are being answered.
    Answering {
        /// How many there are.
        prompts: usize,
    },
    /// The eval prompts have been answered.
    Answered(&'a [Answer]),
    /// A tracking server has the run, which can be seen there.
    Tracked(&'a str),
    /// The first batch is about to begin.
    TrainingStarts {
        /// Batches done before.
        batch: u64,
        /// Batches of the whole run.
        total: u64,
    },
    /// A batch is done.
    Step(&'a StepReport),
    /// A checkpoint is whole on disk.
    CheckpointSaved(&'a Path),
    /// The model is being written in Hugging Face layout.
    Exporting(&'a Path),
    /// The model is whole on disk in Hugging Face layout.
    Exported(&'a Path),
    /// The model is being registered there.
    Registering(&'a str),
    /// The model has been registered as this.
    Registered(&'a str),
    /// Something the user should know, which does not end the run.
    Warning(&'a str),
}

/// What a batch came to.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The batch, counted from 0.
    pub batch: u64,
    /// Batches of the whole run.
    pub total_batches: u64,
    /// Nats for each loss token.
    pub loss: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// Tokens trained on in a second.
    pub tokens_per_second: f64,
    /// Share of the peak that the model's own operations reach.
    pub mfu: Option<f64>,
    /// Time until the last batch at this speed.
    pub remaining: Duration,
}

/// What an evaluation came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvaluationReport {
    /// Batches done.
    pub batch: u64,
    /// Nats for each loss token.
    pub cross_entropy: f64,
    /// Share of the loss tokens that the model ranks first.
    pub accuracy: f64,
}

impl EvaluationReport {
    /// exp(cross-entropy).
    pub fn perplexity(&self) -> f64 {
        self.cross_entropy.exp()
    }
}

/// A prompt and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The prompt as the run file has it.
    pub prompt: String,
    /// What the model said.
    pub text: String,
}

/// An observer that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _update: Update<'_>) {}
}
