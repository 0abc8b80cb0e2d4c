//! From tables to the pickle, attribute for attribute as PyTorch writes it.

use std::sync::Arc;

use super::{Place, Plan, Tensor};
use crate::dcp::path::{PathElement, StatePath};
use crate::dcp::pickle::{self, Global, Made, Object, Protocol, Value};
use crate::dcp::save_id::SaveId;

/// The content of the `.metadata` file that says what `plan` says.
pub(crate) fn serialise(plan: &Plan) -> Vec<u8> {
    let mut described = Vec::new();
    let mut paths = Vec::new();
    let mut stored = Vec::new();
    for (path, place) in &plan.objects {
        let name = Value::from(path.to_string().as_str());
        described.push((name.clone(), instance(Global::BYTES_STORAGE_METADATA, None)));
        stored.push((index(&name, None), storage_info(place)));
        paths.push((name, steps(path)));
    }
    for (path, tensor) in &plan.tensors {
        let name = Value::from(path.to_string().as_str());
        described.push((name.clone(), tensor_metadata(tensor)));
        for (part, place) in &tensor.chunks {
            stored.push((index(&name, Some(&part.offsets)), storage_info(place)));
        }
        paths.push((name, steps(path)));
    }
    let attributes = [
        ("state_dict_metadata", Value::Dict(described.into())),
        ("planner_data", Value::Dict(paths.into())),
        ("storage_data", Value::Dict(stored.into())),
        ("storage_meta", storage_meta(plan.save)),
    ];
    pickle::write(&instance(Global::METADATA, Some(Value::dict(attributes))), Protocol::Four)
}

fn instance(global: Global, state: Option<Value>) -> Value {
    Value::Object(Arc::new(Object { global, made: Made::New, arguments: Value::tuple([]), state }))
}

fn call(global: Global, argument: Value) -> Value {
    let arguments = Value::tuple([argument]);
    Value::Object(Arc::new(Object { global, made: Made::Called, arguments, state: None }))
}

fn size(extents: &[usize]) -> Value {
    call(Global::SIZE, Value::tuple(extents.iter().map(|&extent| extent.into())))
}

fn steps(path: &StatePath) -> Value {
    Value::tuple(path.elements().iter().map(|element| match element {
        PathElement::Key(key) => Value::from(key.as_str()),
        PathElement::Index(index) => Value::from(*index),
    }))
}

fn index(name: &Value, offsets: Option<&[usize]>) -> Value {
    let mut attributes = vec![("fqn", name.clone()), ("index", Value::None)];
    attributes.extend(offsets.map(|offsets| ("offset", size(offsets))));
    instance(Global::METADATA_INDEX, Some(Value::dict(attributes)))
}

/// The identifiers of a save.
fn storage_meta(save: SaveId) -> Value {
    let attributes = [
        ("checkpoint_id", Value::None),
        ("save_id", save.in_metadata().as_str().into()),
        ("load_id", Value::None),
        ("modules", Value::list([])),
    ];
    instance(Global::STORAGE_META, Some(Value::dict(attributes)))
}

fn storage_info(place: &Place) -> Value {
    let attributes = [
        ("relative_path", Value::Str(place.file.clone())),
        ("offset", place.offset.into()),
        ("length", place.length.into()),
    ];
    instance(Global::STORAGE_INFO, Some(Value::dict(attributes)))
}

fn tensor_metadata(tensor: &Tensor) -> Value {
    // dtype, layout, requires_grad, memory format (0: contiguous), pin_memory
    let properties = Value::tuple([
        Value::Global(tensor.dtype.dtype()),
        call(Global::LAYOUT, "torch.strided".into()),
        false.into(),
        call(Global::MEMORY_FORMAT, 0_usize.into()),
        false.into(),
    ]);
    let chunks = tensor.chunks.iter().map(|(part, _)| {
        let attributes = [("offsets", size(&part.offsets)), ("sizes", size(&part.sizes))];
        instance(Global::CHUNK_STORAGE_METADATA, Some(Value::dict(attributes)))
    });
    let attributes = [
        ("properties", instance(Global::TENSOR_PROPERTIES, Some(properties))),
        ("size", size(&tensor.shape)),
        ("chunks", Value::list(chunks)),
    ];
    instance(Global::TENSOR_STORAGE_METADATA, Some(Value::dict(attributes)))
}
