//! `tessera runs compare`: in what two runs differ, and what came of it.

use std::path::Path;

use serde_json::{Value, json};
use tessera_track::{COMPARED, Comparison, compare_runs, names};
use tessera_train::TrainError;

use super::asked::Asked;
use super::list::run_json;
use super::plot::plot;
use crate::failure::Failure;
use crate::output::{HEADING, Paint, print, print_json};
use crate::text::{Align, count, shortened, table, value};

/// Characters of a setting that are shown.
const SHOWN: usize = 48;

/// Prints what tells two runs apart.
pub fn compare([first, second]: [&Path; 2], json: bool) -> Result<(), Failure> {
    let runs = [Asked::open(first)?, Asked::open(second)?];
    for run in &runs {
        if let Asked::There(run) = run {
            run.bring_metrics()?;
        }
    }
    let named = |error| runs.iter().fold(error, |error, run| run.named(error));
    let compared = compare_runs([runs[0].folder(), runs[1].folder()]);
    let mut comparison = compared.map_err(|error| TrainError::from(named(error)))?;
    comparison.runs = [runs[0].summary()?, runs[1].summary()?];
    if json {
        return print_json(&json!({
            "runs": [run_json(&comparison.runs[0])?, run_json(&comparison.runs[1])?],
            "settings": comparison.settings,
            "curves": comparison.curves,
        }));
    }
    print(&in_words(&comparison, Paint::of_stdout()))
}

fn in_words(comparison: &Comparison, paint: Paint) -> String {
    let [first, second] = &comparison.runs;
    let names_row = |what: &str| [what.to_owned(), first.name.clone(), second.name.clone()];
    let mut text = String::new();
    if comparison.settings.is_empty() {
        text.push_str("The settings are the same.\n");
    } else {
        let mut rows = vec![names_row("SETTING")];
        let shown = |value: &Value| shortened(&setting(value), SHOWN);
        rows.extend(comparison.settings.iter().map(|setting| {
            let [one, other] = &setting.values;
            [setting.key.clone(), shown(one), shown(other)]
        }));
        text.push_str(&table([Align::Left; 3], &rows));
    }
    let mut rows = vec![names_row("RESULT")];
    rows.push(["status".into(), first.status.to_string(), second.status.to_string()]);
    rows.push(["batches".into(), count(first.batches), count(second.batches)]);
    for name in COMPARED {
        if let Some(curves) = comparison.curves.get(name) {
            let last = |points: &[(u64, f64)]| points.last().map_or("–".to_owned(), |point| value(point.1));
            rows.push([name.to_owned(), last(&curves[0]), last(&curves[1])]);
        }
    }
    text.push_str(&format!("\n{}", table([Align::Left, Align::Right, Align::Right], &rows)));
    for name in [names::LOSS, names::EVAL_CROSS_ENTROPY] {
        if let Some([one, other]) = comparison.curves.get(name) {
            text.push_str(&format!("\n{}\n", paint.paint(HEADING, name)));
            text.push_str(&plot([(&first.name, one), (&second.name, other)]));
        }
    }
    text
}

/// A setting as a run file has it.
fn setting(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
