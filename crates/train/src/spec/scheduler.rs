//! The learning rate's curve and its settings, named as LLM Foundry names them.

use serde::Serialize;

use super::keyword::keyword;
use super::reader::{self, MapReader, Read};
use super::tree::Node;
use crate::time::ScheduleTime;

/// The learning rate over a run, as multiples of the peak; complete once it is written at all.
///
/// Every curve rises in a line over `t_warmup`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum SchedulerSpec {
    /// Stays at `alpha`.
    ConstantWithWarmup {
        /// Length of the rise.
        t_warmup: ScheduleTime,
        /// Where it stays.
        alpha: f64,
    },
    /// Falls in a line from `alpha_i` to `alpha_f`.
    LinearDecayWithWarmup {
        /// Length of the rise.
        t_warmup: ScheduleTime,
        /// Where the fall begins.
        alpha_i: f64,
        /// Where it ends.
        alpha_f: f64,
        /// When it ends, at the end of the run or later.
        t_max: ScheduleTime,
    },
    /// Falls from 1 to `alpha_f` in half a cosine.
    CosineWithWarmup {
        /// Length of the rise.
        t_warmup: ScheduleTime,
        /// Where the fall ends.
        alpha_f: f64,
        /// When it ends, at the end of the run or later.
        t_max: ScheduleTime,
    },
    /// Falls with the inverse square root of time, then in a line.
    InvSqrtWithWarmup {
        /// Length of the rise.
        t_warmup: ScheduleTime,
        /// Time scale of the root: at three times this after the rise, the distance to `alpha_f_decay` is half.
        t_scale: ScheduleTime,
        /// Length of the line at the end.
        t_cooldown: ScheduleTime,
        /// When the line ends, at the end of the run or later.
        t_max: ScheduleTime,
        /// What the root falls towards.
        alpha_f_decay: f64,
        /// Where the line ends.
        alpha_f_cooldown: f64,
    },
}

keyword! {
    /// The names of the curves.
    SchedulerName {
        Constant = "constant_with_warmup",
        Linear = "linear_decay_with_warmup",
        Cosine = "cosine_with_warmup",
        InverseSquareRoot = "inv_sqrt_with_warmup",
    }
}

impl Default for SchedulerSpec {
    fn default() -> Self {
        Self::LinearDecayWithWarmup {
            t_warmup: ScheduleTime::TWO_PERCENT,
            alpha_i: 1.0,
            alpha_f: 0.0,
            t_max: ScheduleTime::WHOLE_RUN,
        }
    }
}

impl SchedulerSpec {
    /// Reads the map `scheduler`. Only the keys that the named curve has are known. What a mistake leaves
    /// unknown takes its default, since the mistake is reported anyway.
    pub(super) fn read(map: &mut MapReader<'_>) -> Self {
        let name = map.name(SchedulerName::Linear);
        let t_warmup = map.optional("t_warmup", schedule_time).unwrap_or(ScheduleTime::TWO_PERCENT);
        match name {
            SchedulerName::Constant => Self::ConstantWithWarmup { t_warmup, alpha: peak(map, "alpha") },
            SchedulerName::Linear => Self::LinearDecayWithWarmup {
                t_warmup,
                alpha_i: peak(map, "alpha_i"),
                alpha_f: floor(map, "alpha_f"),
                t_max: end(map),
            },
            SchedulerName::Cosine => {
                Self::CosineWithWarmup { t_warmup, alpha_f: floor(map, "alpha_f"), t_max: end(map) }
            }
            SchedulerName::InverseSquareRoot => Self::read_inverse_square_root(map, t_warmup),
        }
    }

    fn read_inverse_square_root(map: &mut MapReader<'_>, t_warmup: ScheduleTime) -> Self {
        const SCALE: &str = "a time above 0, such as 100ba";
        let t_scale = map.required("t_scale", SCALE, |node| match schedule_time(node)? {
            time if time.is_zero() => Err(SCALE.to_owned()),
            time => Ok(time),
        });
        let (alpha_f_decay, alpha_f_cooldown) = (floor(map, "alpha_f_decay"), floor(map, "alpha_f_cooldown"));
        if alpha_f_decay < alpha_f_cooldown {
            map.refuse("alpha_f_cooldown", format!("at most alpha_f_decay, which is {alpha_f_decay}"));
        }
        Self::InvSqrtWithWarmup {
            t_warmup,
            t_scale: t_scale.unwrap_or(ScheduleTime::WHOLE_RUN),
            t_cooldown: map.optional("t_cooldown", schedule_time).unwrap_or(ScheduleTime::ZERO),
            t_max: end(map),
            alpha_f_decay,
            alpha_f_cooldown,
        }
    }
}

fn schedule_time(node: &Node) -> Read<ScheduleTime> {
    reader::time(ScheduleTime::EXPECTED)(node)
}

fn end(map: &mut MapReader<'_>) -> ScheduleTime {
    map.optional("t_max", schedule_time).unwrap_or(ScheduleTime::WHOLE_RUN)
}

/// A multiple of the peak rate that training cannot do without.
fn peak(map: &mut MapReader<'_>, key: &'static str) -> f64 {
    map.optional(key, reader::number(|alpha| alpha > 0.0, "a number above 0, such as 1.0")).unwrap_or(1.0)
}

/// A multiple of the peak rate that a curve falls to.
fn floor(map: &mut MapReader<'_>, key: &'static str) -> f64 {
    let read = reader::number(|alpha| (0.0..=1.0).contains(&alpha), "a number from 0 to 1, such as 0.1");
    map.optional(key, read).unwrap_or(0.0)
}
