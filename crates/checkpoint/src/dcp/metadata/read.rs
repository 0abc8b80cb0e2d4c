//! From the pickle to checked tables.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use super::{Metadata, Place, Tensor};
use crate::dcp::element::ElementType;
use crate::dcp::error::MetadataFault;
use crate::dcp::pickle::{self, Global, Object, Value};
use crate::dcp::rectangle::{Rectangle, check_cover};

/// Where the chunk of a tensor (with offsets) or an object (without) lies.
type Places<'a> = HashMap<(&'a str, Option<Vec<usize>>), Place>;

/// Reads and checks the content of a `.metadata` file.
pub(crate) fn parse(bytes: &[u8]) -> Result<Metadata, MetadataFault> {
    let root = pickle::read(bytes)?;
    let state = instance(&root, Global::METADATA).ok_or_else(|| kind("the file", "a pickled Metadata"))?;
    let entries =
        |name: &str| attribute(state, name).and_then(Value::as_entries).ok_or_else(|| kind(name, "a dict"));
    let mut places = places(entries("storage_data")?)?;
    let mut metadata = Metadata::default();
    for (name, entry) in entries("state_dict_metadata")? {
        let name = name.as_str().ok_or_else(|| kind("a key of state_dict_metadata", "a str"))?;
        if let Some(state) = instance(entry, Global::TENSOR_STORAGE_METADATA) {
            metadata.tensors.insert(name.to_owned(), tensor(name, state, &mut places)?);
        } else if instance(entry, Global::BYTES_STORAGE_METADATA).is_some() {
            let place = places.remove(&(name, None));
            let place =
                place.ok_or_else(|| MetadataFault::NotStored { name: name.to_owned(), offsets: None })?;
            metadata.objects.insert(name.to_owned(), place);
        } else {
            return Err(kind(name, "a TensorStorageMetadata or BytesStorageMetadata"));
        }
    }
    Ok(metadata)
}

fn kind(place: &str, expected: &'static str) -> MetadataFault {
    MetadataFault::Kind { place: place.to_owned(), expected }
}

/// The instance, if `value` is one of the class `global`.
fn instance(value: &Value, global: Global) -> Option<&Object> {
    match value {
        Value::Object(object) if object.global == global => Some(object),
        _ => None,
    }
}

/// An attribute that the pickle sets.
fn attribute<'a>(object: &'a Object, name: &str) -> Option<&'a Value> {
    object.state.as_ref()?.get(name)
}

fn extents(value: &Value) -> Option<Vec<usize>> {
    value.as_items()?.iter().map(Value::as_usize).collect()
}

fn places(entries: &[(Value, Value)]) -> Result<Places<'_>, MetadataFault> {
    let mut names: BTreeMap<&str, Arc<str>> = BTreeMap::new();
    let mut places = HashMap::with_capacity(entries.len());
    for (index, info) in entries {
        let key = instance(index, Global::METADATA_INDEX).and_then(|index| {
            let offsets = match attribute(index, "offset") {
                None | Some(Value::None) => None,
                Some(offsets) => Some(extents(offsets)?),
            };
            Some((attribute(index, "fqn")?.as_str()?, offsets))
        });
        let key = key.ok_or_else(|| kind("a key of storage_data", "a MetadataIndex"))?;
        let stored = instance(info, Global::STORAGE_INFO).and_then(|info| {
            let number = |name| attribute(info, name)?.as_usize().map(|number| number as u64);
            Some((attribute(info, "relative_path")?.as_str()?, number("offset")?, number("length")?, info))
        });
        let (file, offset, length, info) = stored.ok_or_else(|| kind(key.0, "placed by a _StorageInfo"))?;
        if !matches!(attribute(info, "transform_descriptors"), None | Some(Value::None)) {
            return Err(kind(key.0, "stored without transforms (compression, encryption)"));
        }
        let components: Vec<_> = Path::new(file).components().collect();
        if !matches!(components[..], [Component::Normal(_)]) {
            return Err(MetadataFault::FileName(file.to_owned()));
        }
        let file = names.entry(file).or_insert_with(|| file.into()).clone();
        places.insert(key, Place { file, offset, length });
    }
    Ok(places)
}

fn tensor<'a>(name: &'a str, state: &Object, places: &mut Places<'a>) -> Result<Tensor, MetadataFault> {
    let shape = attribute(state, "size").and_then(extents).ok_or_else(|| kind(name, "given a size"))?;
    let listed =
        attribute(state, "chunks").and_then(Value::as_items).ok_or_else(|| kind(name, "given its chunks"))?;
    let dtype = attribute(state, "properties")
        .and_then(|properties| instance(properties, Global::TENSOR_PROPERTIES))
        .ok_or_else(|| kind(name, "given its properties"))
        .and_then(|properties| element_type(name, properties))?;
    let mut chunks = Vec::new();
    for chunk in listed {
        let part = instance(chunk, Global::CHUNK_STORAGE_METADATA).and_then(|chunk| {
            let sizes = extents(attribute(chunk, "sizes")?)?;
            Some(Rectangle { offsets: extents(attribute(chunk, "offsets")?)?, sizes })
        });
        let part = part.ok_or_else(|| kind(name, "given chunks with offsets and sizes"))?;
        // Each place serves one chunk, so that many tensors cannot list the same chunks over and over.
        let place = places.remove(&(name, Some(part.offsets.clone())));
        let offsets = Some(part.offsets.clone());
        chunks
            .push((part, place.ok_or_else(|| MetadataFault::NotStored { name: name.to_owned(), offsets })?));
    }
    let parts: Vec<_> = chunks.iter().map(|(part, _)| part).collect();
    check_cover(&shape, &parts).map_err(|fault| MetadataFault::Cover {
        name: name.to_owned(),
        shape: shape.clone(),
        fault,
    })?;
    Ok(Tensor { dtype, shape, chunks })
}

/// `TensorProperties` sets its state as a tuple that begins with the dtype; PyTorch before 2.0 as a dict.
fn element_type(name: &str, properties: &Object) -> Result<ElementType, MetadataFault> {
    let dtype = match &properties.state {
        Some(Value::Tuple(items)) => items.first(),
        Some(state) => state.get("dtype"),
        None => None,
    };
    let Some(Value::Global(global)) = dtype else { return Err(kind(name, "given an element type")) };
    ElementType::from_dtype(*global)
        .ok_or_else(|| MetadataFault::ElementType { name: name.to_owned(), found: global.name().to_owned() })
}
