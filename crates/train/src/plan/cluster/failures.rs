//! What failures cost, and how often to save.
//!
//! A run on many GPUs is stopped by the failure of any. Since the last checkpoint that was whole, work is lost; saving more
//! often loses less and costs more. Failures come at random, M seconds apart on average (exponentially distributed).
//!
//! Every τ seconds of training a copy is taken, for which the training stands δ seconds; L seconds later it is a
//! checkpoint. After a failure it takes R seconds until the run goes on. The k-th checkpoint since a restart is whole if
//! nothing fails for R + L + k(τ + δ) seconds, so a life of the run yields on average
//! Σₖ τ·exp(−(R + L + k(τ + δ))/M) = τ·exp(−(R + L)/M) / (exp((τ + δ)/M) − 1) seconds of training that are kept, out of M.
//! The τ that maximises it solves exp((τ + δ)/M)·(1 − τ/M) = 1; its first order is Young's √(2δM) (J. W. Young 1974,
//! Communications of the ACM 17(9); J. T. Daly 2006, Future Generation Computer Systems 22(3), section 3).

use serde::Serialize;
use tessera_ops::{OpError, ViewMut, random};

/// Failures that are simulated: enough to know the loss to a percent of itself.
const SIMULATED_FAILURES: usize = 100_000;
/// The seed of the simulation.
const SEED: u64 = 17;
/// Halvings of the range in which the best interval lies: down to the last bit.
const HALVINGS: usize = 100;

/// How a run fails, saves and restarts; all in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Failures {
    /// The mean time between failures of the whole run.
    pub mean_seconds: f64,
    /// What a checkpoint costs the training.
    pub stall_seconds: f64,
    /// How long it then takes until the checkpoint is whole. The next is begun after that only.
    pub save_seconds: f64,
    /// From a failure until the run goes on.
    pub restart_seconds: f64,
    /// A step: nothing is saved within one.
    pub step_seconds: f64,
}

/// How often to save, and what that comes to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Training between two checkpoints.
    pub seconds: f64,
    /// The same in batches.
    pub batches: u64,
    /// The share of the time that is lost to saving, restarting and work done twice; on average.
    pub expected_loss: f64,
    /// The same, in a simulation of many failures.
    pub simulated_loss: f64,
    /// Restarts of a day, on average.
    pub restarts_per_day: f64,
}

impl Failures {
    /// The interval that loses least.
    ///
    /// # Errors
    /// Never on a CPU.
    pub fn best_interval(&self) -> Result<Interval, OpError> {
        let least = (self.save_seconds / self.step_seconds).ceil().max(1.0);
        let batches = (self.best_seconds() / self.step_seconds).round().max(least);
        let seconds = batches * self.step_seconds;
        Ok(Interval {
            seconds,
            batches: batches as u64,
            expected_loss: self.expected_loss(seconds),
            simulated_loss: self.simulated_loss(seconds)?,
            restarts_per_day: 86_400.0 / self.mean_seconds,
        })
    }

    /// The τ that loses least, whether or not it leaves time to save.
    fn best_seconds(&self) -> f64 {
        let (mean, stall) = (self.mean_seconds, self.stall_seconds);
        let gains = |interval: f64| ((interval + stall) / mean).exp() * (1.0 - interval / mean) > 1.0;
        let (mut low, mut high) = (0.0, mean);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            if gains(middle) { low = middle } else { high = middle }
        }
        low
    }

    /// The share of the time that is lost with a checkpoint every `interval` seconds of training.
    pub fn expected_loss(&self, interval: f64) -> f64 {
        let Self { mean_seconds: mean, stall_seconds, save_seconds, restart_seconds, .. } = *self;
        let begun = (-(restart_seconds + save_seconds) / mean).exp();
        1.0 - interval / mean * begun / ((interval + stall_seconds) / mean).exp_m1()
    }

    /// The same in a simulation, always with the same failures.
    ///
    /// # Errors
    /// Never on a CPU.
    pub fn simulated_loss(&self, interval: f64) -> Result<f64, OpError> {
        // Half the sum of two squared standard normals is exponentially distributed with mean 1.
        let mut normals = vec![0.0_f64; 2 * SIMULATED_FAILURES];
        random::normal(SEED, 0, 1.0, ViewMut::of(&mut normals))?;
        let (mut time, mut kept) = (0.0, 0.0);
        for pair in normals.chunks_exact(2) {
            let life = self.mean_seconds * pair.iter().map(|normal| normal * normal).sum::<f64>() / 2.0;
            let saving = life - self.restart_seconds - self.save_seconds;
            let checkpoints = (saving / (interval + self.stall_seconds)).floor().max(0.0);
            time += life;
            kept += checkpoints * interval;
        }
        Ok(1.0 - kept / time)
    }
}
