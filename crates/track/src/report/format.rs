//! Numbers as a person reads them.

use std::time::Duration;

use jiff::Timestamp;

/// A count with its thousands apart: `1 234 567`, with narrow no-break spaces.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A number of batches: `1 batch`, `320 batches`.
pub(super) fn batches(number: u64) -> String {
    format!("{} {}", count(number), if number == 1 { "batch" } else { "batches" })
}

/// Four significant digits, in powers of ten where a plain number would be long: `0.8231`, `12.40`, `1.25e−5`.
pub(super) fn value(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if (0.001..10_000.0).contains(&size) {
        let decimals = (3 - size.log10().floor() as i64).clamp(0, 6) as usize;
        format!("{value:.decimals$}").replace('-', "−")
    } else if (10_000.0..1e15).contains(&value) {
        count(value.round() as u64)
    } else {
        format!("{value:.2e}").replace('-', "−").replace(".00e", "e")
    }
}

/// A share as a percentage: `41.3 %`.
pub(super) fn percentage(share: f64) -> String {
    format!("{:.1}\u{202f}%", share * 100.0).replace('-', "−")
}

/// A time span in its two leading units: `2 d 3 h`, `1 h 4 min`, `12 min 5 s`, `8 s`.
pub(super) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A size in powers of 1000: `538 MB`.
pub(super) fn bytes(size: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut scaled = size as f64 / 1000.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if scaled < 999.5 {
            break;
        }
        scaled /= 1000.0;
        unit = larger;
    }
    let decimals = if scaled < 10.0 { 1 } else { 0 };
    format!("{scaled:.decimals$} {unit}")
}

/// A point in time to the second: `2026-03-01 12:00:05 UTC`.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_values() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!((batches(1).as_str(), batches(20).as_str()), ("1 batch", "20 batches"));
        assert_eq!(value(0.823_14), "0.8231");
        assert_eq!(value(-12.4), "−12.40");
        assert_eq!(value(9999.9), "10000");
        assert_eq!(value(0.001), "0.001000");
        assert_eq!(value(1.25e-5), "1.25e−5");
        assert_eq!(value(1e-5), "1e−5");
        assert_eq!(value(f64::INFINITY), "inf");
        assert_eq!(percentage(0.4131), "41.3\u{202f}%");
    }

    #[test]
    fn spans_and_sizes() {
        let spans = [(8, "8 s"), (725, "12 min 5 s"), (3_840, "1 h 4 min"), (183_600, "2 d 3 h")];
        for (seconds, text) in spans {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(bytes(300), "0.3 kB");
        assert_eq!(bytes(538_000_000), "538 MB");
        assert_eq!(bytes(999_700_000), "1.0 GB");
    }
}
