//! A sweep: one run file, and every combination of some values laid over it.
//!
//! A combination's run is named by its values, so the runs that are there already are found again when the sweep's file is
//! given more values or another order.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use tessera_files::{Digest, Sha256, sha256_hex};

use crate::elsewhere;
use crate::error::TrainError;
use crate::spec::RunSpec;

/// The most runs of one sweep: a slip in its file should not begin a year's work.
const MOST_RUNS: usize = 1000;

/// A sweep's file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SweepFile {
    run: String,
    name: Option<String>,
    vary: Map<String, Value>,
}

/// A sweep whose every run can be read.
#[derive(Debug)]
pub struct Sweep {
    /// The run file that all have in common.
    pub run_file: PathBuf,
    /// The keys that vary.
    pub keys: Vec<String>,
    /// The runs; the last key varies first.
    pub runs: Vec<SweepRun>,
}

/// One combination.
#[derive(Debug)]
pub struct SweepRun {
    /// The values of the keys.
    pub values: Vec<Value>,
    /// They and the run's name, as they are laid over the run file.
    pub overrides: Vec<String>,
    /// The run's folder.
    pub folder: PathBuf,
}

impl Sweep {
    /// Reads a sweep's file, and the run file with each combination laid over it.
    ///
    /// # Errors
    /// For what is wrong with the sweep's file or with any of its runs.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        let wrong = |reason: String| TrainError::Sweep { path: path.to_owned(), reason };
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let file: SweepFile =
            serde_saphyr::from_str(&text).map_err(|error| wrong(error.without_snippet().to_string()))?;
        let mut combinations: Vec<Vec<Value>> = vec![Vec::new()];
        for (key, values) in &file.vary {
            let values = match values {
                Value::Array(values) if !values.is_empty() && key != "run_name" => values,
                _ => {
                    return Err(wrong(format!(
                        "vary.{key}: expected a list of values of a key of the run file"
                    )));
                }
            };
            let with = |before: &Vec<Value>, value: &Value| {
                [before.as_slice(), std::slice::from_ref(value)].concat()
            };
            combinations = combinations
                .iter()
                .flat_map(|before| values.iter().map(|value| with(before, value)))
                .collect();
            if combinations.len() > MOST_RUNS {
                return Err(wrong(format!("more than {MOST_RUNS} combinations; vary fewer keys at once")));
            }
        }
        if file.vary.is_empty() {
            return Err(wrong("vary: expected keys, each with a list of values".to_owned()));
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = file.name.unwrap_or_else(|| stem.into_owned());
        let keys: Vec<String> = file.vary.keys().cloned().collect();
        let run_file = PathBuf::from(file.run);
        let runs = combinations.into_iter().map(|values| SweepRun::load(&run_file, &name, &keys, values));
        let runs = runs.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { run_file, keys, runs })
    }
}

impl SweepRun {
    fn load(run_file: &Path, name: &str, keys: &[String], values: Vec<Value>) -> Result<Self, TrainError> {
        // JSON is YAML, in which overrides are written.
        let mut overrides: Vec<_> =
            keys.iter().zip(&values).map(|(key, value)| format!("{key}={value}")).collect();
        let mut sorted = overrides.clone();
        sorted.sort();
        let hash = sha256_hex(Sha256::new_with_prefix(sorted.join("\n")));
        let run_name = format!("{name}-{}", &hash[..8]);
        overrides.push(format!("run_name={}", Value::from(run_name.as_str())));
        let spec = RunSpec::load(run_file, &overrides)?;
        let save_folder = spec.save_folder.unwrap_or_else(|| elsewhere::DEFAULT_FOLDER.to_owned());
        Ok(Self { values, overrides, folder: elsewhere::local_folder(&save_folder).join(run_name) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn load(sweep: &str) -> Result<Sweep, TrainError> {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run.yaml");
        fs::write(&run, "model: m\ntrain_data_path: d.jsonl\n").unwrap();
        let path = folder.path().join("rates.yaml");
        fs::write(&path, sweep.replace("RUN", &run.display().to_string())).unwrap();
        Sweep::load(&path)
    }

    #[test]
    fn every_combination_is_a_run_with_a_name_of_its_own_that_lasts() {
        let sweep =
            load("run: RUN\nvary: {learning_rate: [1.0e-5, 2.0e-5], training_duration: [1ep, 3ep]}\n")
                .unwrap();
        assert_eq!(sweep.keys, ["learning_rate", "training_duration"]);
        let overrides: Vec<_> = sweep.runs.iter().map(|run| run.overrides[..2].join(" ")).collect();
        assert_eq!(overrides[1], "learning_rate=0.00001 training_duration=\"3ep\"");
        assert_eq!(overrides.len(), 4);
        let other = load("run: RUN\nvary: {training_duration: [3ep], learning_rate: [1.0e-5]}\n").unwrap();
        assert_eq!(other.runs[0].folder, sweep.runs[1].folder);
        assert_ne!(sweep.runs[0].folder, sweep.runs[1].folder);
        assert!(sweep.runs[0].folder.display().to_string().starts_with("runs/rates-"));
        let named = load("run: RUN\nname: a\nvary: {seed: [1]}\n").unwrap();
        assert!(named.runs[0].folder.display().to_string().starts_with("runs/a-"));
    }

    #[test]
    fn mistakes_are_found_before_the_first_run() {
        let cases = [
            ("vary: {seed: [1]}", "run"),
            ("run: RUN\nvary: {}", "vary: expected keys"),
            ("run: RUN\nvary: {seed: 1}", "vary.seed: expected a list"),
            ("run: RUN\nvary: {run_name: [a]}", "vary.run_name: expected a list"),
            ("run: RUN\nvaries: {seed: [1]}", "varies"),
            ("run: RUN\nvary: {sead: [1]}", "did you mean `seed`"),
            ("run: RUN\nvary: {seed: [1, x]}", "`seed`: found the text `x`"),
            ("run: nothing.yaml\nvary: {seed: [1]}", "cannot read nothing.yaml"),
        ];
        for (text, expected) in cases {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many = format!("run: RUN\nvary: {{seed: {:?}}}\n", (0..=MOST_RUNS).collect::<Vec<_>>());
        assert!(load(&many).unwrap_err().to_string().contains("more than 1000"));
    }
}
