#![allow(clippy::unwrap_used)]

use super::*;

fn time(text: &str) -> Time {
    text.parse().unwrap()
}

fn interval(text: &str) -> Interval {
    text.parse().unwrap()
}

fn epoch(samples: u64, samples_per_batch: u64, tokens: u64) -> EpochLength {
    EpochLength { samples, samples_per_batch: NonZeroU64::new(samples_per_batch).unwrap(), tokens }
}

#[test]
fn composer_forms_are_read() {
    assert_eq!(time("1ep"), Time::Epochs(1));
    assert_eq!(time("10ba"), Time::Batches(10));
    assert_eq!(time(" 100 SP "), Time::Samples(100));
    assert_eq!(time("1_000_000tok"), Time::Tokens(1_000_000));
    assert_eq!(time("3e4tok"), Time::Tokens(30_000));
    assert_eq!(time("1.5e3ba"), Time::Batches(1500));
    assert_eq!(time("2.0ep"), Time::Epochs(2));
    assert_eq!(time("18446744073709551615tok"), Time::Tokens(u64::MAX));
    assert_eq!(time("90sec"), Time::Seconds(90));
    assert_eq!(time("1h30m"), Time::Seconds(5400));
    assert_eq!(time("1h2m3s"), Time::Seconds(3723));
    assert_eq!(time("0ba"), Time::Batches(0));
}

#[test]
fn what_was_written_is_written_again() {
    for text in ["1ep", "10ba", "100sp", "30000tok", "0.5dur", "0.02dur", "1dur", "2.5dur", "0dur", "5400sec"]
    {
        assert_eq!(time(text).to_string(), text);
    }
    assert_eq!(time("5e-1dur"), time("0.50dur"));
    assert_eq!(time("1.0dur"), time("10e-1dur"));
    assert_eq!(time("12e-19dur").to_string(), "0.0000000000000000012dur");
}

#[test]
fn other_forms_say_what_was_expected() {
    let cases = [
        ("1.5ep", "a whole number before `ep`"),
        ("1e30tok", "a whole number before `tok`"),
        ("ep", "a number of at least 0 before `ep`"),
        ("-1ba", "a number of at least 0 before `ba`"),
        ("1__0ba", "a number of at least 0 before `ba`"),
        ("_1ba", "a number of at least 0 before `ba`"),
        ("1_ba", "a number of at least 0 before `ba`"),
        ("infba", "a number of at least 0 before `ba`"),
        ("1e99999ba", "a number of at least 0 before `ba`"),
        (".ba", "a number of at least 0 before `ba`"),
        ("1e-20dur", "at most 19 decimals"),
        ("1iter", "epochs (ep) or batches (ba)"),
        ("10", "a number with a unit"),
        ("3furlongs", "a number with a unit"),
        ("", "a number with a unit"),
        ("1m30h", "a number with a unit"),
        ("é", "a number with a unit"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<Time>().unwrap_err();
        assert!(error.expected.contains(expected), "{text} gave {error}");
        assert!(error.to_string().starts_with(&format!("found `{text}`, expected ")), "{error}");
    }
}

#[test]
fn each_place_takes_its_units() {
    let fits = |text: &str| {
        (
            text.parse::<TrainingDuration>().is_ok(),
            text.parse::<Interval>().is_ok(),
            text.parse::<ScheduleTime>().is_ok(),
        )
    };
    for counted in ["1ep", "10ba", "100sp", "5tok"] {
        assert_eq!(fits(counted), (true, true, true), "{counted}");
    }
    assert_eq!(fits("0.5dur"), (false, true, true));
    assert_eq!(fits("1.5dur"), (false, false, true));
    assert_eq!(fits("1h"), (false, true, false));
    assert_eq!(fits("0ba"), (false, false, true));
    let error = "1h".parse::<TrainingDuration>().unwrap_err();
    assert_eq!(error, TimeError { found: "3600sec".into(), expected: TrainingDuration::EXPECTED.into() });
}

#[test]
fn durations_come_to_whole_batches() {
    let batches =
        |text: &str, epoch: &EpochLength| text.parse::<TrainingDuration>().unwrap().total_batches(epoch);
    // 10 rows in batches of 4: an epoch has 3 batches, the last of 2 rows.
    let uneven = epoch(10, 4, 1000);
    assert_eq!(uneven.batches(), 3);
    assert_eq!(batches("2ep", &uneven), 6);
    assert_eq!(batches("7ba", &uneven), 7);
    assert_eq!(batches("10sp", &uneven), 3);
    assert_eq!(batches("11sp", &uneven), 4);
    assert_eq!(batches("15sp", &uneven), 5);
    assert_eq!(batches("334tok", &uneven), 2);
    assert_eq!(batches("1000tok", &uneven), 3);
    assert_eq!(batches("2001tok", &uneven), 7);
    assert_eq!(batches("18446744073709551615ep", &uneven), u64::MAX);
    assert_eq!(batches("18446744073709551615tok", &epoch(u64::MAX, 1, 0)), u64::MAX);
    assert_eq!(batches("5sp", &epoch(0, 4, 0)), 0);
}

#[test]
fn schedule_times_round_fractions_up() {
    let run = |total_batches| RunLength { total_batches, epoch: epoch(50, 1, 500) };
    let batches = |text: &str, total| text.parse::<ScheduleTime>().unwrap().batches(&run(total));
    assert_eq!(batches("0.02dur", 150), 3);
    assert_eq!(batches("0.02dur", 151), 4);
    // In binary floating point 0.07 · 100 is above 7.
    assert_eq!(batches("0.07dur", 100), 7);
    assert_eq!(batches("0.02dur", 1), 1);
    assert_eq!(batches("0dur", 100), 0);
    assert_eq!(batches("1dur", 100), 100);
    assert_eq!(batches("2ep", 100), 100);
    assert_eq!(ScheduleTime::TWO_PERCENT, "0.02dur".parse().unwrap());
    assert_eq!(ScheduleTime::WHOLE_RUN, "1dur".parse().unwrap());
}

/// The batches of a run of `total` on which the interval fires, where a batch holds 3 rows and 100 tokens,
/// takes 7 seconds, and an epoch has 4 batches.
fn firing(interval_text: &str, total: u64) -> Vec<u64> {
    let at = |batches| Progress {
        epochs: batches / 4,
        batches,
        samples: 3 * batches,
        tokens: 100 * batches,
        seconds: 7 * batches,
    };
    let interval = interval(interval_text);
    (1..=total).filter(|&batch| interval.fires(&at(batch - 1), &at(batch), total)).collect()
}

#[test]
fn intervals_fire_where_a_multiple_is_reached_and_at_the_end() {
    assert_eq!(firing("3ba", 10), [3, 6, 9, 10]);
    assert_eq!(firing("1ep", 10), [4, 8, 10]);
    assert_eq!(firing("2ep", 10), [8, 10]);
    assert_eq!(firing("10sp", 10), [4, 7, 10]);
    assert_eq!(firing("250tok", 10), [3, 5, 8, 10]);
    assert_eq!(firing("30sec", 10), [5, 9, 10]);
    assert_eq!(firing("1tok", 3), [1, 2, 3]);
    assert_eq!(firing("1dur", 10), [10]);
    assert_eq!(firing("0.25dur", 10), [3, 5, 8, 10]);
    assert_eq!(firing("0.07dur", 100)[..4], [7, 14, 21, 28]);
    assert_eq!(firing("0.3dur", 10), [3, 6, 9, 10]);
    assert_eq!(firing("1000ba", 10), [10]);
}
