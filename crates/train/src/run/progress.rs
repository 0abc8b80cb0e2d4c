//! How far a run has come, among its events: seldom enough that long runs do not flood them.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use crate::observe::StepReport;

/// When to record how far a run has come: after its first batch here, then at each hundredth of the run, but not so often that
/// short batches flood the events.
#[derive(Default)]
pub(super) struct Updates {
    last: Option<(u64, Instant)>,
}

impl Updates {
    const PARTS: u64 = 100;
    const SHORTEST: Duration = Duration::from_secs(10);

    /// Whether it is time, now that so many batches of `total` are done. The end has an event of its own.
    pub(super) fn is_due(&mut self, done: u64, total: u64) -> bool {
        let due = self.last.is_none_or(|(before, then)| {
            (done - before).saturating_mul(Self::PARTS) >= total && then.elapsed() >= Self::SHORTEST
        });
        let due = due && done < total;
        if due {
            self.last = Some((done, Instant::now()));
        }
        due
    }
}

/// What the event says after a step: in words, and with its fields.
pub(super) fn update(step: &StepReport) -> (String, [(&'static str, Value); 4]) {
    let StepReport { batch, total_batches, loss, remaining, .. } = step;
    let end = Timestamp::now().checked_add(*remaining).ok().map(|end| end.to_string());
    let fields = [
        ("batch", (batch + 1).into()),
        ("batches", (*total_batches).into()),
        ("loss", (*loss).into()),
        ("estimated_end", end.into()),
    ];
    (format!("batch {} of {total_batches}, {} left", batch + 1, time_left(*remaining)), fields)
}

/// A time in one unit, as the service told it.
fn time_left(left: Duration) -> String {
    match left.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}min", seconds.div_ceil(60)),
        seconds @ 3600..86_400 => format!("{}hr", seconds.div_ceil(3600)),
        seconds => format!("{}d", seconds.div_ceil(86_400)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_batches_are_told_of_once_and_the_last_not_at_all() {
        let mut updates = Updates::default();
        let due: Vec<_> = (1..=200).filter(|&done| updates.is_due(done, 200)).collect();
        assert_eq!(due, [1]);
        assert!(!Updates::default().is_due(1, 1));
    }

    #[test]
    fn slow_batches_are_told_of_at_each_hundredth() {
        let mut updates = Updates::default();
        let mut due = Vec::new();
        for done in 1..1000 {
            if let (Some((_, then)), Some(earlier)) =
                (&mut updates.last, Instant::now().checked_sub(Updates::SHORTEST))
            {
                *then = earlier;
            }
            if updates.is_due(done, 1000) {
                due.push(done);
            }
        }
        assert_eq!((due.len(), &due[..3]), (100, &[1, 11, 21][..]));
    }

    #[test]
    fn times_have_one_unit() {
        let told = [0, 59, 60, 3599, 3601, 86_400].map(|seconds| time_left(Duration::from_secs(seconds)));
        assert_eq!(told, ["0s", "59s", "1min", "60min", "2hr", "1d"]);
    }
}
