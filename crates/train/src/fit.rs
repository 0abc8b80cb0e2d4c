//! Whether weights belong to a model: every tensor there, none too many, all of the model's shapes.

use std::path::Path;

use tessera_checkpoint::WeightSource;
use tessera_checkpoint::dcp::ComposerWeights;
use tessera_checkpoint::huggingface::check_tensors;
use tessera_model::{Model, UnitTable};

use crate::error::TrainError;
use crate::plan::Prepared;
use crate::spec::Init;

/// Names of buffers that old checkpoints carry and that are no parameters.
const IGNORABLE_TENSORS: [&str; 1] = ["rotary_emb.inv_freq"];

/// The model's parameters: names and shapes of a Hugging Face folder, in the order in which a forward needs them.
pub fn parameters(model: &Model) -> Vec<(String, Vec<usize>)> {
    let placed = model.units().iter().flat_map(UnitTable::parameters);
    placed.map(|placed| (placed.parameter.name.clone(), placed.parameter.shape.clone())).collect()
}

/// Fails if `source`, which lies at `place`, does not hold exactly the model's tensors.
///
/// # Errors
/// [`TrainError::Tensors`] with every difference.
pub fn check_fit(model: &Model, source: &dyn WeightSource, place: &str) -> Result<(), TrainError> {
    check_tensors(source, &parameters(model), &IGNORABLE_TENSORS)
        .map_err(|mismatch| TrainError::Tensors { place: place.to_owned(), mismatch })
}

impl Prepared {
    /// Opens the weights that the run would start from and checks that they are the model's. Of weights on the hub this
    /// fetches the files, which the run then finds in the cache.
    ///
    /// # Errors
    /// When the weights are missing, damaged or those of another model.
    pub fn check_first_weights(&self) -> Result<(), TrainError> {
        let settings = &self.plan.settings;
        let model = Model::new(self.config.clone());
        match (&settings.custom_weights_path, settings.init) {
            (Some(path), _) => check_fit(&model, &ComposerWeights::open(Path::new(path))?, path),
            (None, Init::Random) => Ok(()),
            (None, Init::Pretrained) => {
                check_fit(&model, self.source.open_weights()?.as_ref(), &settings.model)
            }
        }
    }
}
