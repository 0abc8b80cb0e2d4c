//! Command-line arguments `key=value` and `map.key=value`, laid over the run file's tree.

use std::mem;

use super::error::SpecError;
use super::tree::{Entry, Node, Value, parse_argument};

/// How deep the run file's maps nest.
const MOST_LEVELS: usize = 2;

/// Lays one argument over `root`. Its value is YAML. Where a key is given in several arguments, the last holds.
pub(super) fn apply(root: &mut Node, argument: &str) -> Result<(), SpecError> {
    let malformed = || SpecError::Argument { argument: argument.to_owned() };
    let (path, text) = argument.split_once('=').ok_or_else(malformed)?;
    let keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.len() > MOST_LEVELS || keys.iter().any(|key| key.is_empty()) {
        return Err(malformed());
    }
    place(root, &keys, parse_argument(text, argument)?);
    Ok(())
}

/// Puts `value` at `keys` below `node`, making the maps that are absent. What stands in the way and is no map
/// is replaced by one: the argument asks for a map there, and the reader says so if the key takes none.
fn place(node: &mut Node, keys: &[&str], value: Node) {
    let Some((key, rest)) = keys.split_first() else {
        *node = value;
        return;
    };
    let mut entries = match mem::replace(&mut node.value, Value::Null) {
        Value::Map(entries) => entries,
        _ => {
            node.origin = value.origin.clone();
            Vec::new()
        }
    };
    match entries.iter_mut().find(|entry| entry.key == *key) {
        Some(entry) => place(&mut entry.node, rest, value),
        None => {
            let origin = value.origin.clone();
            let mut absent = Node { origin: origin.clone(), value: Value::Null };
            place(&mut absent, rest, value);
            entries.push(Entry { origin, key: (*key).to_owned(), node: absent });
        }
    }
    node.value = Value::Map(entries);
}
