//! Answers to prompts: each prompt goes through the model once and leaves its keys and values in a cache; then all prompts
//! grow together, one token a pass.

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use tessera_data::{IGNORED_LABEL, MicroBatch};
use tessera_dist::DistError;
use tessera_model::{Block, Context, DecodeContext, Model};
use tessera_ops::{Arena, Buffer, OpError, View, ViewMut, embedding};

use super::pass::{Keep, Pass, Targets, rope_view, rows, two};
use super::{Engine, Workspace};
use crate::error::TrainError;
use crate::spec::GenerationSpec;

/// Memory that answers may take for the keys and values of as many sequences as fit; a single one may take more.
const ANSWER_CACHE_BYTES: usize = 256 << 20;

/// Bytes that answers need while they are made, where prompt and answer have at most `tokens` tokens.
pub fn answer_cache_bytes(model: &Model, tokens: usize) -> usize {
    ANSWER_CACHE_BYTES.max(tokens.saturating_mul(token_bytes(model)))
}

/// Bytes of the keys and values of one token in all blocks.
fn token_bytes(model: &Model) -> usize {
    let heads = model.config().heads();
    2 * heads.key_value * heads.size * model.compute().dtype.size() * model.blocks().len()
}

/// How the next token is chosen from the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    /// The most likely one.
    Greedy,
    /// A draw from the `top_k` most likely that make up `top_p` of the probability.
    TopKTopP {
        /// What logits are divided by.
        temperature: f64,
        /// How many tokens are considered.
        top_k: usize,
        /// The probability that the considered tokens make up.
        top_p: f64,
    },
}

/// What ends an answer, and what it is drawn with.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationSettings {
    /// The longest answer, in tokens.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampler: Sampler,
    /// The seed of the draws; prompt i uses `seed + i`, wrapping around.
    pub seed: u64,
    /// Tokens that end an answer; they are not part of it.
    pub stop_tokens: Vec<u32>,
}

/// One prompt with its answer so far.
struct Sequence {
    processor: LogitsProcessor,
    last_token: u32,
    /// Tokens whose keys and values are in the cache.
    length: usize,
    answer: Vec<u32>,
    finished: bool,
}

impl Sequence {
    /// Draws the token that comes next.
    fn draw(&mut self, logits: &[f32]) -> Result<u32, TrainError> {
        let logits = Tensor::from_slice(logits, logits.len(), &Device::Cpu)?;
        Ok(self.processor.sample(&logits)?)
    }

    fn take(&mut self, token: u32, settings: &GenerationSettings, capacity: usize) {
        self.last_token = token;
        if settings.stop_tokens.contains(&self.last_token) {
            self.finished = true;
        } else {
            self.answer.push(self.last_token);
            self.finished = self.answer.len() >= settings.max_new_tokens || self.length >= capacity;
        }
    }
}

/// The keys and values of every block, `[sequences, capacity, 2·Hkv·D]` each.
struct Cache {
    blocks: Vec<Buffer>,
    capacity: usize,
    row_width: usize,
}

impl Engine {
    /// Answers `prompts` (token ids, none of them empty). A prompt longer than the engine's positions loses its front.
    pub fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        settings: &GenerationSettings,
    ) -> Result<Vec<Vec<u32>>, TrainError> {
        let positions = self.settings.positions.min(self.settings.micro_batch_tokens);
        let kept_front = |prompt: &Vec<u32>| prompt.len().saturating_sub(positions.saturating_sub(1));
        let prompts: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt[kept_front(prompt)..]).collect();
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let group = self.group_size(longest.saturating_add(settings.max_new_tokens).min(positions));
        let mut answers = Vec::with_capacity(prompts.len());
        for (index, prompts) in prompts.chunks(group).enumerate() {
            let seed = settings.seed.wrapping_add((index * group) as u64);
            answers.extend(self.generate_together(prompts, settings, seed)?);
        }
        Ok(answers)
    }

    /// How many sequences of `capacity` tokens grow together: as many as fit the memory planned for their keys and values,
    /// and as the head's scratch has rows for.
    fn group_size(&self, capacity: usize) -> usize {
        let fitting = ANSWER_CACHE_BYTES / (capacity * token_bytes(&self.model)).max(1);
        fitting.clamp(1, self.model.head().chunk_tokens(self.settings.micro_batch_tokens))
    }

    fn generate_together(
        &mut self,
        prompts: &[&[u32]],
        settings: &GenerationSettings,
        seed: u64,
    ) -> Result<Vec<Vec<u32>>, TrainError> {
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let mut cache = self.cache(
            prompts.len(),
            longest.saturating_add(settings.max_new_tokens).min(self.settings.positions),
        )?;
        let mut sequences = Vec::with_capacity(prompts.len());
        let mut tokens = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            let logits = self.prefill(prompt, index, prompts.len(), &mut cache)?;
            let mut sequence = Sequence {
                processor: settings.sampler.processor(seed.wrapping_add(index as u64)),
                last_token: 0,
                length: prompt.len(),
                answer: Vec::new(),
                finished: false,
            };
            tokens.push(sequence.draw(&logits)?);
            sequences.push(sequence);
        }
        for (sequence, token) in sequences.iter_mut().zip(self.drawn_by_rank_0(&tokens)?) {
            sequence.take(token, settings, cache.capacity);
        }
        while sequences.iter().any(|sequence| !sequence.finished) {
            let logits = self.decode(&sequences, &mut cache)?;
            let vocabulary = self.model.config().vocab_size;
            let mut tokens = Vec::with_capacity(sequences.len());
            for (sequence, logits) in sequences.iter_mut().zip(logits.chunks_exact(vocabulary)) {
                tokens.push(if sequence.finished { sequence.last_token } else { sequence.draw(logits)? });
            }
            let tokens = self.drawn_by_rank_0(&tokens)?;
            for (sequence, token) in
                sequences.iter_mut().zip(tokens).filter(|(sequence, _)| !sequence.finished)
            {
                sequence.length += 1;
                sequence.take(token, settings, cache.capacity);
            }
        }
        Ok(sequences.into_iter().map(|sequence| sequence.answer).collect())
    }

    /// The tokens as rank 0 drew them. Ranks on different processors have different bits, could draw different tokens, and
    /// would then no longer make the same passes.
    fn drawn_by_rank_0(&self, tokens: &[u32]) -> Result<Vec<u32>, DistError> {
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let bytes = self.units.mesh().world().broadcast("drawn tokens", 0, bytes)?.wait()?;
        Ok(bytes.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token)).collect())
    }

    fn cache(&self, sequences: usize, capacity: usize) -> Result<Cache, DistError> {
        let heads = self.model.config().heads();
        let row_width = 2 * heads.key_value * heads.size;
        let bytes = sequences * capacity * row_width * self.model.compute().dtype.size();
        let blocks = self.model.blocks().iter();
        let blocks = blocks.map(|_| Buffer::on(&self.queue, bytes)).collect::<Result<_, _>>()?;
        Ok(Cache { blocks, capacity, row_width })
    }

    /// Sends a prompt through the model, fills its part of the cache, and returns the logits after its last token.
    fn prefill(
        &mut self,
        prompt: &[u32],
        index: usize,
        sequences: usize,
        cache: &mut Cache,
    ) -> Result<Vec<f32>, DistError> {
        let (share, compute) = (cache.capacity * cache.row_width, self.model.compute().dtype);
        self.last_logits(prompt, |block, context, kept| {
            let whole = cache.blocks[block.0].view_mut(compute).range(0, sequences * share)?;
            let own = whole.range(index * share, share)?.reshape([1, cache.capacity, cache.row_width])?;
            block.1.fill_cache(context, kept.arena(), own)
        })
    }

    /// The logits of the token that follows `tokens`.
    pub fn next_token_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, DistError> {
        self.last_logits(tokens, |_, _, _| Ok(()))
    }

    fn last_logits(
        &mut self,
        tokens: &[u32],
        mut after_block: impl FnMut((usize, &Block), &Context<'_>, &mut Buffer) -> Result<(), OpError>,
    ) -> Result<Vec<f32>, DistError> {
        let length = tokens.len() as u32;
        // Only what follows the last token is asked for.
        let mut labels = vec![IGNORED_LABEL; tokens.len()];
        if let Some(last) = labels.last_mut() {
            *last = 0;
        }
        let batch = MicroBatch {
            tokens: tokens.to_vec(),
            labels,
            positions: (0..length).collect(),
            cu_seqlens: vec![0, length],
            row_starts: vec![0, length],
            loss_tokens: 0,
        };
        let targets = Targets::of(&batch);
        let rope_table = rope_view(&self.rope_table, &self.model)?;
        let Workspace { inputs, kept, scratch, batch: room, .. } = &mut self.workspace;
        let batch = room.upload(targets.views(&batch))?;
        let context = self.settings.context(&self.queue, batch, rope_table);
        let pass = Pass { model: &self.model, units: &self.units, context };
        let blocks = self.model.blocks();
        let last = pass.forward(inputs, kept, Keep::Nothing, None, |index, kept| {
            after_block((index, &blocks[index]), &context, kept)
        })?;
        let x = pass.stream(&mut inputs[last])?;
        pass.logits(x.as_view(), scratch.arena())
    }

    /// Appends the last token of every sequence to the cache and returns the logits after it, one row each. A finished
    /// sequence goes along without growing.
    fn decode(&mut self, sequences: &[Sequence], cache: &mut Cache) -> Result<Vec<f32>, DistError> {
        let count = sequences.len();
        let hidden = self.model.config().hidden_size;
        let tokens: Vec<u32> = sequences.iter().map(|sequence| sequence.last_token).collect();
        let last_place = cache.capacity - 1;
        let lengths: Vec<u32> =
            sequences.iter().map(|sequence| sequence.length.min(last_place) as u32).collect();
        let rows_of_all: Vec<u32> = (0..count as u32).collect();
        let batch = tessera_model::MicroBatch {
            tokens: View::of(&tokens),
            positions: View::of(&lengths),
            row_starts: View::of::<u32>(&[]),
            cu_seqlens: View::of::<u32>(&[]),
            loss_rows: View::of(&rows_of_all),
            targets: View::of::<u32>(&[]),
        };
        let Workspace { inputs, kept, scratch, batch: room, .. } = &mut self.workspace;
        let batch = room.upload(batch)?;
        let rope_table = rope_view(&self.rope_table, &self.model)?;
        let context = DecodeContext { queue: &self.queue, lengths: batch.positions, rope_table };
        let pass = Pass {
            model: &self.model,
            units: &self.units,
            context: self.settings.context(&self.queue, batch, rope_table),
        };
        let (kept, compute) = (&mut kept[0], self.model.compute().dtype);
        let first = rows(&mut inputs[0], compute, count, hidden)?;
        pass.with_weights(0, Some(1), |weights| {
            Ok(embedding::forward(&self.queue, batch.tokens, weights[0], first)?)
        })?;
        let blocks = self.model.blocks();
        for (index, block) in blocks.iter().enumerate() {
            let (x, y) = two(inputs, index % 2, (index + 1) % 2);
            let (x, mut y) = (rows(x, compute, count, hidden)?, rows(y, compute, count, hidden)?);
            let shape = [count, cache.capacity, cache.row_width];
            let mut own = cache.blocks[index].view_mut(compute).reshape(shape)?;
            for stage in 0..block.stages() {
                let (unit, next) = (self.model.stage_unit(index, stage), self.model.unit_after(index, stage));
                pass.with_weights(unit, Some(next), |weights| {
                    let (x, y, own) = (x.as_view(), y.reborrow(), own.reborrow());
                    Ok(block.decode(stage, &context, weights, x, y, own, kept.arena())?)
                })?;
            }
        }
        let x = rows(&mut inputs[blocks.len() % 2], compute, count, hidden)?;
        pass.logits(x.as_view(), scratch.arena())
    }
}

impl Pass<'_> {
    /// The logits of the rows of the head's input x that have a target, one row each, on the host.
    fn logits(&self, x: View<'_>, scratch: Arena<'_>) -> Result<Vec<f32>, DistError> {
        let (picked, vocabulary) = (self.context.batch.loss_rows, self.model.config().vocab_size);
        let count = picked.shape().elements();
        let mut logits = vec![0.0; count * vocabulary];
        self.with_weights(self.model.head_unit(), Some(0), |weights| {
            let logits = ViewMut::of(&mut logits).reshape([count, vocabulary])?;
            Ok(self.model.head().logits(self.queue(), weights, x, picked, logits, scratch)?)
        })?;
        self.queue().synchronize()?;
        Ok(logits)
    }
}

impl Sampler {
    /// The sampler that a run file asks for.
    pub fn of(spec: &GenerationSpec) -> Self {
        let GenerationSpec { do_sample, temperature, top_k, top_p, .. } = *spec;
        if do_sample { Self::TopKTopP { temperature, top_k, top_p } } else { Self::Greedy }
    }

    fn processor(self, seed: u64) -> LogitsProcessor {
        let sampling = match self {
            Self::Greedy => Sampling::ArgMax,
            Self::TopKTopP { temperature, top_k, top_p } => {
                Sampling::TopKThenTopP { k: top_k, p: top_p, temperature }
            }
        };
        LogitsProcessor::from_sampling(seed, sampling)
    }
}
