//! How fast training goes: sums over a sliding window of steps, with values from the first step on.
//!
//! Composer's monitor says nothing until 101 batches are done, which is longer than many fine-tunings last. Here
//! the window simply begins small. The first step after a start also pays for what happens once (weights paged
//! in from disk, fresh memory touched, threads and kernels loaded), so it counts only while it is the only one.
//! A resumed run begins with an empty window: speed belongs to a process on a machine, not to the run.

use std::collections::VecDeque;
use std::time::Duration;

use crate::metrics::{Record, names};

/// The most steps in the window, as in Composer.
const WINDOW: usize = 100;

/// What one training step did, over all devices.
#[derive(Debug, Clone, Copy)]
pub struct StepWork {
    /// The step's own time: without evaluation and with what it waited for a snapshot.
    pub elapsed: Duration,
    /// Tokens that are not padding.
    pub tokens: u64,
    /// Packed rows.
    pub samples: u64,
    /// Floating-point operations that the model's formula asks for; recomputation is not counted.
    pub flops: f64,
}

/// Speeds over the window, over all devices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Batches in a second.
    pub batches: f64,
    /// Tokens in a second.
    pub tokens: f64,
    /// Packed rows in a second.
    pub samples: f64,
    /// Floating-point operations in a second.
    pub flops: f64,
    /// Share of the devices' peak, 0 to 1; `None` where the peak is unknown.
    pub mfu: Option<f64>,
    devices: f64,
}

impl Speed {
    /// How long `batches` more batches take at this speed, evaluation and saving not counted.
    pub fn remaining(&self, batches: u64) -> Duration {
        Duration::try_from_secs_f64(batches as f64 / self.batches).unwrap_or(Duration::MAX)
    }

    /// Adds the speeds to a training record, in all and for each device.
    #[must_use]
    pub fn write_to(&self, record: Record) -> Record {
        let record = record
            .with(names::BATCHES_PER_SECOND, self.batches)
            .with(names::SAMPLES_PER_SECOND, self.samples)
            .with(names::TOKENS_PER_SECOND, self.tokens)
            .with(names::FLOPS_PER_SECOND, self.flops)
            .with(names::DEVICE_BATCHES_PER_SECOND, self.batches / self.devices)
            .with(names::DEVICE_SAMPLES_PER_SECOND, self.samples / self.devices)
            .with(names::DEVICE_TOKENS_PER_SECOND, self.tokens / self.devices)
            .with(names::DEVICE_FLOPS_PER_SECOND, self.flops / self.devices);
        match self.mfu {
            Some(mfu) => record.with(names::MFU, mfu),
            None => record,
        }
    }
}

/// Measures the speed of the last [`WINDOW`] steps of this process.
#[derive(Debug, Clone)]
pub struct SpeedMonitor {
    devices: f64,
    device_peak_flops: Option<f64>,
    window: VecDeque<StepWork>,
    window_starts_cold: bool,
}

impl SpeedMonitor {
    /// A monitor of a run on `devices` devices (at least 1), each of which can do `device_peak_flops`
    /// floating-point operations in a second, if that is known.
    pub fn new(devices: usize, device_peak_flops: Option<f64>) -> Self {
        Self {
            devices: devices.max(1) as f64,
            device_peak_flops,
            window: VecDeque::with_capacity(WINDOW),
            window_starts_cold: true,
        }
    }

    /// Takes in a step that has just ended and gives the speed over the window with it.
    pub fn observe(&mut self, step: StepWork) -> Speed {
        let cold_is_alone = self.window_starts_cold && self.window.len() == 1;
        if cold_is_alone || self.window.len() == WINDOW {
            self.window.pop_front();
            self.window_starts_cold = false;
        }
        self.window.push_back(step);
        self.speed()
    }

    fn speed(&self) -> Speed {
        // A step shorter than the clock can tell took at least its smallest unit.
        let elapsed: Duration = self.window.iter().map(|step| step.elapsed).sum();
        let seconds = elapsed.max(Duration::from_nanos(1)).as_secs_f64();
        let flops = self.window.iter().map(|step| step.flops).sum::<f64>() / seconds;
        Speed {
            batches: self.window.len() as f64 / seconds,
            tokens: self.window.iter().map(|step| step.tokens).sum::<u64>() as f64 / seconds,
            samples: self.window.iter().map(|step| step.samples).sum::<u64>() as f64 / seconds,
            flops,
            mfu: self.device_peak_flops.map(|peak| flops / (peak * self.devices)),
            devices: self.devices,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn step(seconds: f64) -> StepWork {
        StepWork { elapsed: Duration::from_secs_f64(seconds), tokens: 1000, samples: 8, flops: 6e9 }
    }

    #[test]
    fn the_first_step_has_a_speed_and_leaves_with_the_second() {
        let mut monitor = SpeedMonitor::new(2, Some(1e10));
        let first = monitor.observe(step(10.0));
        assert_eq!((first.tokens, first.batches, first.samples), (100.0, 0.1, 0.8));
        assert_eq!((first.flops, first.mfu), (6e8, Some(0.03)));
        assert_eq!(monitor.observe(step(2.0)).tokens, 500.0);
        assert_eq!(monitor.observe(step(3.0)).tokens, 400.0);
        assert_eq!(monitor.observe(step(5.0)).remaining(3), Duration::from_secs(10));
    }

    #[test]
    fn the_window_forgets_steps_older_than_a_hundred() {
        let mut monitor = SpeedMonitor::new(1, None);
        for _ in 0..101 {
            monitor.observe(step(4.0));
        }
        for _ in 0..99 {
            monitor.observe(step(1.0));
        }
        assert_eq!(monitor.observe(step(1.0)).batches, 1.0);
        assert_eq!(monitor.window.len(), WINDOW);
    }

    #[test]
    fn speeds_are_written_in_all_and_for_each_device() {
        let speed = SpeedMonitor::new(4, None).observe(step(1.0));
        let record = speed.write_to(Record::training(0, 1.0_f32));
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains(r#""throughput/tokens_per_sec":1000.0"#), "{text}");
        assert!(text.contains(r#""throughput/device/tokens_per_sec":250.0"#), "{text}");
        assert!(!text.contains("mfu"), "{text}");
    }

    #[test]
    fn a_step_of_no_time_is_no_division_by_zero() {
        let speed = SpeedMonitor::new(0, Some(1.0)).observe(step(0.0));
        assert!(speed.tokens.is_finite() && speed.mfu.unwrap().is_finite());
        assert_eq!(speed.remaining(0), Duration::ZERO);
    }
}
