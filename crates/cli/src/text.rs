//! Numbers, spans of time and tables as people read them.

use std::time::Duration;

/// A count with its thousands set apart: `134,515,008`.
pub fn count(number: impl TryInto<u64>) -> String {
    let digits = number.try_into().unwrap_or(u64::MAX).to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with the thing counted: `1 row`, `1,024 rows`.
pub fn counted(number: impl TryInto<u64>, one: &str, many: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A size: `512 B`, `1.5 KiB`, `2.07 GiB`.
pub fn bytes(size: impl TryInto<u64>) -> String {
    let size = size.try_into().unwrap_or(u64::MAX);
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| size >> shift > 0) {
        Some((unit, shift)) => format!("{} {unit}", significant(size as f64 / (1_u64 << shift) as f64)),
        None => format!("{size} B"),
    }
}

/// About three digits: `2.07`, `20.7`, `207`.
fn significant(value: f64) -> String {
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$}")
}

/// A span of time: `45 s`, `3 min 12 s`, `5 h 03 min`, `2 d 4 h`.
pub fn duration(span: Duration) -> String {
    let seconds = span.as_secs_f64().round() as u64;
    match seconds {
        0 if span.is_zero() => "0 s".to_owned(),
        0 => "under 1 s".to_owned(),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", count(seconds / 86_400), seconds / 3600 % 24),
    }
}

/// A share: `97.3 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A measured value with about five digits, with an exponent where it is very large or small.
pub fn value(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        0.001..10.0 => 4,
        10.0..100.0 => 3,
        100.0..1000.0 => 2,
        1000.0..10_000.0 => 1,
        _ => return format!("{value:.3e}"),
    };
    format!("{value:.decimals$}")
}

/// A learning rate, with an exponent and no digits to spare: `1e-5`, `2.25e-5`.
pub fn rate(rate: f64) -> String {
    let text = format!("{rate:.2e}");
    match text.split_once('e') {
        Some((digits, exponent)) if digits.contains('.') => {
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// Text from data or a model, safe to print: a terminal obeys control characters, so they are shown instead.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => out.push(character),
            control if control.is_control() => out.extend(control.escape_default()),
            other => out.push(other),
        }
    }
    out
}

/// The beginning of a text, on one line, of at most `most` characters.
pub fn shortened(text: &str, most: usize) -> String {
    let line = harmless(text).split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", line[..end].trim_end()),
        None => line,
    }
}

/// An argument as a shell takes it.
pub fn quoted(argument: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./=:,@%+".contains(character);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// Which side of a column is straight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// Rows of cells with columns as wide as their widest cell, two blanks apart.
pub fn table<const COLUMNS: usize>(align: [Align; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(align).zip(widths).map(|((cell, align), width)| match align {
            Align::Left => format!("{cell:<width$}"),
            Align::Right => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        assert_eq!(
            [0_u64, 999, 1000, 134_515_008].map(count),
            ["0", "999", "1,000", "134,515,008"].map(str::to_owned)
        );
        assert_eq!(counted(1_usize, "row", "rows"), "1 row");
    }

    #[test]
    fn sizes_and_spans_have_about_three_digits() {
        assert_eq!(
            [0_u64, 1023, 1536, 2_222_981_120].map(bytes),
            ["0 B", "1023 B", "1.50 KiB", "2.07 GiB"].map(str::to_owned)
        );
        let spans = [0.0, 0.2, 59.7, 192.0, 18_180.0, 187_200.0].map(Duration::from_secs_f64);
        assert_eq!(
            spans.map(duration),
            ["0 s", "under 1 s", "1 min 00 s", "3 min 12 s", "5 h 03 min", "2 d 4 h"].map(str::to_owned)
        );
    }

    #[test]
    fn rates_and_values_are_short() {
        assert_eq!([1.0e-5, 2.25e-5, 0.0].map(rate), ["1e-5", "2.25e-5", "0e0"].map(str::to_owned));
        assert_eq!(
            [0.0, 1.5, 287.3488, 1.0e9, f64::NAN].map(value),
            ["0", "1.5000", "287.35", "1.000e9", "NaN"].map(str::to_owned)
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\u{1b}[31m\tb\n"), "a\\u{1b}[31m\tb\n");
        assert_eq!(shortened("one\n two  three", 8), "one two…");
        assert_eq!(shortened("äöü", 3), "äöü");
    }

    #[test]
    fn arguments_survive_a_shell() {
        assert_eq!(["a/b=1", "it's", ""].map(quoted), ["a/b=1", r"'it'\''s'", "''"].map(str::to_owned));
    }

    #[test]
    fn tables_line_up() {
        let rows = [["a".to_owned(), "10".to_owned()], ["bcd".to_owned(), "9".to_owned()]];
        assert_eq!(table([Align::Left, Align::Right], &rows), "a    10\nbcd   9\n");
    }
}
