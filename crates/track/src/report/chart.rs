//! The geometry of a chart: values to paths and ticks. How it looks is the template's.
//!
//! Only curves and grid lines are SVG, stretched to whatever box the page gives them; labels and dots are placed
//! over it in percent. So text keeps its size and dots stay round on a phone as on a wide screen, which an SVG
//! scaled as a whole does not do, and colours follow the page's light or dark scheme.

use std::fmt::Write as _;

use serde::Serialize;

use super::format;
use super::thin::{Point, thin};

/// The units in which paths are written, across and down.
pub(super) const WIDTH: f64 = 1000.0;
/// See [`WIDTH`].
pub(super) const HEIGHT: f64 = 300.0;
/// The most points drawn of one curve.
pub(super) const MOST_POINTS: usize = 1000;

/// How values are laid out along the vertical axis.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// From zero.
    FromZero,
    /// Around the values; in powers of ten where they are all positive and span more than two of them.
    Fitted,
}

/// A curve to be drawn.
pub(super) struct Curve<'a> {
    /// The name in the legend.
    pub name: &'static str,
    /// The template's class for its colour and weight.
    pub class: &'static str,
    /// The values, in the order of the batches.
    pub points: &'a [Point],
    /// Whether each value has a dot: for few values, far apart.
    pub has_dots: bool,
}

/// A label at a place along an axis.
#[derive(Debug, Serialize)]
pub(super) struct Tick {
    /// Percent of the axis, from the left or from the bottom.
    pub at: String,
    pub label: String,
}

/// A dot, in percent from the left and from the bottom.
#[derive(Debug, Serialize)]
pub(super) struct Dot {
    pub x: String,
    pub y: String,
    pub label: String,
}

/// A curve as it is drawn.
#[derive(Debug, Serialize)]
pub(super) struct Drawn {
    pub name: &'static str,
    pub class: &'static str,
    pub path: String,
    pub dots: Vec<Dot>,
}

/// A chart as the template wants it.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    pub title: &'static str,
    pub unit: &'static str,
    /// For those who hear the page.
    pub description: String,
    pub note: Option<String>,
    pub x_ticks: Vec<Tick>,
    pub y_ticks: Vec<Tick>,
    pub curves: Vec<Drawn>,
}

/// Lays out a chart; `None` if there is no point to show.
pub(super) fn chart(
    title: &'static str,
    unit: &'static str,
    scale: Scale,
    curves: &[Curve<'_>],
) -> Option<Chart> {
    let points = || curves.iter().flat_map(|curve| curve.points);
    let (first, last) = (curves.first()?.points.first()?, curves.first()?.points.last()?);
    let across = Axis::batches(points().map(|point| point.0));
    let up = Axis::values(points().map(|point| point.1), scale);
    let drawn = curves.iter().filter(|curve| !curve.points.is_empty()).map(|curve| curve.draw(&across, &up));
    Some(Chart {
        title,
        unit,
        description: format!(
            "{title} from {} at batch {} to {} at batch {}",
            format::value(first.1),
            first.0,
            format::value(last.1),
            last.0
        ),
        note: None,
        x_ticks: across.ticks(),
        y_ticks: up.ticks(),
        curves: drawn.collect(),
    })
}

impl Curve<'_> {
    fn draw(&self, across: &Axis, up: &Axis) -> Drawn {
        let points = thin(self.points, MOST_POINTS);
        let dot = |&(at, value): &Point| Dot {
            x: percent(across.place(at)),
            y: percent(up.place(value)),
            label: format!("batch {}: {}", format::count(at as u64), format::value(value)),
        };
        let dots = if self.has_dots { points.iter().map(dot).collect() } else { Vec::new() };
        Drawn { name: self.name, class: self.class, path: path(&points, across, up), dots }
    }
}

fn path(points: &[Point], across: &Axis, up: &Axis) -> String {
    let mut path = String::new();
    for (index, &(at, value)) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        let (x, y) = (across.place(at) * WIDTH, (1.0 - up.place(value)) * HEIGHT);
        // Writing to a String cannot fail.
        let _ = write!(path, "{command}{x:.1} {y:.1}");
    }
    path
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

/// A range of values and how they are spread over it.
struct Axis {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    is_whole: bool,
}

impl Axis {
    fn batches(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        let high = if high > low { high } else { low + 1.0 };
        Self { low, high, is_logarithmic: false, is_whole: true }
    }

    fn values(values: impl Iterator<Item = f64>, scale: Scale) -> Self {
        let (low, high) = range(values);
        let is_logarithmic = scale == Scale::Fitted && low > 0.0 && high > 100.0 * low;
        let (low, high) = if is_logarithmic { (low.log10(), high.log10()) } else { (low, high) };
        let margin = if high > low { 0.06 * (high - low) } else { (0.1 * high.abs()).max(f64::MIN_POSITIVE) };
        let low = if scale == Scale::FromZero { low.min(0.0) } else { low - margin };
        Self { low, high: high + margin, is_logarithmic, is_whole: false }
    }

    /// Where a value lies, 0 at the low end and 1 at the high end.
    fn place(&self, value: f64) -> f64 {
        let value = if self.is_logarithmic { value.log10() } else { value };
        (value - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> Vec<Tick> {
        let values: Vec<f64> = if self.is_logarithmic {
            let decades = self.low.ceil() as i32..=self.high.floor() as i32;
            let every = (decades.clone().count() / 5).max(1);
            decades.step_by(every).map(|power| 10_f64.powi(power)).collect()
        } else {
            let step = self.step();
            let steps = (self.low / step).ceil() as i64..=(self.high / step).floor() as i64;
            steps.map(|index| index as f64 * step).collect()
        };
        values
            .into_iter()
            .map(|value| Tick { at: percent(self.place(value)), label: tick_label(value) })
            .collect()
    }

    /// The distance of ticks: 1, 2 or 5 times a power of ten, so that there are three to six.
    fn step(&self) -> f64 {
        let rough = (self.high - self.low) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= rough);
        let step = step.unwrap_or(rough);
        if self.is_whole { step.max(1.0) } else { step }
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// A round value without the noise of the arithmetic that made it: `0.3`, `12k`, `2e−5`.
fn tick_label(value: f64) -> String {
    let size = value.abs();
    if size >= 1e3 || (size > 0.0 && size < 1e-3) {
        let (scaled, suffix) = match size {
            1e3..1e6 => (value / 1e3, "k"),
            1e6..1e9 => (value / 1e6, "M"),
            _ => return format!("{:e}", rounded(value)).replace('-', "−"),
        };
        return format!("{}{suffix}", rounded(scaled));
    }
    rounded(value).to_string().replace('-', "−")
}

/// The value at six significant digits.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(points: &[Point], scale: Scale) -> Chart {
        let curve = Curve { name: "loss", class: "train", points, has_dots: true };
        chart("Loss", "nats", scale, &[curve]).unwrap()
    }

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn a_curve_spans_its_box() {
        let chart = of(&[(0.0, 0.0), (5.0, 0.3), (10.0, 1.0)], Scale::FromZero);
        assert_eq!(chart.curves[0].path, "M0.0 300.0L500.0 215.1L1000.0 17.0");
        assert_eq!(chart.curves[0].dots[1].x, "50.00%");
        assert_eq!(labels(&chart.x_ticks), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(&chart.y_ticks), ["0", "0.5", "1"]);
    }

    #[test]
    fn ticks_are_round_at_any_size() {
        let ticks = |low, high| {
            let chart = of(&[(0.0, low), (1.0, high)], Scale::Fitted);
            labels(&chart.y_ticks).join(" ")
        };
        assert_eq!(ticks(0.25, 0.65), "0.3 0.4 0.5 0.6");
        assert_eq!(ticks(1e-5, 5e-5), "1e−5 2e−5 3e−5 4e−5 5e−5");
        assert_eq!(ticks(12_000.0, 15_000.0), "12k 13k 14k 15k");
        assert_eq!(ticks(0.01, 1000.0), "0.01 0.1 1 10 100 1k");
    }

    #[test]
    fn a_single_or_constant_value_is_drawn() {
        for points in [&[(3.0, 2.0)][..], &[(0.0, 0.0), (1.0, 0.0)], &[(0.0, -4.0), (1.0, -4.0)]] {
            let chart = of(points, Scale::Fitted);
            assert!(!chart.curves[0].path.contains("NaN") && !chart.curves[0].path.contains("inf"));
        }
        assert!(chart("Loss", "", Scale::Fitted, &[]).is_none());
    }
}
