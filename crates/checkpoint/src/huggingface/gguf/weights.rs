//! The tensors of a `.gguf` file under their Hugging Face names, dequantised as they are read.
//!
//! llama.cpp rotates neighbouring pairs of a head where Hugging Face rotates its halves, so its converter reorders the
//! rows of q and k: the row of half `s`, pair `i` of a head, `s·w/2 + i`, becomes `2i + s`. Reading undoes that.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use candle_core::Device;
use candle_core::quantized::GgmlDType;

use super::GgufFile;
use super::config::Heads;
use crate::huggingface::HuggingFaceError;
use crate::{StoredDType, TensorInfo, WeightSource};

/// A tensor of the file behind a Hugging Face name.
#[derive(Debug)]
struct Stored {
    name: String,
    /// How many heads' rows are in llama.cpp's order.
    permuted_heads: Option<usize>,
}

/// The weights of a `.gguf` file. At most one dequantised tensor is held at a time, so that a tensor that is read in
/// pieces is dequantised once.
#[derive(Debug)]
pub struct GgufWeights {
    file: GgufFile,
    tensors: BTreeMap<String, TensorInfo>,
    stored: BTreeMap<String, Stored>,
    last: Mutex<Option<(String, Vec<f32>)>>,
}

impl GgufWeights {
    pub(super) fn new(file: GgufFile) -> Result<Self, HuggingFaceError> {
        let heads = Heads::read(&file.fields)?;
        let mut tensors = BTreeMap::new();
        let mut stored = BTreeMap::new();
        for (name, info) in &file.content.tensor_infos {
            if name == "rope_freqs.weight" {
                continue; // It is part of the configuration.
            }
            let hub_name = hub_name(name).ok_or_else(|| {
                let problem = format!("holds the tensor {name:?}, which a dense Llama does not have");
                HuggingFaceError::unsupported(file.path(), problem)
            })?;
            file.check_extent(name)?;
            let shape = info.shape.dims().to_vec();
            let permuted_heads = permuted_heads(name, heads);
            if permuted_heads
                .is_some_and(|heads| shape.first().is_none_or(|rows| *rows == 0 || rows % (2 * heads) != 0))
            {
                let problem = format!(
                    "tensor {name:?} has the shape {shape:?}, which does not divide into its heads \
                    ({heads:?})"
                );
                return Err(HuggingFaceError::damaged(file.path(), problem));
            }
            tensors.insert(hub_name.clone(), TensorInfo { shape, dtype: stored_dtype(info.ggml_dtype) });
            stored.insert(hub_name, Stored { name: name.clone(), permuted_heads });
        }
        Ok(Self { file, tensors, stored, last: Mutex::new(None) })
    }

    /// A whole tensor in fp32 and in Hugging Face's order.
    fn load(&self, stored: &Stored) -> Result<Vec<f32>, HuggingFaceError> {
        let values = self.file.tensor_values(&stored.name)?;
        let rows = self
            .file
            .content
            .tensor_infos
            .get(&stored.name)
            .and_then(|info| info.shape.dims().first().copied());
        Ok(match (stored.permuted_heads, rows) {
            (Some(heads), Some(rows)) => in_halves(&values, heads, rows),
            _ => values,
        })
    }
}

impl WeightSource for GgufWeights {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let place = || self.file.path().display().to_string();
        let Some(stored) = self.stored.get(name) else {
            return Err(HuggingFaceError::UnknownTensor { place: place(), tensor: name.to_owned() }.into());
        };
        // A poisoned lock holds a tensor that is whole or none: it is assigned in one step.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(held, _)| held != name) {
            *last = None; // Freed first, so that there is never a second one.
            *last = Some((name.to_owned(), self.load(stored)?));
        }
        let values = last.as_ref().map_or(&[][..], |(_, values)| values);
        let end = start.saturating_add(out.len());
        let Some(piece) = values.get(start..end) else {
            let (place, tensor, elements) = (place(), name.to_owned(), values.len());
            return Err(HuggingFaceError::Range { place, tensor, start, end, elements }.into());
        };
        out.copy_from_slice(piece);
        Ok(())
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.path().to_owned()]
    }
}

impl GgufFile {
    /// Refuses a tensor that is empty, whose size overflows, or that passes the end of the file, before anything is
    /// allocated for it.
    fn check_extent(&self, name: &str) -> Result<(), HuggingFaceError> {
        let info = self.content.tensor_infos.get(name);
        let fits = info.is_some_and(|info| {
            let block = info.ggml_dtype.block_size();
            let elements = info.shape.dims().iter().try_fold(1_usize, |all, extent| all.checked_mul(*extent));
            let bytes = elements
                .filter(|elements| *elements > 0 && elements % block == 0)
                .and_then(|elements| (elements / block).checked_mul(info.ggml_dtype.type_size()));
            let start = self.content.tensor_data_offset.checked_add(info.offset);
            let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes as u64));
            end.is_some_and(|end| end <= self.map.len() as u64)
        });
        if fits {
            return Ok(());
        }
        let problem = format!(
            "tensor {name:?} passes the end of the file ({} bytes) or has an impossible size: it is \
            truncated or damaged, get it again",
            self.map.len()
        );
        Err(HuggingFaceError::damaged(self.path(), problem))
    }

    /// The values of a tensor, dequantised, in the file's order.
    pub(super) fn tensor_values(&self, name: &str) -> Result<Vec<f32>, HuggingFaceError> {
        self.check_extent(name)?;
        let read = || {
            let tensor = self.content.tensor(&mut Cursor::new(&self.map[..]), name, &Device::Cpu)?;
            tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()
        };
        read().map_err(|error: candle_core::Error| {
            HuggingFaceError::unsupported(
                self.path(),
                format!("tensor {name:?} cannot be dequantised: {error}"),
            )
        })
    }
}

fn stored_dtype(dtype: GgmlDType) -> StoredDType {
    match dtype {
        GgmlDType::F32 => StoredDType::F32,
        GgmlDType::F16 => StoredDType::F16,
        GgmlDType::BF16 => StoredDType::Bf16,
        _ => StoredDType::Quantised,
    }
}

/// The Hugging Face name of a tensor of llama.cpp.
fn hub_name(name: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Some(whole.to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) = part.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

fn permuted_heads(name: &str, heads: Heads) -> Option<usize> {
    let (_, part) = name.strip_prefix("blk.")?.split_once('.')?;
    match part {
        "attn_q.weight" | "attn_q.bias" => Some(heads.query),
        "attn_k.weight" | "attn_k.bias" => Some(heads.key_value),
        _ => None,
    }
}

/// Reorders rows from neighbouring pairs to halves, head by head. `rows` is a multiple of `2·heads`.
fn in_halves(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let pairs = rows / heads / 2;
    let columns = values.len() / rows;
    let mut ordered = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (head, within) = (row / (2 * pairs), row % (2 * pairs));
        let (half, pair) = (within / pairs, within % pairs);
        let from = (head * 2 * pairs + 2 * pair + half) * columns;
        ordered.extend_from_slice(&values[from..from + columns]);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_pairs_become_rows_of_halves() {
        // Two heads of width 4 with one column: pairs (0,1)(2,3) were stored from halves (0,2)(1,3).
        let stored = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        assert_eq!(in_halves(&stored, 2, 8), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    }

    #[test]
    fn names_are_mapped_and_unknown_ones_are_not() {
        assert_eq!(
            hub_name("blk.12.ffn_down.weight").as_deref(),
            Some("model.layers.12.mlp.down_proj.weight")
        );
        assert_eq!(hub_name("blk.0.ffn_gate_exps.weight"), None);
        assert_eq!(hub_name("blk.x.attn_q.weight"), None);
        assert_eq!(hub_name("blk.0.attn_q.scale"), None);
    }
}
