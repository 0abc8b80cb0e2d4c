//! The weights that a fresh run starts from: the model's own, a checkpoint's, or the seed's.

use std::path::Path;
use std::sync::Arc;

use tessera_checkpoint::WeightSource;
use tessera_checkpoint::dcp::ComposerWeights;
use tessera_checkpoint::huggingface::{Extras, ModelSource, TensorMismatch, TiedHead, check_tensors};
use tessera_files::{Digest, Sha256, sha256_hex};
use tessera_model::config::ModelConfig;
use tessera_model::{Model, Names, Naming};

use crate::engine::{Engine, read_finite};
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::Settings;
use crate::spec::Init;
use crate::state::same_weights::same_weights;

/// Elements that are read at a time where they are only looked at.
const PIECE: usize = 1 << 22;

/// Fails if the weights are not there, or are not those of a model with this config.
pub(crate) fn check(
    settings: &Settings,
    source: &ModelSource,
    config: &ModelConfig,
) -> Result<(), TrainError> {
    match open(settings, source)? {
        Some((weights, place)) => spelled_as(config, weights.as_ref(), &place).map(drop),
        None => Ok(()),
    }
}

/// Fails if the weights are not there, are not those of a model with this config, cannot be read, or hold a value that is not
/// finite.
pub(crate) fn check_values(
    settings: &Settings,
    source: &ModelSource,
    config: &ModelConfig,
    observer: &dyn Observer,
) -> Result<(), TrainError> {
    let Some((weights, place)) = open(settings, source)? else { return Ok(()) };
    let model = spelled_as(config, weights.as_ref(), &place)?;
    let (mut done, total) = (0, model.parameter_count());
    let mut piece = vec![0.0; PIECE];
    for (name, shape) in model.tensors() {
        let elements: usize = shape.iter().product();
        for first in (0..elements).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(elements - first)];
            read_finite(weights.as_ref(), &name, first, piece)?;
            done += piece.len();
            observer.observe(Update::CheckingWeights { done, total });
        }
    }
    Ok(())
}

/// A digest of the weights' names, shapes, types, and of some elements of each tensor: enough to tell one training of a model
/// from another without reading all of it. `None`: they come from the seed.
pub(crate) fn weights_identity(
    settings: &Settings,
    source: &ModelSource,
) -> Result<Option<String>, TrainError> {
    const SAMPLE: usize = 32;
    let Some((weights, _)) = open(settings, source)? else { return Ok(None) };
    let mut hash = Sha256::new();
    for (name, tensor) in weights.tensors() {
        hash.update(format!("{name} {:?} {:?}", tensor.shape, tensor.dtype));
        let (elements, mut sample) = (tensor.elements(), [0.0; SAMPLE]);
        let sample = &mut sample[..SAMPLE.min(elements)];
        for start in [0, elements / 2, elements] {
            weights.read(name, start.min(elements - sample.len()), sample)?;
            sample.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
    }
    Ok(Some(sha256_hex(hash)))
}

/// What the tensors of a run's checkpoints and exports are called: as in the weights that it starts from.
pub(crate) fn names(
    settings: &Settings,
    source: &ModelSource,
    config: &ModelConfig,
) -> Result<Names, TrainError> {
    let weights = if Naming::varies(config.family) { open(settings, source)? } else { None };
    let naming = weights.map_or_else(Naming::default, |(weights, _)| naming(config, weights.as_ref()));
    Ok(Names::new(config.family, naming))
}

fn naming(config: &ModelConfig, weights: &dyn WeightSource) -> Naming {
    Naming::of(config.family, weights.tensors().keys().map(String::as_str))
}

/// Fills the engine. All ranks call it, and read the same weights or none starts.
pub(crate) fn load(
    settings: &Settings,
    source: &ModelSource,
    engine: &Engine,
    observer: &dyn Observer,
) -> Result<(), TrainError> {
    match open(settings, source)? {
        Some((weights, place)) => {
            load_from(engine, weights.as_ref(), &place, observer)?;
            same_weights(engine, weights.as_ref(), &place)
        }
        None => engine.initialise(settings.seed),
    }
}

/// Weights, and what to call the place they come from.
type Named = (Arc<dyn WeightSource>, String);

/// The weights and what to call the place they come from; `None`: the seed.
fn open(settings: &Settings, source: &ModelSource) -> Result<Option<Named>, TrainError> {
    match (&settings.custom_weights_path, settings.init) {
        (Some(path), _) => {
            let place = settings.custom_weights().unwrap_or(Path::new(path));
            let weights = ComposerWeights::open(place)?;
            Ok(Some((Arc::new(weights), format!("custom_weights_path {path}"))))
        }
        (None, Init::Random) => Ok(None),
        (None, Init::Pretrained) => Ok(Some((source.open_weights()?, format!("model {}", settings.model)))),
    }
}

/// Checks that `weights` are those of the engine's model, and reads them. `place` names them in messages.
pub fn load_from(
    engine: &Engine,
    weights: &dyn WeightSource,
    place: &str,
    observer: &dyn Observer,
) -> Result<(), TrainError> {
    let model = spelled_as(engine.model().config(), weights, place)?;
    let (mut done, total) = (0, model.parameter_count());
    engine.load_weights(model.units(), weights, |elements| {
        done += elements;
        observer.observe(Update::LoadingWeights { done, total });
    })
}

/// The model of a config, its tensors called as in `weights`, which are checked to be just these.
pub(crate) fn spelled_as(
    config: &ModelConfig,
    weights: &dyn WeightSource,
    place: &str,
) -> Result<Model, TrainError> {
    let mismatched = |mismatch| TrainError::Tensors { place: place.to_owned(), mismatch };
    let stored = weights.tensors().keys().map(String::as_str);
    if let Some((original, fused)) = Naming::mixed(config.family, stored) {
        let (original, fused) = (original.to_owned(), fused.to_owned());
        return Err(mismatched(TensorMismatch::MixedSpellings { original, fused }));
    }
    let names = Names::new(config.family, naming(config, weights));
    let model = Model::with_names(config.clone(), names);
    let (output, embedding) = (names.output(), names.embedding());
    let tied = TiedHead { output: &output, embedding: &embedding };
    let extras = Extras { tied: config.tie_word_embeddings.then_some(tied), buffers: &Names::BUFFERS };
    check_tensors(weights, &model.tensors(), extras).map_err(mismatched)?;
    Ok(model)
}
