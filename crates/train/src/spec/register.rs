//! `register_to`: where a finished run's model is registered.

use std::fmt;

use serde::{Serialize, Serializer};

use super::reader::{self, Read};
use super::tree::Node;

/// What a repository of the hub begins with.
const HUB: &str = "hf://";
/// The longest name of a repository, and of a part of a registered model's name.
const LONGEST: [usize; 2] = [96, 255];

/// Where a finished run's model is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterTo {
    /// As a new version of a registered model, in a registry that MLflow's clients read.
    Registry {
        /// The catalog and the schema.
        schema: String,
        /// The model; `None`: it is called what the run is called.
        model: Option<String>,
    },
    /// As a commit to a repository on the Hugging Face Hub.
    Hub {
        /// `org/name`.
        repository: String,
    },
}

impl RegisterTo {
    /// Reads the key.
    pub(super) fn read(node: &Node) -> Read<Self> {
        let expected =
            "catalog.schema or catalog.schema.model, the parts without spaces, `/` and `:`, or hf://org/name";
        let text = reader::text(node).map_err(|_| expected.to_owned())?;
        Self::parse(&text).ok_or_else(|| expected.to_owned())
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(repository) = text.strip_prefix(HUB) {
            let (owner, name) = repository.split_once('/')?;
            let fits = is_hub_name(owner) && is_hub_name(name) && repository.len() <= LONGEST[0];
            return fits.then(|| Self::Hub { repository: repository.to_owned() });
        }
        let parts: Vec<_> = text.split('.').collect();
        let model = match parts.as_slice() {
            [_, _] => None,
            [_, _, model] => Some((*model).to_owned()),
            _ => return None,
        };
        let fits =
            |part: &&str| !part.is_empty() && part.len() <= LONGEST[1] && part.chars().all(is_of_a_part);
        parts.iter().all(fits).then(|| Self::Registry { schema: format!("{}.{}", parts[0], parts[1]), model })
    }
}

/// Whether Unity Catalog and MLflow take a character in a part of a name.
fn is_of_a_part(character: char) -> bool {
    !character.is_whitespace() && !character.is_control() && !['/', ':', '.', '\\'].contains(&character)
}

fn is_hub_name(name: &str) -> bool {
    let fits = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    !name.is_empty() && !name.starts_with(['-', '.']) && !name.ends_with(['-', '.']) && name.chars().all(fits)
}

/// The name of the registered model of a run, where the run file names none: what a registry does not take in a name becomes `-`.
pub(crate) fn registered_name(schema: &str, model: Option<&str>, run_name: &str) -> String {
    let of_the_run = || {
        let taken = |character| if is_of_a_part(character) { character } else { '-' };
        run_name.chars().map(taken).collect()
    };
    format!("{schema}.{}", model.map_or_else(of_the_run, str::to_owned))
}

impl fmt::Display for RegisterTo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { schema, model: Some(model) } => write!(formatter, "{schema}.{model}"),
            Self::Registry { schema, model: None } => formatter.write_str(schema),
            Self::Hub { repository } => write!(formatter, "{HUB}{repository}"),
        }
    }
}

impl Serialize for RegisterTo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_what_was_read() {
        for text in ["main.models", "main.models.sums", "hf://org/Sums-1.0_a"] {
            assert_eq!(RegisterTo::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "main",
            "a.b.c.d",
            "a..c",
            ".b",
            "a.b.",
            "a.b c",
            "a/b.c",
            "a.b:c",
            "hf://org",
            "hf://org/",
            "hf:///a",
            "hf://a/b/c",
            "hf://a/.b",
            "hf://a/b c",
            "hf:/a/b",
            "https://a.b/c",
        ] {
            assert_eq!(RegisterTo::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_model_without_a_name_has_the_runs() {
        assert_eq!(registered_name("a.b", None, "Llama-3.2-1B 5e:7"), "a.b.Llama-3-2-1B-5e-7");
        assert_eq!(registered_name("a.b", Some("c"), "run"), "a.b.c");
    }
}
