//! How long this process has waited for others, without the time in which it stood still itself.
//!
//! A process that was stopped (Ctrl-Z, a debugger) or whose machine stalled finds a clock that has moved on although
//! nobody was late. So whoever waits looks at the clock again and again, and no look counts for more than the pause
//! that was meant to lie before it. A crowded machine makes a deadline longer by that, never shorter.

use std::time::{Duration, Instant};

/// Lateness that a crowded machine does not explain: the process was stopped, or its machine stalled.
const STANDSTILL: Duration = Duration::from_secs(2);

/// A wait under way.
pub(crate) struct Waiting {
    looked: Instant,
    /// For how long the clock is to be left alone.
    pause: Duration,
    waited: Duration,
}

/// What lies between two looks at the clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Look {
    /// What counts of it.
    pub counted: Duration,
    /// For how long the process stood still in it, if that is long enough to be told.
    pub stood_still: Option<Duration>,
}

impl Waiting {
    /// Begins now.
    pub fn begin() -> Self {
        Self { looked: Instant::now(), pause: Duration::ZERO, waited: Duration::ZERO }
    }

    /// Looks at the clock.
    pub fn look(&mut self) -> Look {
        let now = Instant::now();
        let look = split(now - self.looked, self.pause);
        (self.looked, self.pause) = (now, Duration::ZERO);
        self.waited += look.counted;
        look
    }

    /// What counted up to the last look.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Says how long it is until the next look.
    pub fn pause(&mut self, pause: Duration) -> Duration {
        self.pause = pause;
        pause
    }
}

fn split(passed: Duration, pause: Duration) -> Look {
    let late = passed.saturating_sub(pause);
    Look { counted: passed.min(pause), stood_still: (late >= STANDSTILL).then_some(late) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_the_pause_does_not_count() {
        let seconds = Duration::from_secs_f64;
        let look = |passed, pause| {
            let look = split(seconds(passed), seconds(pause));
            (look.counted.as_secs_f64(), look.stood_still.map(|time| time.as_secs_f64()))
        };
        assert_eq!(look(0.5, 1.0), (0.5, None), "woken early");
        assert_eq!(look(2.5, 1.0), (1.0, None), "a crowded machine");
        assert_eq!(look(61.0, 1.0), (1.0, Some(60.0)), "stopped");
    }
}
