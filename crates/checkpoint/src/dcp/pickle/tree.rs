//! The last step of reading: the tree below a node, where cycles and excessive depth are found.

use std::sync::Arc;

use super::read::{MAX_DEPTH, Machine, Node, NodeId, PickleFault};
use super::{Object, Value};

impl Machine<'_> {
    /// The tree below a node and its height. What is met again is shared.
    pub(super) fn tree(&mut self, node: NodeId, depth: usize) -> Result<(Value, usize), PickleFault> {
        if let Some(value) = self.leaf(node) {
            return Ok((value.clone(), 0));
        }
        if let Some((value, height)) = self.finished.get(&node) {
            return if depth + height > MAX_DEPTH {
                Err(PickleFault::TooDeep)
            } else {
                Ok((value.clone(), *height))
            };
        }
        if depth >= MAX_DEPTH {
            return Err(PickleFault::TooDeep);
        }
        let taken = self.nodes.get_mut(node).map(|node| std::mem::replace(node, Node::Open));
        let (value, height) = match taken {
            Some(Node::List(items)) => {
                let (items, height) = self.trees(&items, depth)?;
                (Value::List(items.into()), height)
            }
            Some(Node::Tuple(items)) => {
                let (items, height) = self.trees(&items, depth)?;
                (Value::Tuple(items.into()), height)
            }
            Some(Node::Dict { ordered, entries }) => self.dict(ordered, &entries, depth)?,
            Some(Node::Object { global, made, arguments, state }) => {
                let (arguments, mut height) = self.tree(arguments, depth + 1)?;
                let state = match state {
                    Some(state) => {
                        let (state, state_height) = self.tree(state, depth + 1)?;
                        height = height.max(state_height);
                        Some(state)
                    }
                    None => None,
                };
                (Value::Object(Arc::new(Object { global, made, arguments, state })), height)
            }
            Some(Node::Leaf(value)) => return Ok((value, 0)),
            Some(Node::Open) | None => return Err(PickleFault::Cycle),
        };
        self.finished.insert(node, (value.clone(), height + 1));
        Ok((value, height + 1))
    }

    fn trees(&mut self, nodes: &[NodeId], depth: usize) -> Result<(Vec<Value>, usize), PickleFault> {
        let mut height = 0;
        let mut values = Vec::with_capacity(nodes.len());
        for &node in nodes {
            let (value, node_height) = self.tree(node, depth + 1)?;
            height = height.max(node_height);
            values.push(value);
        }
        Ok((values, height))
    }

    fn dict(
        &mut self,
        ordered: bool,
        entries: &[(NodeId, NodeId)],
        depth: usize,
    ) -> Result<(Value, usize), PickleFault> {
        let mut height = 0;
        let mut pairs = Vec::with_capacity(entries.len());
        for &(key, value) in entries {
            let (key, key_height) = self.tree(key, depth + 1)?;
            let (value, value_height) = self.tree(value, depth + 1)?;
            height = height.max(key_height).max(value_height);
            pairs.push((key, value));
        }
        let pairs = pairs.into();
        Ok((if ordered { Value::OrderedDict(pairs) } else { Value::Dict(pairs) }, height))
    }
}
