//! Two runs side by side: the keys in which their run files differ, and their curves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};
use tessera_files::IoContext;

use crate::error::TrackError;
use crate::metrics::{names, read_metrics};
use crate::runs::{RunSummary, read_run};

/// The metrics whose curves are compared; those of training lines are at their batch, an evaluation's at the batches done.
pub const COMPARED: [&str; 4] =
    [names::LOSS, names::EVAL_CROSS_ENTROPY, names::EVAL_ACCURACY, names::TOKENS_PER_SECOND];

/// What tells two runs apart.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Both runs.
    pub runs: [RunSummary; 2],
    /// The keys of `run.yaml` with other values, or that one of them does not have.
    pub settings: Vec<DifferentSetting>,
    /// The points (batch, value) of each metric that one of them has.
    pub curves: BTreeMap<&'static str, [Vec<(u64, f64)>; 2]>,
}

/// A key with another value in each run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DifferentSetting {
    /// The key, with dots between levels.
    pub key: String,
    /// Its values; `null` where the run has none.
    pub values: [Value; 2],
}

/// Reads and compares the runs in two folders.
///
/// # Errors
/// [`TrackError::NotARun`] for a folder without events; a broken line; a `run.yaml` that is missing or no YAML.
pub fn compare_runs(folders: [&Path; 2]) -> Result<Comparison, TrackError> {
    let [first, second] = folders;
    let runs = [read_run(first)?, read_run(second)?];
    let settings = different([read_settings(first)?, read_settings(second)?]);
    let mut curves = BTreeMap::new();
    for (index, folder) in folders.into_iter().enumerate() {
        for line in read_metrics(folder)? {
            let line = line?;
            let Some(batch) = line.batch() else { continue };
            for name in COMPARED {
                if let Some(value) = line.number(name) {
                    let both: &mut [Vec<(u64, f64)>; 2] = curves.entry(name).or_default();
                    both[index].push((batch, value));
                }
            }
        }
    }
    Ok(Comparison { runs, settings, curves })
}

/// Keys of which each run has its own by nature.
const OWN_KEYS: [&str; 1] = ["run_name"];

fn different(settings: [Map<String, Value>; 2]) -> Vec<DifferentSetting> {
    let [first, second] = settings.map(|settings| flattened(&settings));
    let further = second.iter().filter(|(key, _)| !first.contains_key(*key));
    let keys: Vec<&String> = first.iter().chain(further).map(|(key, _)| key).collect();
    let value = |settings: &Map<String, Value>, key: &str| settings.get(key).cloned().unwrap_or_default();
    keys.into_iter()
        .filter(|key| !OWN_KEYS.contains(&key.as_str()))
        .map(|key| DifferentSetting { key: key.clone(), values: [value(&first, key), value(&second, key)] })
        .filter(|setting| setting.values[0] != setting.values[1])
        .collect()
}

/// Maps within maps as one map whose keys have dots: `optimizer.name`.
pub fn flattened(settings: &Map<String, Value>) -> Map<String, Value> {
    let mut flat = Map::new();
    for (key, value) in settings {
        match value {
            Value::Object(inner) => {
                let inner = flattened(inner).into_iter();
                flat.extend(inner.map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            value => {
                flat.insert(key.clone(), value.clone());
            }
        }
    }
    flat
}

fn read_settings(run_folder: &Path) -> Result<Map<String, Value>, TrackError> {
    let path = run_folder.join("run.yaml");
    let text = fs::read_to_string(&path).context("read", &path)?;
    serde_saphyr::from_str(&text)
        .map_err(|error| TrackError::RunFile { path, reason: error.without_snippet().to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::events::{EventLog, EventType};
    use crate::metrics::{MetricsLog, Record};

    fn run(folder: &Path, yaml: &str, losses: &[f64]) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("run.yaml"), yaml).unwrap();
        EventLog::open(folder).unwrap().record(EventType::Created, "", &[]).unwrap();
        let mut metrics = MetricsLog::open(folder, None).unwrap();
        for (batch, &loss) in losses.iter().enumerate() {
            metrics.append(&Record::training(batch as u64, loss)).unwrap();
        }
        metrics.append(&Record::at(losses.len() as u64).with(names::EVAL_ACCURACY, 0.5)).unwrap();
    }

    #[test]
    fn differing_keys_and_both_curves_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        run(&a, "run_name: a\nseed: 1\noptimizer: {name: adamw, eps: 1.0e-8}\ndevices: cpu\n", &[3.0, 2.0]);
        run(&b, "run_name: b\nseed: 1\noptimizer: {name: lion}\nshuffle: true\ndevices: cpu\n", &[3.0, 2.5]);
        let comparison = compare_runs([&a, &b]).unwrap();
        let found: Vec<_> = comparison.settings.iter().map(|s| (s.key.as_str(), s.values.clone())).collect();
        assert_eq!(
            found,
            [
                ("optimizer.name", [json!("adamw"), json!("lion")]),
                ("optimizer.eps", [json!(1.0e-8), Value::Null]),
                ("shuffle", [Value::Null, json!(true)]),
            ]
        );
        assert_eq!(comparison.curves[names::LOSS], [vec![(0, 3.0), (1, 2.0)], vec![(0, 3.0), (1, 2.5)]]);
        assert_eq!(comparison.curves[names::EVAL_ACCURACY], [vec![(2, 0.5)], vec![(2, 0.5)]]);
        fs::write(b.join("run.yaml"), "{").unwrap();
        assert!(compare_runs([&a, &b]).unwrap_err().to_string().contains("run.yaml is no YAML"));
    }
}
