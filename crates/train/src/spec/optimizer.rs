//! The update rule and its settings.

use serde::Serialize;

use super::keyword::keyword;
use super::reader::{self, MapReader, Read};
use super::tree::Node;

/// The update rule, complete once it is written at all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "name")]
pub enum OptimizerSpec {
    /// torch's AdamW: weight decay is multiplied by the learning rate.
    #[serde(rename = "adamw")]
    AdamW(AdamSettings),
    /// Composer's DecoupledAdamW: weight decay is multiplied by the schedule alone.
    #[serde(rename = "decoupled_adamw")]
    DecoupledAdamW(AdamSettings),
    /// LLM Foundry's DecoupledLionW.
    #[serde(rename = "decoupled_lionw")]
    DecoupledLionW(LionSettings),
}

/// Settings of Adam's two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AdamSettings {
    /// Decay rates of the first and second moment, each in [0, 1).
    pub betas: [f64; 2],
    /// What keeps the denominator from 0.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// Settings of Lion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LionSettings {
    /// Decay rates of the update's and of the kept moment, each in [0, 1).
    pub betas: [f64; 2],
    /// Weight decay.
    pub weight_decay: f64,
}

keyword! {
    /// The names of the update rules.
    OptimizerName {
        AdamW = "adamw",
        DecoupledAdamW = "decoupled_adamw",
        DecoupledLionW = "decoupled_lionw",
    }
}

impl OptimizerName {
    /// The rule with the settings it has where the file says nothing: this engine's for `adamw`, Composer's and
    /// LLM Foundry's own for theirs.
    fn with_defaults(self) -> OptimizerSpec {
        let adam = AdamSettings { betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.0 };
        match self {
            Self::AdamW => OptimizerSpec::AdamW(adam),
            Self::DecoupledAdamW => {
                OptimizerSpec::DecoupledAdamW(AdamSettings { weight_decay: 1.0e-5, ..adam })
            }
            Self::DecoupledLionW => {
                OptimizerSpec::DecoupledLionW(LionSettings { betas: [0.9, 0.99], weight_decay: 0.0 })
            }
        }
    }
}

impl Default for OptimizerSpec {
    fn default() -> Self {
        OptimizerName::AdamW.with_defaults()
    }
}

impl OptimizerSpec {
    /// Reads the map `optimizer`. Only the keys that the named rule has are known.
    pub(super) fn read(map: &mut MapReader<'_>) -> Self {
        let name = map.name(OptimizerName::AdamW);
        let mut rule = name.with_defaults();
        match &mut rule {
            Self::AdamW(settings) | Self::DecoupledAdamW(settings) => {
                replace(&mut settings.betas, map.optional("betas", betas));
                replace(
                    &mut settings.eps,
                    map.optional("eps", reader::number(|eps| eps > 0.0, "a number above 0, such as 1.0e-8")),
                );
                replace(&mut settings.weight_decay, map.optional("weight_decay", weight_decay()));
            }
            Self::DecoupledLionW(settings) => {
                replace(&mut settings.betas, map.optional("betas", betas));
                replace(&mut settings.weight_decay, map.optional("weight_decay", weight_decay()));
            }
        }
        rule
    }
}

fn replace<T>(default: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *default = given;
    }
}

fn weight_decay() -> impl Fn(&Node) -> Read<f64> {
    reader::number(|decay| decay >= 0.0, "a number of at least 0, such as 0.1")
}

fn betas(node: &Node) -> Read<[f64; 2]> {
    const EXPECTED: &str = "two numbers of at least 0 and below 1, such as [0.9, 0.95]";
    let rate = reader::number(|rate| (0.0..1.0).contains(&rate), EXPECTED);
    let rates = reader::list(rate, "numbers")(node).map_err(|_| EXPECTED.to_owned())?;
    rates.try_into().map_err(|_| EXPECTED.to_owned())
}
