//! A split of a data set on the hub, brought into the hub's cache folder: which files it is made of, and fetching them.
//!
//! The `datasets` library runs a repository's own rules; here the two that need no code are followed. The card, `README.md`, may
//! list the files of each split (`configs`); else their names tell: `data/train-00000-of-00002.parquet`, or `train`, `test`
//! or `validation` somewhere in the name of a file or of its folders. A repository that is cut into subsets has several meanings,
//! and is refused unless its card says which one is the default.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use glob::{MatchOptions, Pattern};
use serde::Deserialize;
use tessera_files::IoContext;

use super::HuggingFaceError;
use super::hub::{HubOptions, HubRepository, RepositoryKind, is_hash};
use super::model::is_hub_id;

const CARD: &str = "README.md";
const DEFAULT: &str = "default";

/// What files of data are called, packed or not.
const ENDINGS: [&str; 5] = ["parquet", "jsonl", "json", "csv", "txt"];
const PACKED: [&str; 2] = [".gz", ".zst"];

/// Files that tell of the data, as the `datasets` library has them.
const TOOLS: [&str; 4] = ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"];

/// Words in the names of files and folders that tell a split, as the `datasets` library has them.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// A split of a data set on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSplit {
    /// `entity/name` of the data set.
    pub id: String,
    /// A branch, tag or commit; `None` is the main branch.
    pub revision: Option<String>,
    /// The split's name.
    pub split: String,
}

/// The files of a split, on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitFiles {
    /// The commit that they are of.
    pub commit: String,
    /// The folder that their names are told from.
    pub folder: PathBuf,
    /// Their paths, in the order of their names.
    pub files: Vec<PathBuf>,
}

impl HubSplit {
    /// Reads `entity/dataset/split` or `entity/dataset@revision/split`; `None` if it is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let (data_set, split) = text.rsplit_once('/')?;
        let (id, revision) = match data_set.split_once('@') {
            Some((id, revision)) => (id, Some(revision.to_owned())),
            None => (data_set, None),
        };
        let is_name = |text: &str| {
            !text.is_empty()
                && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter))
        };
        let fits = is_hub_id(id) && is_name(split) && revision.as_deref() != Some("");
        fits.then(|| Self { id: id.to_owned(), revision, split: split.to_owned() })
    }

    /// Brings the split's files here, as far as they are not in the cache.
    ///
    /// # Errors
    /// If the hub refuses or cannot be reached, and when the repository has no such split, is cut into subsets, or has it in
    /// files of several formats.
    pub fn fetch(&self, options: &HubOptions) -> Result<SplitFiles, HuggingFaceError> {
        // A commit that is here does not change: nobody needs to be asked for it.
        if self.revision.as_deref().is_some_and(is_hash) {
            let cached = self.find(&HubOptions { offline: true, ..options.clone() });
            if cached.is_ok() || options.offline {
                return cached;
            }
        }
        self.find(options)
    }

    fn find(&self, options: &HubOptions) -> Result<SplitFiles, HuggingFaceError> {
        let kind = RepositoryKind::DataSet;
        let repository = HubRepository::open(kind, &self.id, self.revision.as_deref(), options)?;
        let names = repository.listing()?.ok_or_else(|| HuggingFaceError::Hub {
            id: self.id.clone(),
            problem: format!(
                "which files it has is not known without the hub; fetch it once while it can be reached, or name the files that \
                 are here, below {}",
                repository.snapshot().display()
            ),
        })?;
        let card = match names.iter().any(|name| name == CARD) {
            true => Card::parse(&self.text(&repository, CARD)?),
            false => Ok(Card::default()),
        };
        let wrong = |problem| HuggingFaceError::DataSet { id: self.id.clone(), problem };
        let chosen = card.and_then(|card| choose(&names, &card, &self.split)).map_err(wrong)?;
        let files = chosen.iter().map(|name| self.file(&repository, name));
        let files = files.collect::<Result<_, _>>()?;
        Ok(SplitFiles { commit: repository.commit().to_owned(), files, folder: repository.snapshot() })
    }

    fn text(&self, repository: &HubRepository, name: &str) -> Result<String, HuggingFaceError> {
        let path = self.file(repository, name)?;
        Ok(fs::read_to_string(&path).context("read", &path)?)
    }

    fn file(&self, repository: &HubRepository, name: &str) -> Result<PathBuf, HuggingFaceError> {
        repository.fetch(name)?;
        let path = repository.snapshot().join(name);
        if path.is_file() {
            return Ok(path);
        }
        let problem = format!("{name} is not in the cache; fetch it once while the hub can be reached");
        Err(HuggingFaceError::Hub { id: self.id.clone(), problem })
    }
}

/// What a card says in front of its text.
#[derive(Debug, Default, Deserialize)]
struct Card {
    #[serde(default)]
    configs: Vec<Subset>,
}

#[derive(Debug, Deserialize)]
struct Subset {
    config_name: Option<String>,
    data_files: Option<Entries>,
    data_dir: Option<String>,
    #[serde(default)]
    default: bool,
}

/// One or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Entries {
    One(String),
    Several(Vec<Entry>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Entry {
    Pattern(String),
    Split { split: String, path: Patterns },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Several(Vec<String>),
}

impl Card {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.replace("\r\n", "\n");
        let front = text.strip_prefix("---\n").and_then(|text| Some(text.split_once("\n---")?.0));
        match front {
            None => Ok(Self::default()),
            Some(front) => serde_saphyr::from_str::<Option<Self>>(front)
                .map(Option::unwrap_or_default)
                .map_err(|error| format!("its {CARD} cannot be understood: {}", error.without_snippet())),
        }
    }

    /// The subset that is meant when none is named.
    fn subset(&self) -> Result<Option<&Subset>, String> {
        let is_default =
            |subset: &&Subset| subset.default || subset.config_name.as_deref().unwrap_or(DEFAULT) == DEFAULT;
        match &self.configs[..] {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            several => several.iter().find(is_default).map(Some).ok_or_else(|| {
                let names: Vec<_> = several.iter().filter_map(|subset| subset.config_name.as_deref()).collect();
                format!(
                    "the data set is cut into subsets ({}) and none of them is the default; fetch the files of the one that is \
                     wanted, and name those",
                    names.join(", ")
                )
            }),
        }
    }
}

impl Subset {
    /// The patterns of a split, where the card lists files, and all splits.
    fn listed(&self, split: &str) -> Option<(Vec<&str>, BTreeSet<&str>)> {
        let entries: Vec<(&str, Vec<&str>)> = match self.data_files.as_ref()? {
            Entries::One(pattern) => vec![("train", vec![pattern])],
            Entries::Several(entries) => entries.iter().map(Entry::patterns).collect(),
        };
        let splits = entries.iter().map(|(split, _)| *split).collect();
        let of_split = entries.into_iter().filter(|(name, _)| *name == split);
        Some((of_split.flat_map(|(_, patterns)| patterns).collect(), splits))
    }
}

impl Entry {
    fn patterns(&self) -> (&str, Vec<&str>) {
        match self {
            Self::Pattern(pattern) => ("train", vec![pattern]),
            Self::Split { split, path: Patterns::One(pattern) } => (split, vec![pattern]),
            Self::Split { split, path: Patterns::Several(patterns) } => {
                (split, patterns.iter().map(String::as_str).collect())
            }
        }
    }
}

/// The files of a split; else what keeps them from being found.
fn choose(names: &[String], card: &Card, split: &str) -> Result<Vec<String>, String> {
    let subset = card.subset()?;
    let folder = subset.and_then(|subset| subset.data_dir.as_deref());
    let folder = folder.map(|folder| folder.trim_start_matches("./").trim_matches('/'));
    let folder = folder.filter(|folder| !["", "."].contains(folder));
    let folder = folder.map_or(String::new(), |folder| format!("{folder}/"));
    let below: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(&folder)).collect();
    let (chosen, splits) = match subset.and_then(|subset| subset.listed(split)) {
        Some((patterns, splits)) => (matching(&below, &patterns)?, splits),
        None => by_name(&below, split),
    };
    let mut endings: Vec<_> = chosen.iter().filter_map(|name| ending(name)).collect();
    endings.sort_unstable();
    endings.dedup();
    match endings.len() {
        1 => Ok(chosen.iter().map(|name| format!("{folder}{name}")).collect()),
        0 if splits.contains(split) => Err(format!(
            "its split {split} has no file that can be read: .{} are, also packed as .gz or .zst",
            ENDINGS.join(", .")
        )),
        0 => {
            let splits: Vec<_> = splits.into_iter().collect();
            let there = if splits.is_empty() { "no files of data".to_owned() } else { splits.join(", ") };
            Err(format!("there is no split {split}; there are: {there}"))
        }
        _ => Err(format!(
            "its split {split} has files of several formats (.{}), which may be the same rows; fetch those that are wanted, and \
             name them",
            endings.join(", .")
        )),
    }
}

/// The names that any of the patterns means.
fn matching<'a>(names: &[&'a str], patterns: &[&str]) -> Result<Vec<&'a str>, String> {
    // A star stays within a folder.
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
    let patterns = patterns.iter().map(|pattern| {
        let wrong = |error| format!("its {CARD} has a pattern {pattern:?} that is none: {error}");
        Pattern::new(pattern.trim_start_matches("./")).map_err(wrong)
    });
    let patterns = patterns.collect::<Result<Vec<_>, _>>()?;
    let meant = |name: &&&str| patterns.iter().any(|pattern| pattern.matches_with(name, options));
    Ok(names.iter().filter(meant).copied().filter(|name| ending(name).is_some()).collect())
}

/// The files of a split by what files are called, and all splits that are found so. The first rule that any file follows is the
/// rule, as the `datasets` library has it.
fn by_name<'a>(names: &[&'a str], split: &str) -> (Vec<&'a str>, BTreeSet<&'a str>) {
    let is_data = |name: &&str| ending(name).is_some() && !is_of_tools(name);
    let has_rows = names.iter().copied().filter(is_data).any(|name| ending(name) != Some("txt"));
    // Texts beside rows say something about them.
    let counts = move |name: &&str| !has_rows || ending(name) != Some("txt");
    let data = || names.iter().copied().filter(is_data).filter(counts);
    let by_words = |part: fn(&str) -> &str| {
        let told = data().flat_map(|name| words(part(name)).into_iter().map(move |split| (split, name)));
        told.collect::<Vec<_>>()
    };
    let rules = [
        data().filter_map(|name| Some((numbered(name)?, name))).collect(),
        by_words(|name| name.rsplit_once('/').map_or("", |(folders, _)| folders)),
        by_words(|name| name.rsplit_once('/').map_or(name, |(_, file)| file)),
        // Files that nothing tells apart are all for training.
        data().map(|name| ("train", name)).collect(),
    ];
    let told = rules.into_iter().find(|told| !told.is_empty()).unwrap_or_default();
    let splits = told.iter().map(|(split, _)| *split).collect();
    (told.into_iter().filter(|(name, _)| *name == split).map(|(_, name)| name).collect(), splits)
}

/// Whether a file belongs to tools: by its own name, or because it or a folder that it is in begins with a dot or two underscores.
fn is_of_tools(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    TOOLS.contains(&file) || name.split('/').any(|part| part.starts_with('.') || part.starts_with("__"))
}

/// The split of `data/SPLIT-00000-of-00002…`.
fn numbered(name: &str) -> Option<&str> {
    let (split, rest) = name.strip_prefix("data/")?.split_once("-of-")?;
    let (split, number) = split.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && rest.get(..5).is_some_and(is_number) && !split.contains('/')).then_some(split)
}

/// The splits that words in the name of a file, or the names of folders, tell.
fn words(text: &str) -> Vec<&'static str> {
    let words: Vec<_> = text.split(|letter: char| "-._ /0123456789".contains(letter)).collect();
    let told = WORDS.iter().filter(|(_, known)| known.iter().any(|known| words.contains(known)));
    told.map(|(split, _)| *split).collect()
}

/// What a file of data is written in, by its name.
fn ending(name: &str) -> Option<&'static str> {
    let name = PACKED.iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(name);
    let ending = name.rsplit_once('.')?.1;
    ENDINGS.into_iter().find(|known| ending.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chosen(names: &[&str], card: &str, split: &str) -> Result<Vec<String>, String> {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        choose(&names, &Card::parse(card)?, split)
    }

    #[test]
    fn splits_are_read_from_their_text() {
        let split = HubSplit::parse("databricks/databricks-dolly-15k/train").unwrap();
        assert_eq!((split.id.as_str(), split.split.as_str()), ("databricks/databricks-dolly-15k", "train"));
        let split = HubSplit::parse("entity/set@v1.0/test").unwrap();
        assert_eq!((split.id.as_str(), split.revision.as_deref()), ("entity/set", Some("v1.0")));
        for text in
            ["train", "set/train", "a/b/c/d", "./a/b", "/a/b/c", "a/b/train.jsonl", "a/b@/train", "a/b/"]
        {
            assert_eq!(HubSplit::parse(text), None, "{text}");
        }
    }

    #[test]
    fn names_tell_the_split() {
        let numbered =
            ["README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];
        assert_eq!(chosen(&numbered, "", "train").unwrap(), numbered[1..]);
        assert!(
            chosen(&numbered, "", "test").unwrap_err().contains("there is no split test; there are: train")
        );
        let in_files = ["a/train2.jsonl.gz", "info.json", "eval-set.jsonl.gz", "my_train_test.jsonl.gz"];
        assert_eq!(chosen(&in_files, "", "train").unwrap(), [in_files[0], in_files[3]]);
        assert_eq!(chosen(&in_files, "", "test").unwrap(), [in_files[2], in_files[3]]);
        let in_folders =
            ["train/test.jsonl", "x/dev/b.jsonl", "test.jsonl", ".x/train/c.jsonl", "__x/train/d.jsonl"];
        assert_eq!(chosen(&in_folders, "", "train").unwrap(), in_folders[..1]);
        assert_eq!(chosen(&in_folders, "", "validation").unwrap(), in_folders[1..2]);
        assert!(chosen(&in_folders, "", "test").unwrap_err().contains("there are: train, validation"));
        let beside = ["a.json", "dataset_infos.json", "LICENSE.txt", "x/config.json"];
        assert_eq!(chosen(&beside, "", "train").unwrap(), ["a.json"]);
        let told_apart_by_nothing = ["b.csv", "constraint.csv", "split=train/Test.csv"];
        assert_eq!(chosen(&told_apart_by_nothing, "", "train").unwrap(), told_apart_by_nothing);
        assert!(
            chosen(&["b.csv", "c.parquet"], "", "train")
                .unwrap_err()
                .contains("several formats (.csv, .parquet)")
        );
        assert!(chosen(&["x.py"], "", "train").unwrap_err().contains("there are: no files of data"));
    }

    #[test]
    fn the_card_tells_the_split() {
        let names = ["README.md", "v2/a.parquet", "v2/x/b.parquet", "v1/a.parquet", "held.parquet"];
        let card = "---\nlicense: apache-2.0\nconfigs:\n- config_name: only\n  data_files:\n  - split: train\n    path: v2/*\n  \
                    - split: test\n    path: [held.parquet]\n---\n# Text\n";
        assert_eq!(chosen(&names, card, "train").unwrap(), ["v2/a.parquet"]);
        assert_eq!(chosen(&names, card, "test").unwrap(), ["held.parquet"]);
        assert!(chosen(&names, card, "dev").unwrap_err().contains("there are: test, train"));
        let one = "---\nconfigs:\n- data_files: \"v2/**/*.parquet\"\n---\n";
        assert_eq!(chosen(&names, one, "train").unwrap(), ["v2/a.parquet", "v2/x/b.parquet"]);
        let folder = "---\nconfigs:\n- data_dir: v1\n---\n";
        assert_eq!(chosen(&names, folder, "train").unwrap(), ["v1/a.parquet"]);
        let nothing = "---\nconfigs:\n- data_files: missing/*.parquet\n---\n";
        assert!(
            chosen(&names, nothing, "train")
                .unwrap_err()
                .contains("split train has no file that can be read")
        );
        let subsets =
            "---\nconfigs:\n- config_name: en\n  data_dir: v1\n- config_name: de\n  data_dir: v2\n---\n";
        assert!(chosen(&names, subsets, "train").unwrap_err().contains("cut into subsets (en, de)"));
        let default = subsets.replace("data_dir: v2", "data_dir: v2\n  default: true");
        assert_eq!(chosen(&names, &default, "train").unwrap(), ["v2/a.parquet", "v2/x/b.parquet"]);
        assert!(
            chosen(&names, "---\nconfigs: 3\n---\n", "train")
                .unwrap_err()
                .contains("README.md cannot be understood")
        );
        assert_eq!(chosen(&names[3..4], "no front matter", "train").unwrap(), ["v1/a.parquet"]);
        assert_eq!(chosen(&names[3..4], "---\n# only a comment\n---\n", "train").unwrap(), ["v1/a.parquet"]);
    }
}
