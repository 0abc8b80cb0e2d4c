//! Asking a model outside a run: the answers to prompts, and the logits behind the next token.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tessera_checkpoint::dcp::ComposerWeights;
use tessera_data::{Task, TextTokenizer};
use tessera_dist::{Residency, Single, Wire};
use tessera_model::Model;
use tessera_ops::Queue;

use crate::elsewhere;
use crate::engine::{CHUNK_TOKENS, Engine, EngineSettings, GenerationSettings, Optimizer, Sampler};
use crate::error::TrainError;
use crate::observe::{Answer, Observer};
use crate::plan::{DEFAULT_CONTEXT_LENGTH, OpenedModel};
use crate::spec::{GenerationSpec, Offload, OptimizerSpec};
use crate::state::load_from;

/// Which model is to be asked, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorSettings {
    /// Hub id, folder in Hugging Face layout, or `.gguf` file; the last two also by url.
    pub model: String,
    /// A checkpoint whose weights replace the model's, by its path or url.
    pub weights: Option<PathBuf>,
    /// What a prompt is: for conversations it becomes a user message in the chat template, else it stays as it is. `None`:
    /// a conversation if the model brings a chat template.
    pub task: Option<Task>,
    /// Tokens that a prompt and its answer may have together; `None`: what the model was made for, at most 8192.
    pub context_length: Option<usize>,
}

/// A model that answers.
pub struct Generator {
    engine: Engine,
    tokenizer: TextTokenizer,
    task: Task,
}

/// A token that may come next.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NextToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its logit.
    pub logit: f32,
}

impl Generator {
    /// Reads the model's files and weights.
    ///
    /// # Errors
    /// When they are missing, damaged, or do not belong together.
    pub fn load(settings: &GeneratorSettings, observer: &Arc<dyn Observer>) -> Result<Self, TrainError> {
        let cache = elsewhere::cache(elsewhere::DEFAULT_FOLDER);
        let OpenedModel { source, config, .. } =
            OpenedModel::open(&settings.model, &cache, Some(observer.clone()))?;
        let maximum = config.max_position_embeddings;
        let positions = settings.context_length.unwrap_or(DEFAULT_CONTEXT_LENGTH.min(maximum));
        if !(2..=maximum).contains(&positions) {
            let expected = format!("2 to {maximum}, the model's max_position_embeddings");
            return Err(TrainError::unsupported("context_length", positions, expected));
        }
        let tokenizer = TextTokenizer::new(
            &source.tokenizer_json,
            source.tokenizer_config.as_ref(),
            source.chat_template.as_deref(),
        )?;
        let by_template =
            if source.chat_template.is_some() { Task::ChatCompletion } else { Task::ContinuedPretrain };
        let engine = Engine::new(Queue::cpu(), Model::new(config), Single, asking_only(positions))?;
        match &settings.weights {
            Some(path) => {
                let here = elsewhere::checkpoint("--weights", path, &cache, observer)?;
                let weights = ComposerWeights::open(&here)?;
                load_from(&engine, &weights, &path.display().to_string(), observer.as_ref())?;
            }
            None => load_from(&engine, source.open_weights()?.as_ref(), &settings.model, observer.as_ref())?,
        }
        Ok(Self { engine, tokenizer, task: settings.task.unwrap_or(by_template) })
    }

    /// What a prompt is taken for.
    pub fn task(&self) -> Task {
        self.task
    }

    /// The answers to `prompts`, in their order.
    ///
    /// # Errors
    /// When a prompt is empty, too long, or refused by the chat template.
    pub fn answers(
        &mut self,
        prompts: &[String],
        spec: &GenerationSpec,
        seed: u64,
    ) -> Result<Vec<Answer>, TrainError> {
        let tokens = prompts.iter().map(|prompt| self.tokens(prompt)).collect::<Result<Vec<_>, _>>()?;
        let texts = answer_texts(&mut self.engine, &self.tokenizer, &tokens, spec, seed)?;
        let answer = |(prompt, text): (&String, String)| Answer { prompt: prompt.clone(), text };
        Ok(prompts.iter().zip(texts).map(answer).collect())
    }

    /// The `count` tokens that most likely follow `prompt`, the likeliest first; equal ones in the order of their ids.
    ///
    /// # Errors
    /// When the prompt is empty, too long, or refused by the chat template.
    pub fn next_tokens(&mut self, prompt: &str, count: usize) -> Result<Vec<NextToken>, TrainError> {
        let tokens = self.tokens(prompt)?;
        let logits = self.engine.next_token_logits(&tokens)?;
        let mut ranked: Vec<(u32, f32)> = (0..).zip(logits).collect();
        ranked.sort_by(|(_, first), (_, second)| second.total_cmp(first));
        let next = |(id, logit)| Ok(NextToken { id, text: self.tokenizer.decode(&[id], false)?, logit });
        ranked.into_iter().take(count).map(next).collect()
    }

    fn tokens(&self, prompt: &str) -> Result<Vec<u32>, TrainError> {
        let tokens = self.tokenizer.encode_prompt(prompt, self.task)?;
        let (length, positions) = (tokens.len(), self.engine.settings().positions);
        if length == 0 {
            return Err(TrainError::unsupported("prompt", "an empty text", "at least one token".into()));
        }
        if length >= positions {
            let expected = format!("less than context_length, which is {positions}");
            return Err(TrainError::unsupported("prompt", format!("{length} tokens"), expected));
        }
        Ok(tokens)
    }
}

/// The texts with which a model goes on after `prompts`, none of which is empty. An answer ends at any token that the
/// model's config or its tokenizer names as the end.
pub(crate) fn answer_texts(
    engine: &mut Engine,
    tokenizer: &TextTokenizer,
    prompts: &[Vec<u32>],
    spec: &GenerationSpec,
    seed: u64,
) -> Result<Vec<String>, TrainError> {
    let ends = &engine.model().config().eos_token_ids;
    let settings = GenerationSettings {
        max_new_tokens: spec.max_new_tokens,
        sampler: Sampler::of(spec),
        seed,
        stop_tokens: ends.iter().copied().chain(tokenizer.eos()).collect(),
    };
    let generated = engine.generate(prompts, &settings)?;
    generated.iter().map(|tokens| Ok(tokenizer.decode(tokens, true)?)).collect()
}

/// An engine that is asked and not trained: buffers for gradients and moments are never touched, so they take addresses
/// but no memory.
fn asking_only(positions: usize) -> EngineSettings {
    EngineSettings {
        micro_batch_tokens: positions,
        micro_batch_rows: 1,
        positions,
        chunk_tokens: CHUNK_TOKENS,
        recompute: true,
        offload: Offload::None,
        residency: Residency::default(),
        wire: Wire::default(),
        optimizer: Optimizer { spec: OptimizerSpec::default(), peak_learning_rate: 0.0 },
        max_grad_norm: f64::INFINITY,
    }
}
