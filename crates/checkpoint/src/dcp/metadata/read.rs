//! From the pickle to checked tables.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use super::{Metadata, Place, Tensor};
use crate::dcp::element::ElementType;
use crate::dcp::error::MetadataFault;
use crate::dcp::pickle::{self, Global, Object, Value};
use crate::dcp::rectangle::{Rectangle, check_cover};
use crate::dcp::save_id::SaveId;

/// The most dimensions of a tensor, attributes of an instance, and bytes of a name. A pickle may mention one tuple,
/// dict or text any number of times, so that only small ones may be copied or searched at each mention: with these
/// bounds memory and work are proportional to the file's length. PyTorch writes four attributes at most.
const MAX_DIMENSIONS: usize = 8;
const MAX_ATTRIBUTES: usize = 32;
const MAX_NAME_BYTES: usize = 4096;

/// Where the chunk of a tensor (with offsets) or an object (without) lies.
type Places<'a> = HashMap<(&'a str, Option<Vec<usize>>), Place>;

/// Reads and checks the content of a `.metadata` file.
pub(crate) fn parse(bytes: &[u8]) -> Result<Metadata, MetadataFault> {
    let root = pickle::read(bytes)?;
    let state = instance(&root, Global::METADATA).ok_or_else(|| kind("the file", "a pickled Metadata"))?;
    let entries =
        |name: &str| attribute(state, name).and_then(Value::as_entries).ok_or_else(|| kind(name, "a dict"));
    let mut places = places(entries("storage_data")?)?;
    let mut metadata = Metadata { save: save_id(state), ..Metadata::default() };
    for (name, entry) in entries("state_dict_metadata")? {
        let name = short_text(name)
            .ok_or_else(|| kind("a key of state_dict_metadata", "a str of at most 4096 bytes"))?;
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

/// The save that it says it is of, if we wrote it.
fn save_id(metadata: &Object) -> Option<SaveId> {
    let identifiers = instance(attribute(metadata, "storage_meta")?, Global::STORAGE_META)?;
    SaveId::from_metadata(short_text(attribute(identifiers, "save_id")?)?)
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
    let state = object.state.as_ref()?;
    state.as_entries().filter(|entries| entries.len() <= MAX_ATTRIBUTES)?;
    state.get(name)
}

fn extents(value: &Value) -> Option<Vec<usize>> {
    let items = value.as_items().filter(|items| items.len() <= MAX_DIMENSIONS)?;
    items.iter().map(Value::as_usize).collect()
}

fn short_text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| text.len() <= MAX_NAME_BYTES)
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
            Some((short_text(attribute(index, "fqn")?)?, offsets))
        });
        let key =
            key.ok_or_else(|| kind("a key of storage_data", "a MetadataIndex of at most 8 dimensions"))?;
        let stored = instance(info, Global::STORAGE_INFO).and_then(|info| {
            let number = |name| attribute(info, name)?.as_usize().map(|number| number as u64);
            let file = short_text(attribute(info, "relative_path")?)?;
            Some((file, number("offset")?, number("length")?, info))
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
    let shape = attribute(state, "size")
        .and_then(extents)
        .ok_or_else(|| kind(name, "given a size of at most 8 dimensions"))?;
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
        _ => attribute(properties, "dtype"),
    };
    let Some(Value::Global(global)) = dtype else { return Err(kind(name, "given an element type")) };
    ElementType::from_dtype(*global)
        .ok_or_else(|| MetadataFault::ElementType { name: name.to_owned(), found: global.name().to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Plan, serialise};
    use super::*;
    use crate::dcp::path::StatePath;

    fn one_tensor(name: &str, dimensions: usize) -> Vec<u8> {
        let shape = vec![1; dimensions];
        let part = Rectangle { offsets: vec![0; dimensions], sizes: shape.clone() };
        let place = Place { file: "__0_0.distcp".into(), offset: 0, length: 1 };
        let tensor = Tensor { dtype: ElementType::F32, shape, chunks: vec![(part, place)] };
        let tensors = BTreeMap::from([(StatePath::keys(&[name]), tensor)]);
        serialise(&Plan { save: SaveId::of("test"), tensors, objects: BTreeMap::new() })
    }

    fn refused(pickle: &[u8], place: &str) {
        let error = parse(pickle).unwrap_err();
        assert!(matches!(&error, MetadataFault::Kind { place: found, .. } if found == place), "{error}");
    }

    #[test]
    fn what_is_copied_at_each_mention_is_bounded() {
        assert_eq!(parse(&one_tensor("a", MAX_DIMENSIONS)).unwrap().tensors["a"].shape, [1; MAX_DIMENSIONS]);
        refused(&one_tensor("a", MAX_DIMENSIONS + 1), "a key of storage_data");
        parse(&one_tensor(&"a".repeat(MAX_NAME_BYTES), 1)).unwrap();
        refused(&one_tensor(&"a".repeat(MAX_NAME_BYTES + 1), 1), "a key of storage_data");
    }

    /// A `.metadata` of 2000 objects whose indices share one state of `padding` useless attributes besides the name.
    fn shared_state(padding: usize) -> Vec<u8> {
        let text = |text: &str| {
            let length = u32::try_from(text.len()).unwrap().to_le_bytes();
            [b"X".as_slice(), &length, text.as_bytes()].concat()
        };
        let new = |global: Global| {
            format!("c{}\n{}\n)\u{81}", global.module(), global.name())
                .chars()
                .map(|c| c as u8)
                .collect::<Vec<_>>()
        };
        let mut pickle = b"\x80\x02".to_vec();
        // The shared state goes into the memo, and off the stack.
        pickle.extend([b"}(".as_slice(), &text("fqn"), &text("a")].concat());
        (0..padding).for_each(|_| pickle.extend(b"NN"));
        pickle.extend(b"uq\x000");
        pickle.extend([new(Global::STORAGE_INFO), b"}(".to_vec(), text("relative_path"), text("f")].concat());
        pickle
            .extend([text("offset"), b"K\x00".to_vec(), text("length"), b"K\x01ubq\x010".to_vec()].concat());
        pickle.extend([new(Global::METADATA), b"}(".to_vec(), text("storage_data"), b"}(".to_vec()].concat());
        for _ in 0..2000 {
            pickle.extend([new(Global::METADATA_INDEX), b"h\x00bh\x01".to_vec()].concat());
        }
        pickle.extend([b"u".to_vec(), text("state_dict_metadata"), b"}(".to_vec(), text("a")].concat());
        pickle.extend([new(Global::BYTES_STORAGE_METADATA), b"uub.".to_vec()].concat());
        pickle
    }

    #[test]
    fn a_crafted_pickle_cannot_have_one_large_dict_searched_again_and_again() {
        assert_eq!(parse(&shared_state(MAX_ATTRIBUTES - 1)).unwrap().objects.len(), 1);
        refused(&shared_state(MAX_ATTRIBUTES), "a key of storage_data");
        refused(&shared_state(500_000), "a key of storage_data");
    }
}
