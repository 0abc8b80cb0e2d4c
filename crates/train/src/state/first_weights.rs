//! The weights that a fresh run starts from: the model's own, a checkpoint's, or the seed's.

use std::path::Path;
use std::sync::Arc;

use tessera_checkpoint::WeightSource;
use tessera_checkpoint::dcp::ComposerWeights;
use tessera_checkpoint::huggingface::{ModelSource, check_tensors};
use tessera_model::Model;

use crate::engine::Engine;
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::Settings;
use crate::spec::Init;

/// Names of buffers that old checkpoints carry and that are no parameters.
const IGNORABLE_TENSORS: [&str; 1] = ["rotary_emb.inv_freq"];

/// Fails if the weights are not there, or are not those of `model`.
pub(crate) fn check(settings: &Settings, source: &ModelSource, model: &Model) -> Result<(), TrainError> {
    match open(settings, source)? {
        Some((weights, place)) => check_against(model, weights.as_ref(), &place),
        None => Ok(()),
    }
}

/// Fills the engine.
pub(crate) fn load(
    settings: &Settings,
    source: &ModelSource,
    engine: &Engine,
    observer: &dyn Observer,
) -> Result<(), TrainError> {
    match open(settings, source)? {
        Some((weights, place)) => load_from(engine, weights.as_ref(), &place, observer),
        None => engine.initialise(settings.seed),
    }
}

/// Weights, and what to call the place they come from.
type Named = (Arc<dyn WeightSource>, String);

/// The weights and what to call the place they come from; `None`: the seed.
fn open(settings: &Settings, source: &ModelSource) -> Result<Option<Named>, TrainError> {
    match (&settings.custom_weights_path, settings.init) {
        (Some(path), _) => {
            let weights = ComposerWeights::open(Path::new(path))?;
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
    check_against(engine.model(), weights, place)?;
    let (mut done, total) = (0, engine.model().parameter_count());
    engine.load_weights(weights, |elements| {
        done += elements;
        observer.observe(Update::LoadingWeights { done, total });
    })
}

pub(crate) fn check_against(
    model: &Model,
    weights: &dyn WeightSource,
    place: &str,
) -> Result<(), TrainError> {
    check_tensors(weights, &model.tensors(), &IGNORABLE_TENSORS)
        .map_err(|mismatch| TrainError::Tensors { place: place.to_owned(), mismatch })
}
