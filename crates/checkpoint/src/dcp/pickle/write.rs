//! Writes a [`Value`] as a pickle that every PyTorch from 2.0 on loads.

use std::collections::HashMap;
use std::sync::Arc;

use super::opcode as op;
use super::{Global, Made, StorageReference, TensorReference, Value};

/// The protocol that a pickle declares. The opcodes used here are valid in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// What `torch.save` writes.
    Two = 2,
    /// What `.metadata` is written in.
    Four = 4,
}

/// Pickles `value`.
pub fn write(value: &Value, protocol: Protocol) -> Vec<u8> {
    let mut writer = Writer { out: vec![op::PROTO, protocol as u8], memo: HashMap::new() };
    writer.value(value);
    writer.out.push(op::STOP);
    writer.out
}

#[derive(PartialEq, Eq, Hash)]
enum Shared {
    Text(Arc<str>),
    Global(Global),
}

struct Writer {
    out: Vec<u8>,
    /// Texts and globals are written once: a `.metadata` repeats its class names for every chunk.
    memo: HashMap<Shared, u32>,
}

impl Writer {
    fn value(&mut self, value: &Value) {
        match value {
            Value::None => self.out.push(op::NONE),
            Value::Bool(true) => self.out.push(op::NEWTRUE),
            Value::Bool(false) => self.out.push(op::NEWFALSE),
            Value::Int(number) => self.int(*number),
            Value::Float(number) => self.operation(op::BINFLOAT, &number.to_be_bytes()),
            Value::Str(text) => self.text(text),
            Value::Bytes(bytes) => {
                self.operation(op::BINBYTES8, &(bytes.len() as u64).to_le_bytes());
                self.out.extend_from_slice(bytes);
            }
            Value::List(items) => {
                self.out.extend([op::EMPTY_LIST, op::MARK]);
                self.values(items);
                self.out.push(op::APPENDS);
            }
            Value::Tuple(items) => self.tuple(items),
            Value::Dict(entries) => {
                self.out.push(op::EMPTY_DICT);
                self.entries(entries);
            }
            Value::OrderedDict(entries) => {
                self.call(Global::ORDERED_DICT, &[]);
                self.entries(entries);
            }
            Value::TimeDelta(delta) => {
                let parts = [delta.days, delta.seconds, delta.microseconds];
                self.call(Global::TIME_DELTA, &parts.map(|part| Value::from(i64::from(part))));
            }
            Value::Global(global) => self.global(*global),
            Value::Storage(storage) => self.storage(storage),
            Value::Tensor(tensor) => self.tensor(tensor),
            Value::Object(object) => {
                self.global(object.global);
                self.value(&object.arguments);
                self.out.push(match object.made {
                    Made::Called => op::REDUCE,
                    Made::New => op::NEWOBJ,
                });
                if let Some(state) = &object.state {
                    self.value(state);
                    self.out.push(op::BUILD);
                }
            }
        }
    }

    fn operation(&mut self, opcode: u8, argument: &[u8]) {
        self.out.push(opcode);
        self.out.extend_from_slice(argument);
    }

    fn values(&mut self, values: &[Value]) {
        for value in values {
            self.value(value);
        }
    }

    fn entries(&mut self, entries: &[(Value, Value)]) {
        self.out.push(op::MARK);
        for (key, value) in entries {
            self.value(key);
            self.value(value);
        }
        self.out.push(op::SETITEMS);
    }

    fn tuple(&mut self, items: &[Value]) {
        match items {
            [] => self.out.push(op::EMPTY_TUPLE),
            [_] | [_, _] | [_, _, _] => {
                self.values(items);
                self.out.push([op::TUPLE1, op::TUPLE2, op::TUPLE3][items.len() - 1]);
            }
            _ => {
                self.out.push(op::MARK);
                self.values(items);
                self.out.push(op::TUPLE);
            }
        }
    }

    fn call(&mut self, global: Global, arguments: &[Value]) {
        self.global(global);
        self.tuple(arguments);
        self.out.push(op::REDUCE);
    }

    fn int(&mut self, number: i128) {
        if let Ok(small) = u8::try_from(number) {
            self.operation(op::BININT1, &[small]);
        } else if let Ok(small) = u16::try_from(number) {
            self.operation(op::BININT2, &small.to_le_bytes());
        } else if let Ok(small) = i32::try_from(number) {
            self.operation(op::BININT, &small.to_le_bytes());
        } else {
            let bytes = number.to_le_bytes();
            // Two's complement: bytes that only repeat the sign are left out.
            let significant = (1..16).find(|&length| {
                let shift = 128 - 8 * length;
                (number << shift) >> shift == number
            });
            let length = significant.unwrap_or(16);
            self.out.extend([op::LONG1, length as u8]);
            self.out.extend_from_slice(&bytes[..length]);
        }
    }

    /// Emits a reference to what was written before, or says that it is new.
    fn recall(&mut self, shared: &Shared) -> bool {
        let Some(&index) = self.memo.get(shared) else { return false };
        match u8::try_from(index) {
            Ok(index) => self.operation(op::BINGET, &[index]),
            Err(_) => self.operation(op::LONG_BINGET, &index.to_le_bytes()),
        }
        true
    }

    fn remember(&mut self, shared: Shared) {
        let Ok(index) = u32::try_from(self.memo.len()) else { return };
        match u8::try_from(index) {
            Ok(index) => self.operation(op::BINPUT, &[index]),
            Err(_) => self.operation(op::LONG_BINPUT, &index.to_le_bytes()),
        }
        self.memo.insert(shared, index);
    }

    fn text(&mut self, text: &Arc<str>) {
        let shared = Shared::Text(text.clone());
        if self.recall(&shared) {
            return;
        }
        match u32::try_from(text.len()) {
            Ok(length) => self.operation(op::BINUNICODE, &length.to_le_bytes()),
            Err(_) => self.operation(op::BINUNICODE8, &(text.len() as u64).to_le_bytes()),
        }
        self.out.extend_from_slice(text.as_bytes());
        self.remember(shared);
    }

    fn global(&mut self, global: Global) {
        let shared = Shared::Global(global);
        if self.recall(&shared) {
            return;
        }
        self.out.extend(format!("c{}\n{}\n", global.module(), global.name()).into_bytes());
        self.remember(shared);
    }

    fn storage(&mut self, storage: &StorageReference) {
        self.tuple(&[
            Value::from("storage"),
            Value::Global(storage.dtype.storage()),
            Value::Str(storage.key.clone()),
            Value::from("cpu"),
            Value::from(storage.elements),
        ]);
        self.out.push(op::BINPERSID);
    }

    fn tensor(&mut self, tensor: &TensorReference) {
        let extents = |numbers: &[usize]| Value::tuple(numbers.iter().map(|&number| number.into()));
        self.call(
            Global::REBUILD_TENSOR,
            &[
                Value::Storage(tensor.storage.clone()),
                tensor.offset.into(),
                extents(&tensor.shape),
                extents(&tensor.strides),
                false.into(),
                Value::OrderedDict([].into()),
            ],
        );
    }
}
