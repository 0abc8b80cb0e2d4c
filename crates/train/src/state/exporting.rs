//! The model in Hugging Face layout, streamed unit by unit: no rank ever holds more of it than a step does.

use std::path::Path;

use tessera_checkpoint::huggingface::{DEFAULT_SHARD_BYTES, Export, ExportDType, ExportOptions};
use tessera_data::Task;
use tessera_model::{Placed, UnitTable};
use tessera_ops::{Queue, View, transfer};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::plan::Prepared;
use crate::spec::HfSavePrecision;

/// The file of a chat template in a Hugging Face folder.
const TEMPLATE: &str = "chat_template.jinja";

/// Writes the engine's weights and the source's other files to `folder`, which appears when it is whole. All ranks call it:
/// each gives its slices, rank 0 writes. A model that was trained on conversations framed by the default template carries it.
///
/// # Errors
/// Rank 0's, when the folder cannot be written; on all ranks, when one is missing.
pub fn export(engine: &Engine, prepared: &Prepared, folder: &Path) -> Result<(), TrainError> {
    let writes = engine.units().mesh().world().rank() == 0;
    let mut export = writes.then(|| begin(engine, prepared, folder)).transpose();
    for (index, table) in engine.model().units().iter().enumerate() {
        // The others come to every gather, so rank 0 does too, even if it has nowhere to write.
        let weights = engine.masters(index)?;
        if let Ok(Some(open)) = &mut export
            && let Err(error) = write(open, table, engine.queue(), weights.view()?)
        {
            export = Err(error);
        }
    }
    match export? {
        Some(export) => Ok(export.finish()?),
        None => Ok(()),
    }
}

fn begin(engine: &Engine, prepared: &Prepared, folder: &Path) -> Result<Export, TrainError> {
    let Prepared { source, tokenizer, plan, .. } = prepared;
    let config = engine.model().config().exported(&source.config);
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
        config: &config,
        side_files: &side_files,
    };
    Ok(Export::create(folder, &engine.model().tensors(), &options)?)
}

/// Writes a unit's parameters out of its weights.
fn write(export: &mut Export, table: &UnitTable, queue: &Queue, weights: View<'_>) -> Result<(), TrainError> {
    let weights = transfer::to_host::<f32>(queue, weights)?;
    for Placed { parameter, start } in table.parameters() {
        let values = &weights[start..][..parameter.elements()];
        export.write_range(&parameter.name, parameter.part.start, values)?;
    }
    Ok(())
}
