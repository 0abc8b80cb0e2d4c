//! What becomes of the names, calls and persistent ids in a pickle: known constructors are understood, other listed
//! ones are kept as instances, and nothing is called.

use std::sync::Arc;

use super::opcode as op;
use super::read::{Machine, Node, NodeId, PickleFault};
use super::{Global, Made, StorageReference, TensorReference, TimeDelta, Value};
use crate::dcp::element::ElementType;

impl Machine<'_> {
    pub(super) fn instance(&mut self, opcode: u8) -> Result<(), PickleFault> {
        match opcode {
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            op::INST => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
                Err(PickleFault::Opcode(opcode))
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.leaf(module), self.leaf(name)) {
                    (Some(Value::Str(module)), Some(Value::Str(name))) => {
                        let (module, name) = (module.clone(), name.clone());
                        self.global(&module, &name)
                    }
                    _ => Err(PickleFault::Expected("the two texts of a name")),
                }
            }
            op::REDUCE => self.construct(Made::Called),
            op::NEWOBJ => self.construct(Made::New),
            op::BUILD => self.build(),
            _ => self.storage(),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleFault> {
        let global = Global::find(module, name)
            .ok_or_else(|| PickleFault::Forbidden { module: module.to_owned(), name: name.to_owned() })?;
        self.push(Node::Leaf(Value::Global(global)));
        Ok(())
    }

    pub(super) fn leaf(&self, node: NodeId) -> Option<&Value> {
        match self.nodes.get(node) {
            Some(Node::Leaf(value)) => Some(value),
            _ => None,
        }
    }

    fn tuple(&self, node: NodeId) -> Result<&[NodeId], PickleFault> {
        match self.nodes.get(node) {
            Some(Node::Tuple(items)) => Ok(items),
            _ => Err(PickleFault::Expected("a tuple")),
        }
    }

    /// Pays for copying `count` elements out of an argument that may be shared.
    fn pay(&mut self, count: usize) -> Result<(), PickleFault> {
        self.copies_left = self.copies_left.checked_sub(count).ok_or(PickleFault::TooLarge)?;
        Ok(())
    }

    fn construct(&mut self, made: Made) -> Result<(), PickleFault> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Some(&Value::Global(global)) = self.leaf(callable) else {
            return Err(PickleFault::Expected("a class or function to call"));
        };
        let items = self.tuple(arguments)?;
        let node = match (global, items) {
            (Global::ORDERED_DICT, []) => Node::Dict { ordered: true, entries: Vec::new() },
            (Global::SIZE | Global::REBUILD_PARAMETER, &[first, ..]) => {
                self.stack.push(first);
                return Ok(());
            }
            (Global::TIME_DELTA, items) => Node::Leaf(self.time_delta(items)?),
            (Global::ENCODE, &[text, _]) => Node::Leaf(self.encoded(text)?),
            (Global::REBUILD_TENSOR, &[storage, offset, shape, strides, ..]) => {
                Node::Leaf(self.tensor(storage, offset, shape, strides)?)
            }
            (Global::ORDERED_DICT | Global::ENCODE | Global::REBUILD_TENSOR | Global::SIZE, _) => {
                return Err(PickleFault::Expected("the arguments that torch.save writes"));
            }
            _ => Node::Object { global, made, arguments, state: None },
        };
        self.push(node);
        Ok(())
    }

    fn time_delta(&self, items: &[NodeId]) -> Result<Value, PickleFault> {
        let mut parts = items.iter().map(|&item| {
            let number =
                self.leaf(item).and_then(Value::as_int).and_then(|number| i32::try_from(number).ok());
            number.ok_or(PickleFault::Expected("the days, seconds and microseconds of a timedelta"))
        });
        let mut next = || parts.next().unwrap_or(Ok(0));
        Ok(Value::TimeDelta(TimeDelta { days: next()?, seconds: next()?, microseconds: next()? }))
    }

    /// `_codecs.encode(text, "latin1")`
    fn encoded(&mut self, text: NodeId) -> Result<Value, PickleFault> {
        let Some(Value::Str(text)) = self.leaf(text) else {
            return Err(PickleFault::Expected("a text to encode"));
        };
        let text = text.clone();
        self.pay(text.len())?;
        let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
        bytes.map(|bytes| Value::Bytes(bytes.into())).map_err(|_| PickleFault::Expected("Latin-1 text"))
    }

    fn tensor(
        &mut self,
        storage: NodeId,
        offset: NodeId,
        shape: NodeId,
        strides: NodeId,
    ) -> Result<Value, PickleFault> {
        let Some(Value::Storage(storage)) = self.leaf(storage) else {
            return Err(PickleFault::Expected("the storage of a tensor"));
        };
        let storage = storage.clone();
        let offset = self.count(offset)?;
        let (shape, strides) = (self.counts(shape)?, self.counts(strides)?);
        Ok(Value::Tensor(Arc::new(TensorReference { storage, offset, shape, strides })))
    }

    fn count(&self, node: NodeId) -> Result<usize, PickleFault> {
        self.leaf(node)
            .and_then(Value::as_usize)
            .ok_or(PickleFault::Expected("a number that is not negative"))
    }

    fn counts(&mut self, node: NodeId) -> Result<Vec<usize>, PickleFault> {
        self.pay(self.tuple(node)?.len())?;
        self.tuple(node)?.iter().map(|&item| self.count(item)).collect()
    }

    fn build(&mut self) -> Result<(), PickleFault> {
        let given = self.pop()?;
        let top = self.top()?;
        match self.nodes.get_mut(top) {
            Some(Node::Object { state, .. }) => *state = Some(given),
            // An nn.Module's state_dict carries `_metadata` as an attribute: nothing that is read here.
            Some(Node::Dict { ordered: true, .. }) => {}
            _ => return Err(PickleFault::Expected("an instance that takes a state")),
        }
        Ok(())
    }

    /// `('storage', class, key, location, elements)`
    fn storage(&mut self) -> Result<(), PickleFault> {
        const WANTED: PickleFault = PickleFault::Expected("the persistent id of a storage");
        let id = self.pop()?;
        let &[tag, class, key, _, elements] = self.tuple(id)? else { return Err(WANTED) };
        let (Some(Value::Str(tag)), Some(Value::Global(class)), Some(Value::Str(key))) =
            (self.leaf(tag), self.leaf(class), self.leaf(key))
        else {
            return Err(WANTED);
        };
        let dtype = ElementType::from_storage(*class).filter(|_| &**tag == "storage").ok_or(WANTED)?;
        let storage = StorageReference { key: key.clone(), dtype, elements: self.count(elements)? };
        self.push(Node::Leaf(Value::Storage(Arc::new(storage))));
        Ok(())
    }
}
