//! What a data set is prepared for: every choice that changes its rows.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The three tasks, spelt in run files as the service spelt them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Task {
    /// Conversations: a `.jsonl` file whose rows have `messages`.
    ChatCompletion,
    /// Prompts with responses: a `.jsonl` file whose rows have `prompt` and `response` (or `completion`).
    InstructionFinetune,
    /// Plain text: a `.txt` file, or a folder of them, each file a document.
    ContinuedPretrain,
}

impl fmt::Display for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ChatCompletion => "CHAT_COMPLETION",
            Self::InstructionFinetune => "INSTRUCTION_FINETUNE",
            Self::ContinuedPretrain => "CONTINUED_PRETRAIN",
        })
    }
}

/// Which assistant messages of a conversation the loss is taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetResponses {
    /// Every one.
    #[default]
    All,
    /// The last one only.
    Last,
}

/// How examples are put into rows of `context_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Several examples a row, by best-fit-decreasing. Pre-training documents follow one another and are cut
    /// where a row ends.
    #[default]
    BestFit,
    /// One example a row. A pre-training document begins a row and is cut where the row ends.
    None,
}

/// Where the data is and what rows to make of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSettings {
    /// A `.jsonl` file, a `.txt` file, or a folder of `.txt` files, as the task wants.
    pub path: PathBuf,
    /// What the rows of the data are.
    pub task: Task,
    /// Tokens in a full row; at least 1.
    pub context_length: usize,
    /// Where conversations have loss. The other tasks have one response, or loss everywhere.
    pub target_responses: TargetResponses,
    /// How examples share rows.
    pub packing: Packing,
    /// Decides which examples meet in a packing window.
    pub seed: u64,
    /// Rows of the model's embedding: every token id must be below.
    pub vocab_size: usize,
}
