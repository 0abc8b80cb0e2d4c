//! The model in Hugging Face layout, streamed out of the units piece by piece.

use std::path::Path;

use tessera_checkpoint::huggingface::{DEFAULT_SHARD_BYTES, Export, ExportDType, ExportOptions};
use tessera_data::Task;
use tessera_dist::DistError;
use tessera_ops::DType;

use crate::engine::Engine;
use crate::error::TrainError;
use crate::plan::Prepared;
use crate::spec::HfSavePrecision;

/// The file of a chat template in a Hugging Face folder.
const TEMPLATE: &str = "chat_template.jinja";

/// Writes the engine's weights and the source's other files to `folder`, which appears when it is whole. A model that was trained
/// on conversations framed by the default template carries it.
pub fn export(engine: &Engine, prepared: &Prepared, folder: &Path) -> Result<(), TrainError> {
    let Prepared { source, tokenizer, plan, .. } = prepared;
    let mut side_files = source.files.clone();
    if plan.settings.task() == Task::ChatCompletion && tokenizer.uses_chatml_fallback() {
        side_files.push((TEMPLATE.into(), tokenizer.chat_template_source().into()));
    }
    let options = ExportOptions {
        dtype: match plan.settings.hf_save_precision {
            HfSavePrecision::Fp32 => ExportDType::F32,
            HfSavePrecision::Auto | HfSavePrecision::Bf16 => ExportDType::Bf16,
        },
        max_shard_bytes: DEFAULT_SHARD_BYTES,
        config: &source.config,
        side_files: &side_files,
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
