//! Where a tensor or object stands in the nested state, with Composer's layout of keys.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What Composer's wrapper puts before every Hugging Face name.
pub(crate) const WRAPPER: &str = "model.";

/// Composer's key of the weights, up to the Hugging Face name.
pub(crate) const WEIGHTS: &str = "state.model.model.";

/// One step into a nested state: a key of a dict or an index of a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PathElement {
    /// A key, which may contain dots: `state.model` is a flat dict of dotted names.
    Key(String),
    /// A position in a list.
    Index(usize),
}

/// The steps from the root of the state to one tensor or object. DCP's name of it joins them by dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StatePath(Vec<PathElement>);

impl StatePath {
    /// A path of keys.
    pub fn keys(keys: &[&str]) -> Self {
        Self(keys.iter().map(|&key| PathElement::Key(key.to_owned())).collect())
    }

    /// This path and one more key.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.0.push(PathElement::Key(key.to_owned()));
        self
    }

    /// This path and a position in a list.
    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(PathElement::Index(index));
        self
    }

    /// Where a weight stands, by its Hugging Face name.
    pub fn weight(name: &str) -> Self {
        Self::keys(&["state", "model"]).key(&format!("{WRAPPER}{name}"))
    }

    /// Where an optimizer's tensor for the weight `name` stands: `field` is `step`, `exp_avg` or `exp_avg_sq`.
    pub fn optimizer_state(optimizer: &str, name: &str, field: &str) -> Self {
        Self::keys(&["state", "optimizers", optimizer, "state"]).key(&format!("{WRAPPER}{name}")).key(field)
    }

    /// Where a setting of an optimizer's only parameter group stands.
    pub fn optimizer_setting(optimizer: &str, setting: &str) -> Self {
        Self::keys(&["state", "optimizers", optimizer, "param_groups"]).index(0).key(setting)
    }

    /// The steps.
    pub fn elements(&self) -> &[PathElement] {
        &self.0
    }
}

/// The name under which DCP keeps it.
impl fmt::Display for StatePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, element) in self.0.iter().enumerate() {
            if position > 0 {
                formatter.write_str(".")?;
            }
            match element {
                PathElement::Key(key) => formatter.write_str(key)?,
                PathElement::Index(index) => write!(formatter, "{index}")?,
            }
        }
        Ok(())
    }
}
