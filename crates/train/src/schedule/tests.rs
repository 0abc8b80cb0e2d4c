#![allow(clippy::unwrap_used)]

use std::num::NonZeroU64;

use super::*;
use crate::time::EpochLength;

fn run(total_batches: u64) -> RunLength {
    let epoch = EpochLength { samples: 50, samples_per_batch: NonZeroU64::MIN, tokens: 50_000 };
    RunLength { total_batches, epoch }
}

fn time(text: &str) -> ScheduleTime {
    text.parse().unwrap()
}

fn constant(t_warmup: &str) -> SchedulerSpec {
    SchedulerSpec::ConstantWithWarmup { t_warmup: time(t_warmup), alpha: 1.0 }
}

fn linear(t_warmup: &str) -> SchedulerSpec {
    SchedulerSpec::LinearDecayWithWarmup {
        t_warmup: time(t_warmup),
        alpha_i: 1.0,
        alpha_f: 0.0,
        t_max: ScheduleTime::WHOLE_RUN,
    }
}

fn cosine(t_warmup: &str, alpha_f: f64) -> SchedulerSpec {
    SchedulerSpec::CosineWithWarmup { t_warmup: time(t_warmup), alpha_f, t_max: ScheduleTime::WHOLE_RUN }
}

fn inverse_square_root(
    t_warmup: &str,
    t_scale: &str,
    t_cooldown: &str,
    decay: f64,
    cooldown: f64,
) -> SchedulerSpec {
    SchedulerSpec::InvSqrtWithWarmup {
        t_warmup: time(t_warmup),
        t_scale: time(t_scale),
        t_cooldown: time(t_cooldown),
        t_max: ScheduleTime::WHOLE_RUN,
        alpha_f_decay: decay,
        alpha_f_cooldown: cooldown,
    }
}

fn resolved(spec: &SchedulerSpec, total: u64) -> Schedule {
    Schedule::resolve(spec, &run(total)).unwrap()
}

/// Compares multipliers or values of α with figures given to some decimals.
fn assert_near(actual: impl IntoIterator<Item = f64>, expected: &[f64], tolerance: f64) {
    let actual: Vec<f64> = actual.into_iter().collect();
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert!((actual - expected).abs() <= tolerance, "{actual} is not {expected}");
    }
}

/// α(t) as Composer computes it for a run of 100 batches.
#[test]
fn curves_are_composers() {
    let times = [0.0, 1.0, 2.0, 5.0, 10.0, 11.0, 50.0, 99.0, 100.0];
    let golden = [
        (constant("10ba"), [0.0, 0.1, 0.2, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (linear("0.02dur"), [0.0, 0.5, 1.0, 0.96938776, 0.91836735, 0.90816327, 0.51020408, 0.01020408, 0.0]),
        (cosine("10ba", 0.1), [0.0, 0.1, 0.2, 0.5, 1.0, 0.99972587, 0.62814168, 0.10027413, 0.1]),
    ];
    for (spec, expected) in golden {
        let schedule = resolved(&spec, 100);
        assert_near(times.map(|time| schedule.alpha(time)), &expected, 5.0e-9);
    }
}

/// Composer's rates of ten batches, without its two steps at rate 0.
#[test]
fn steps_rise_from_the_first_and_learn_to_the_last() {
    let schedule = resolved(&linear("3ba"), 10);
    let expected =
        [1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0, 0.857143, 0.714286, 0.571429, 0.428571, 0.285714, 0.142857];
    assert_near((0..10).map(|step| schedule.multiplier(step)), &expected, 5.0e-7);

    let schedule = resolved(&cosine("0.2dur", 0.1), 10);
    let expected = [0.5, 1.0, 1.0, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254];
    assert_near((0..10).map(|step| schedule.multiplier(step)), &expected, 5.0e-7);
}

#[test]
fn no_step_of_any_run_is_wasted() {
    for total in [1, 2, 3, 7, 50, 1000] {
        for t_warmup in ["0.02dur", "0ba", "1ba", "1dur"] {
            for spec in [constant(t_warmup), linear(t_warmup), cosine(t_warmup, 0.0)] {
                let schedule = resolved(&spec, total);
                assert!((0..total).all(|step| schedule.multiplier(step) > 0.0), "{spec:?} over {total}");
                let peak = (0..total).map(|step| schedule.multiplier(step)).fold(0.0, f64::max);
                assert_eq!(peak, 1.0, "{spec:?} over {total}");
            }
        }
    }
}

#[test]
fn warm_up_is_a_fraction_rounded_up_or_a_count() {
    assert_eq!(resolved(&linear("0.02dur"), 150).warmup_batches(), 3);
    assert_eq!(resolved(&linear("0.02dur"), 151).warmup_batches(), 4);
    assert_eq!(resolved(&linear("1ep"), 150).warmup_batches(), 50);
    assert_eq!(resolved(&linear("2000tok"), 150).warmup_batches(), 2);
    // Longer than the run: the peak is not reached, as in Composer.
    let schedule = resolved(&constant("100ba"), 10);
    assert_near([schedule.multiplier(0), schedule.multiplier(9)], &[0.01, 0.1], 1.0e-12);
}

/// By hand: warm-up 4, scale 9, so α(t) = d + (1 − d)·3/√(t + 5) from t = 4 on.
#[test]
fn inverse_square_root_decays_then_cools_down() {
    let schedule = resolved(&inverse_square_root("4ba", "9ba", "0ba", 0.0, 0.0), 100);
    let at = |time: f64| schedule.alpha(time);
    assert_near(
        [at(0.0), at(1.0), at(4.0), at(11.0), at(20.0), at(31.0)],
        &[0.0, 0.25, 1.0, 0.75, 0.6, 0.5],
        1.0e-12,
    );

    let schedule = resolved(&inverse_square_root("4ba", "9ba", "69ba", 0.2, 0.1), 100);
    let at = |time: f64| schedule.alpha(time);
    // Cooldown starts at 31, where α = 0.2 + 0.8 / 2, and falls to 0.1 at 100.
    assert_near([at(11.0), at(31.0), at(65.5), at(100.0)], &[0.8, 0.6, 0.35, 0.1], 1.0e-12);
    // A cooldown longer than what warm-up leaves starts where warm-up ends.
    let schedule = resolved(&inverse_square_root("4ba", "9ba", "2dur", 0.0, 0.0), 100);
    assert_near([schedule.alpha(4.0), schedule.alpha(52.0)], &[1.0, 0.5], 1.0e-12);
}

#[test]
fn a_decay_may_end_after_the_run_but_not_before() {
    let ending = |t_max: &str| {
        let spec = SchedulerSpec::LinearDecayWithWarmup {
            t_warmup: ScheduleTime::ZERO,
            alpha_i: 1.0,
            alpha_f: 0.5,
            t_max: time(t_max),
        };
        Schedule::resolve(&spec, &run(100))
    };
    assert_near([ending("2dur").unwrap().multiplier(100)], &[0.75], 1.0e-12);
    assert_eq!(
        ending("99ba").unwrap_err().to_string(),
        "`scheduler.t_max` is 99ba, which is 99 batches, and the run has 100; \
         expected at least the run's length: leave it out or give 1dur"
    );
}
