//! Models in Hugging Face's layout, opened, fetched and exported: on small files made here, without a network.
#![allow(clippy::unwrap_used)]

mod export;
mod folder;
mod gguf;
mod hub;

use std::path::Path;

use tessera_checkpoint::WeightSource;

/// A tokenizer of two tokens: the smallest that the `tokenizers` library loads.
pub const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, "b": 1},
        "merges": []}}"#;

/// All values of a tensor.
pub fn values(source: &dyn WeightSource, name: &str) -> Vec<f32> {
    let mut values = vec![0.0; source.tensors()[name].elements()];
    source.read(name, 0, &mut values).unwrap();
    values
}

/// Writes a safetensors file of one dtype.
pub fn write_safetensors(path: &Path, dtype: safetensors::Dtype, tensors: &[(&str, &[usize], Vec<u8>)]) {
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Values as fp32 bytes.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}
