//! The model in Hugging Face layout, streamed out of the units piece by piece.

use std::path::Path;

use tessera_checkpoint::huggingface::{DEFAULT_SHARD_BYTES, Export, ExportDType, ExportOptions, ModelSource};
use tessera_dist::DistError;
use tessera_ops::DType;

use crate::engine::Engine;
use crate::error::TrainError;
use crate::spec::HfSavePrecision;

/// Writes the engine's weights and the source's other files to `folder`, which appears when it is whole.
pub fn export(
    engine: &Engine,
    source: &ModelSource,
    precision: HfSavePrecision,
    folder: &Path,
) -> Result<(), TrainError> {
    let options = ExportOptions {
        dtype: match precision {
            HfSavePrecision::Fp32 => ExportDType::F32,
            HfSavePrecision::Auto | HfSavePrecision::Bf16 => ExportDType::Bf16,
        },
        max_shard_bytes: DEFAULT_SHARD_BYTES,
        config: &source.config,
        side_files: &source.files,
    };
    let mut export = Export::create(folder, &engine.model().tensors(), &options)?;
    for (index, unit) in engine.units().iter().enumerate() {
        let state = unit.state().read().map_err(|_| DistError::Abandoned { unit: index })?;
        let master = state.master.view(DType::F32);
        let master = master.as_slice::<f32>()?;
        for piece in engine.model().units()[index].pieces(engine.slice(index)) {
            export.write_range(&piece.parameter.name, piece.first, &master[piece.place])?;
        }
    }
    Ok(export.finish()?)
}
