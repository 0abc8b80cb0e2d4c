//! Two curves over one another, in characters.

use crate::text::{count, value};

/// Characters across and down.
const COLUMNS: usize = 64;
const ROWS: usize = 14;
/// What the first curve is drawn with, the second, and where they meet.
const MARKS: [char; 3] = ['o', 'x', '*'];

/// A curve's name and its points: batch and value.
type Curve<'a> = (&'a str, &'a [(u64, f64)]);

/// Both curves in one frame; each character stands for the mean of the values that fall into its column.
pub fn plot(curves: [Curve<'_>; 2]) -> String {
    let longest = curves.iter().filter_map(|(_, points)| Some(points.last()?.0)).max().unwrap_or(0);
    let means = curves.map(|(_, points)| column_means(points, longest));
    let values = || means.iter().flatten().flatten().copied();
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return String::new();
    }
    let span = if high > low { high - low } else { 1.0 };
    let mut cells = [[' '; COLUMNS]; ROWS];
    for (mark, means) in MARKS.into_iter().zip(&means) {
        for (column, mean) in means.iter().enumerate() {
            let Some(mean) = mean else { continue };
            let row = ((high - mean) / span * (ROWS - 1) as f64).round() as usize;
            let cell = &mut cells[row.min(ROWS - 1)][column];
            *cell = if *cell == ' ' { mark } else { MARKS[2] };
        }
    }
    let labels = [value(high), value(low)];
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (row, cells) in cells.iter().enumerate() {
        let label = if row == 0 {
            &labels[0]
        } else if row == ROWS - 1 {
            &labels[1]
        } else {
            ""
        };
        text.push_str(format!("{label:>width$} │{}", cells.iter().collect::<String>()).trim_end());
        text.push('\n');
    }
    let last = count(longest);
    text.push_str(&format!("{:>width$} └{}\n", "", "─".repeat(COLUMNS)));
    text.push_str(&format!("{:>width$}  0{last:>1$}\n", "", COLUMNS - 1));
    text.push_str(&format!(
        "{:>width$}  {} {}, {} {}, {} both\n",
        "", MARKS[0], curves[0].0, MARKS[1], curves[1].0, MARKS[2]
    ));
    text
}

/// The mean of the values in each column, where there are any.
fn column_means(points: &[(u64, f64)], longest: u64) -> [Option<f64>; COLUMNS] {
    let mut sums = [(0.0, 0_u32); COLUMNS];
    for &(batch, value) in points {
        let column = (batch as f64 / longest.max(1) as f64 * (COLUMNS - 1) as f64).round() as usize;
        let sum = &mut sums[column.min(COLUMNS - 1)];
        *sum = (sum.0 + value, sum.1 + 1);
    }
    sums.map(|(sum, number)| (number > 0).then(|| sum / f64::from(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_lie_where_their_values_are() {
        let falling: Vec<_> = (0..=200).map(|batch| (batch, 4.0 - batch as f64 / 100.0)).collect();
        let flat = [(0, 4.0), (100, 4.0)];
        let text = plot([("a", &falling), ("b", &flat)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), ROWS + 3);
        assert!(lines[0].starts_with("4.0000 │*"), "{text}");
        assert_eq!(lines[0].matches('x').count(), 1, "{text}");
        assert!(lines[ROWS - 1].starts_with("2.0050 │") && lines[ROWS - 1].ends_with('o'), "{text}");
        assert!(lines[ROWS + 1].ends_with("200") && lines[ROWS + 2].ends_with("o a, x b, * both"), "{text}");
        assert_eq!(plot([("a", &[]), ("b", &[])]), "");
    }

    #[test]
    fn a_curve_of_one_value_is_drawn() {
        assert!(plot([("a", &[(0, 1.0)]), ("b", &[])]).contains("1.0000 │o"));
    }
}
