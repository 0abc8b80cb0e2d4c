//! A monolithic Composer checkpoint: one `torch.save` archive with the nested dict that holds `state.model`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use tessera_files::MappedFile;

use super::archive::{Archive, Record, elements_range};
use super::composer::stored_dtype;
use super::element::decode;
use super::error::{DcpError, ItemFault};
use super::path::WRAPPER;
use super::pickle::{TensorReference, Value};
use crate::{StoredDType, TensorInfo};

/// An open `.pt` file.
#[derive(Debug)]
pub(crate) struct Monolith {
    map: MappedFile,
    weights: BTreeMap<String, Weight>,
}

#[derive(Debug)]
struct Weight {
    info: TensorInfo,
    element_size: usize,
    /// Where the elements lie in the file.
    range: Range<usize>,
    storage: Record,
    checked: OnceLock<()>,
}

impl Monolith {
    pub(crate) fn open(path: &Path) -> Result<Self, DcpError> {
        let map = MappedFile::open(path)?;
        let damaged = |name: &str, fault| DcpError::Item {
            path: path.to_owned(),
            name: name.to_owned(),
            offset: 0,
            fault,
        };
        let open = || {
            let archive = Archive::open(&map)?;
            let value = archive.value()?;
            Ok((archive, value))
        };
        let (archive, value) = open().map_err(|fault| damaged("the saved state", fault))?;
        let model = value.get("state").and_then(|state| state.get("model")).and_then(Value::as_entries);
        let model = model.ok_or_else(|| DcpError::NotACheckpoint {
            path: path.to_owned(),
            found: format!("a torch.save archive of {} without state.model", value.kind()),
        })?;
        let mut weights = BTreeMap::new();
        for (name, value) in model {
            let name = name.as_str().and_then(|name| name.strip_prefix(WRAPPER));
            let (Some(name), Value::Tensor(tensor)) = (name, value) else { continue };
            let Some(dtype) = stored_dtype(path, name, tensor.storage.dtype)? else { continue };
            let weight = weight(&archive, tensor, dtype).map_err(|fault| damaged(name, fault))?;
            weights.insert(name.to_owned(), weight);
        }
        Ok(Self { map, weights })
    }

    pub(crate) fn tensors(&self) -> BTreeMap<String, TensorInfo> {
        self.weights.iter().map(|(name, weight)| (name.clone(), weight.info.clone())).collect()
    }

    pub(crate) fn read_elements(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), DcpError> {
        let path = || self.map.path().to_owned();
        let weight = self.weights.get(name).ok_or_else(|| DcpError::Unknown {
            path: path(),
            kind: "tensor",
            name: name.to_owned(),
        })?;
        let (end, elements) = (start.saturating_add(out.len()), weight.info.elements());
        if end > elements {
            return Err(DcpError::Range { name: name.to_owned(), start, end, elements });
        }
        if weight.checked.get().is_none() {
            let offset = weight.storage.range.start as u64;
            weight.storage.check(&self.map).map_err(|fault| DcpError::Item {
                path: path(),
                name: name.to_owned(),
                offset,
                fault,
            })?;
            weight.checked.get_or_init(|| ());
        }
        let bytes = &self.map[weight.range.clone()];
        let size = weight.element_size;
        decode(weight.info.dtype, &bytes[start * size..end * size], out);
        Ok(())
    }
}

fn weight(archive: &Archive<'_>, tensor: &TensorReference, dtype: StoredDType) -> Result<Weight, ItemFault> {
    let storage = archive.record(&format!("data/{}", tensor.storage.key))?.clone();
    let range = elements_range(tensor, &storage.range)?;
    Ok(Weight {
        element_size: tensor.storage.dtype.size(),
        info: TensorInfo { shape: tensor.shape.clone(), dtype },
        range,
        storage,
        checked: OnceLock::new(),
    })
}
