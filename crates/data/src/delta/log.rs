//! What the names of a log's files say: which versions there are, and which files tell of one.
//!
//! Each version has a file of its own with what it changes. From time to time a checkpoint sums up all before it, in one file or
//! several, after which the earlier ones may be removed. So a version needs a checkpoint, or the beginning, and every file
//! from there on.

use std::collections::{BTreeMap, BTreeSet};

use super::{LOG_FOLDER, TableProblem};

/// Digits of a version in a name.
const VERSION: usize = 20;
/// The folder of what newer checkpoints are made of.
const SIDECARS: &str = "_delta_log/_sidecars/";

/// The part of a log that tells of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The version.
    pub version: u64,
    /// The newest version that there is.
    pub newest: u64,
    /// The files that tell of it, of those that were asked about.
    pub names: Vec<String>,
}

/// What a log consists of, by version.
#[derive(Default)]
struct Parts<'names> {
    commits: BTreeMap<u64, &'names str>,
    /// Of each version the checkpoints, by their kind and the number of their files.
    checkpoints: BTreeMap<u64, BTreeMap<(&'names str, usize), Vec<&'names str>>>,
    sidecars: Vec<&'names str>,
}

impl Log {
    /// Chooses what is needed for the version that is `wanted`, or the newest, of names of files below a table's folder.
    ///
    /// # Errors
    /// When there is no log, or it does not have the version.
    pub fn choose(names: &[String], wanted: Option<u64>) -> Result<Self, TableProblem> {
        let mut parts = Parts::default();
        names.iter().for_each(|name| parts.add(name));
        let whole = parts.whole_checkpoints();
        let newest = parts.commits.keys().chain(&whole).max().copied().ok_or(TableProblem::NoTable)?;
        let version = wanted.unwrap_or(newest);
        let first = whole.range(..=version).next_back().copied();
        let beginning = parts.commits.contains_key(&0).then_some(0);
        let Some(oldest) = beginning.or(whole.first().copied()) else {
            return Err(TableProblem::Gap { wanted: version, missing: 0 });
        };
        if version > newest || version < oldest {
            return Err(TableProblem::NoVersion { wanted: version, oldest, newest });
        }
        // Behind the last version that there can be none is needed.
        let from = first.map_or(Some(0), |checkpoint| checkpoint.checked_add(1));
        let missing = |from| (from..=version).find(|number| !parts.commits.contains_key(number));
        if let Some(missing) = from.and_then(missing) {
            return Err(TableProblem::Gap { wanted: version, missing });
        }
        let mut chosen: Vec<_> =
            parts.commits.range(first.unwrap_or(0)..=version).map(|(_, &name)| name).collect();
        if let Some(first) = first {
            chosen.extend(parts.checkpoints.get(&first).into_iter().flat_map(BTreeMap::values).flatten());
            chosen.extend(&parts.sidecars);
        }
        Ok(Self { version, newest, names: chosen.into_iter().map(str::to_owned).collect() })
    }
}

impl<'names> Parts<'names> {
    fn add(&mut self, path: &'names str) {
        if path.starts_with(SIDECARS) {
            self.sidecars.push(path);
            return;
        }
        let name = path.strip_prefix(LOG_FOLDER).and_then(|name| name.strip_prefix('/'));
        let Some((number, rest)) = name.and_then(|name| name.split_once('.')) else { return };
        let digits = number.len() == VERSION && number.bytes().all(|byte| byte.is_ascii_digit());
        let Some(version) = number.parse().ok().filter(|_| digits) else { return };
        let checkpoint = match rest.split('.').collect::<Vec<_>>()[..] {
            ["json"] => {
                self.commits.insert(version, path);
                return;
            }
            ["checkpoint", "parquet"] => ("", 1),
            ["checkpoint", _, of, "parquet"] => match of.parse() {
                Ok(count) => ("parts", count),
                Err(_) => return,
            },
            ["checkpoint", identity, "parquet" | "json"] => (identity, 1),
            _ => return,
        };
        self.checkpoints.entry(version).or_default().entry(checkpoint).or_default().push(path);
    }

    /// The versions with a checkpoint of which all files are there.
    fn whole_checkpoints(&self) -> BTreeSet<u64> {
        let whole = self
            .checkpoints
            .iter()
            .filter(|(_, kinds)| kinds.iter().any(|((_, count), files)| files.len() == *count));
        whole.map(|(&version, _)| version).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn commit(version: u64) -> String {
        format!("_delta_log/{version:020}.json")
    }

    fn checkpoint(version: u64, kind: &str) -> String {
        format!("_delta_log/{version:020}.checkpoint.{kind}")
    }

    #[test]
    fn a_version_needs_a_checkpoint_and_what_follows() {
        let mut names: Vec<_> = (0..=7).map(commit).collect();
        names.extend([
            "part-0.parquet".to_owned(),
            "_delta_log/_last_checkpoint".to_owned(),
            "_delta_log/00000000000000000003.crc".to_owned(),
            "sub/_delta_log/00000000000000000009.json".to_owned(),
        ]);
        let all = Log::choose(&names, None).unwrap();
        assert_eq!((all.version, all.newest, all.names.len()), (7, 7, 8));
        assert_eq!(Log::choose(&names, Some(2)).unwrap().names, (0..=2).map(commit).collect::<Vec<_>>());

        // Of a checkpoint in parts all must be there.
        names.push(checkpoint(5, "0000000001.0000000002.parquet"));
        assert_eq!(Log::choose(&names, Some(6)).unwrap().names.len(), 7);
        names.push(checkpoint(5, "0000000002.0000000002.parquet"));
        assert_eq!(Log::choose(&names, Some(6)).unwrap().names.len(), 4);
        assert_eq!(Log::choose(&names, Some(4)).unwrap().names.len(), 5);

        names.retain(|name| *name != commit(0) && *name != commit(1));
        let kinds = ["parquet", "1f6b0d84-0000-4000-8000-000000000000.json"];
        for (version, kind) in [3, 6].into_iter().zip(kinds) {
            names.push(checkpoint(version, kind));
        }
        names.push(format!("{SIDECARS}x.parquet"));
        let log = Log::choose(&names, Some(7)).unwrap();
        assert_eq!(
            log.names,
            [commit(6), commit(7), checkpoint(6, kinds[1]), format!("{SIDECARS}x.parquet")]
        );
    }

    #[test]
    fn versions_that_cannot_be_had_are_told_with_those_that_can() {
        assert_eq!(Log::choose(&["a.parquet".to_owned()], None), Err(TableProblem::NoTable));
        let mut names: Vec<_> = [3, 4, 6].map(commit).into();
        names.push(checkpoint(3, "parquet"));
        let refused = |wanted| TableProblem::NoVersion { wanted, oldest: 3, newest: 6 };
        for wanted in [0, 2, 7] {
            assert_eq!(Log::choose(&names, Some(wanted)), Err(refused(wanted)));
        }
        assert_eq!(Log::choose(&names, None), Err(TableProblem::Gap { wanted: 6, missing: 5 }));
        assert_eq!(Log::choose(&names, Some(4)).unwrap().version, 4);
    }

    #[test]
    fn without_a_checkpoint_the_beginning_is_missing() {
        let of_two = checkpoint(6, "0000000001.0000000002.parquet");
        for names in [vec![commit(6)], vec![commit(5), commit(6)], vec![commit(6), of_two]] {
            for wanted in [None, Some(6)] {
                let refused = Err(TableProblem::Gap { wanted: 6, missing: 0 });
                assert_eq!(Log::choose(&names, wanted), refused, "{names:?}");
            }
        }
        let names = [commit(0), commit(1)];
        let refused = Err(TableProblem::NoVersion { wanted: 2, oldest: 0, newest: 1 });
        assert_eq!(Log::choose(&names, Some(2)), refused);
    }

    #[test]
    fn the_greatest_number_is_a_version_too() {
        let names = [checkpoint(u64::MAX, "parquet")];
        let log = Log::choose(&names, None).unwrap();
        assert_eq!((log.version, log.names), (u64::MAX, names.to_vec()));
        let names = [commit(0), commit(u64::MAX)];
        let refused = Err(TableProblem::Gap { wanted: u64::MAX, missing: 1 });
        assert_eq!(Log::choose(&names, None), refused);
    }
}
