//! The learning rate over a run: a multiplier of the peak rate for each step.
//!
//! The four curves α(t) are Composer's and LLM Foundry's, with every time turned into batches before the first
//! step. Which t a step uses differs: Composer runs the first two steps at rate 0 and this engine none, see
//! [`Schedule::multiplier`].

#[cfg(test)]
mod tests;

use std::f64::consts::PI;

use crate::spec::SchedulerSpec;
use crate::time::{RunLength, ScheduleTime};

/// A schedule does not fit the length of its run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The decay would be over before the run is.
    #[error(
        "`scheduler.t_max` is {t_max}, which is {batches} batches, and the run has {total_batches}; \
         expected at least the run's length: leave it out or give 1dur"
    )]
    EndsBeforeRun {
        /// The end as it was written.
        t_max: ScheduleTime,
        /// The same in batches.
        batches: u64,
        /// The batches of the run.
        total_batches: u64,
    },
}

/// The learning rate's multiplier over the steps of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    warmup_batches: u64,
    curve: Curve,
}

/// α(t) after warm-up; times are in batches. Each begins at `α_i`, which warm-up rises to.
#[derive(Debug, Clone, PartialEq)]
enum Curve {
    Constant { alpha: f64 },
    Linear { alpha_i: f64, alpha_f: f64, end: f64 },
    Cosine { alpha_f: f64, end: f64 },
    InverseSquareRoot { scale: f64, cooldown_start: f64, end: f64, alpha_f_decay: f64, alpha_f_cooldown: f64 },
}

impl Schedule {
    /// The schedule of a run whose length is known, every time rounded up to whole batches.
    ///
    /// # Errors
    /// When the decay would end before the run.
    pub fn resolve(spec: &SchedulerSpec, run: &RunLength) -> Result<Self, ScheduleError> {
        let batches = |time: ScheduleTime| time.batches(run);
        let end = |t_max: ScheduleTime| match batches(t_max) {
            end if end < run.total_batches => {
                Err(ScheduleError::EndsBeforeRun { t_max, batches: end, total_batches: run.total_batches })
            }
            end => Ok(end),
        };
        let (t_warmup, curve) = match *spec {
            SchedulerSpec::ConstantWithWarmup { t_warmup, alpha } => (t_warmup, Curve::Constant { alpha }),
            SchedulerSpec::LinearDecayWithWarmup { t_warmup, alpha_i, alpha_f, t_max } => {
                (t_warmup, Curve::Linear { alpha_i, alpha_f, end: end(t_max)? as f64 })
            }
            SchedulerSpec::CosineWithWarmup { t_warmup, alpha_f, t_max } => {
                (t_warmup, Curve::Cosine { alpha_f, end: end(t_max)? as f64 })
            }
            SchedulerSpec::InvSqrtWithWarmup {
                t_warmup,
                t_scale,
                t_cooldown,
                t_max,
                alpha_f_decay,
                alpha_f_cooldown,
            } => {
                let end = end(t_max)?;
                let cooldown_start = batches(t_warmup).max(end.saturating_sub(batches(t_cooldown)));
                let curve = Curve::InverseSquareRoot {
                    scale: batches(t_scale) as f64,
                    cooldown_start: cooldown_start as f64,
                    end: end as f64,
                    alpha_f_decay,
                    alpha_f_cooldown,
                };
                (t_warmup, curve)
            }
        };
        Ok(Self { warmup_batches: batches(t_warmup), curve })
    }

    /// Steps over which the rate rises to its peak.
    pub fn warmup_batches(&self) -> u64 {
        self.warmup_batches
    }

    /// What the peak learning rate is multiplied by in step `step`, counted from 0: α(step + 1) during
    /// warm-up, α(step) after it. So the first step already learns, the last warm-up step and the one after it
    /// run at the peak, and the last step of a decay to 0 still learns.
    pub fn multiplier(&self, step: u64) -> f64 {
        let time = if step < self.warmup_batches { step.saturating_add(1) } else { step };
        self.alpha(time as f64)
    }

    /// The curve of Composer's `scheduler.py` and LLM Foundry's, warm-up included.
    fn alpha(&self, time: f64) -> f64 {
        let warmup = self.warmup_batches as f64;
        if time < warmup {
            return self.curve.start() * time / warmup;
        }
        self.curve.after_warmup(time, warmup)
    }
}

impl Curve {
    /// α_i, where warm-up ends.
    fn start(&self) -> f64 {
        match *self {
            Self::Constant { alpha } => alpha,
            Self::Linear { alpha_i, .. } => alpha_i,
            Self::Cosine { .. } | Self::InverseSquareRoot { .. } => 1.0,
        }
    }

    fn after_warmup(&self, time: f64, warmup: f64) -> f64 {
        match *self {
            Self::Constant { alpha } => alpha,
            Self::Linear { alpha_i, alpha_f, end } => {
                alpha_i + fraction_between(warmup, end, time) * (alpha_f - alpha_i)
            }
            Self::Cosine { alpha_f, end } => {
                let fraction = fraction_between(warmup, end, time);
                alpha_f + (1.0 - alpha_f) * (1.0 + (PI * fraction).cos()) / 2.0
            }
            Self::InverseSquareRoot { scale, cooldown_start, end, alpha_f_decay, alpha_f_cooldown } => {
                let decayed = |time: f64| {
                    alpha_f_decay + (1.0 - alpha_f_decay) / ((time + scale - warmup) / scale).sqrt()
                };
                if time < cooldown_start {
                    return decayed(time);
                }
                let start = decayed(cooldown_start);
                start + fraction_between(cooldown_start, end, time) * (alpha_f_cooldown - start)
            }
        }
    }
}

/// Where `time` stands between `start` and `end`: 0 at the start, 1 from the end on, 0 where they coincide.
fn fraction_between(start: f64, end: f64, time: f64) -> f64 {
    if end <= start { 0.0 } else { ((time - start) / (end - start)).min(1.0) }
}
