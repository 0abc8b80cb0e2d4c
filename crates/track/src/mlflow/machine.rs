//! The machine's load under the names of MLflow's own system metrics.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;
use sysinfo::System;

use super::client::Metric;

/// The time between two samples, as MLflow's client has it.
const PERIOD: Duration = Duration::from_secs(10);
/// Samples that are kept while the server is away: an hour of them, the latest.
const MOST: usize = 360;

/// Takes samples, and keeps those that have not been told.
pub(super) struct Machine {
    system: System,
    last: Option<Instant>,
    samples: VecDeque<Vec<Metric>>,
}

impl Machine {
    /// `None` where the system does not tell.
    pub fn new() -> Option<Self> {
        Some(Self { system: System::new().ok()?, last: None, samples: VecDeque::new() })
    }

    /// Takes a sample if it is time for one; `number` counts them.
    pub fn look(&mut self, number: &mut u64, now: i64) {
        if self.last.is_some_and(|last| last.elapsed() < PERIOD) {
            return;
        }
        let is_first = self.last.is_none();
        self.last = Some(Instant::now());
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        // A processor's load is known between two looks only.
        let processor = (!is_first).then(|| f64::from(self.system.global_cpu_usage()));
        let (used, total) = (self.system.used_memory() as f64, self.system.total_memory().max(1) as f64);
        let values = [
            ("system/cpu_utilization_percentage", processor),
            ("system/system_memory_usage_megabytes", Some(used / 1e6)),
            ("system/system_memory_usage_percentage", Some(100.0 * used / total)),
        ];
        let metric = |(key, value): (&str, Option<f64>)| {
            Some(Metric { key: key.to_owned(), value: Value::from(value?), timestamp: now, step: *number })
        };
        self.samples.push_back(values.into_iter().filter_map(metric).collect());
        *number += 1;
        if self.samples.len() > MOST {
            self.samples.pop_front();
        }
    }

    /// The samples that were not taken yet, at most so many metrics.
    pub fn take(&mut self, most: usize) -> Vec<Metric> {
        let mut taken = Vec::new();
        while let Some(sample) = self.samples.front() {
            if taken.len() + sample.len() > most {
                break;
            }
            taken.extend(self.samples.pop_front().unwrap_or_default());
        }
        taken
    }
}
