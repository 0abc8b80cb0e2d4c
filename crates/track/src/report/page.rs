//! What stands on the page: everything formatted, nothing escaped (the template engine does that).

use std::collections::BTreeMap;

use serde::Serialize;

use super::chart::{self, Chart, Curve, MOST_POINTS, Scale, chart};
use super::format;
use super::history::History;
use super::thin::{Point, smoothed};
use crate::events::{Event, EventType, RunStatus};
use crate::generations::Generation;
use crate::metrics::names;
use crate::runs::{RunSummary, StoredFolder};

/// From so many batches on, the loss of a batch is drawn faintly under its trend.
const SMOOTHED_FROM: usize = 24;

/// The template's input.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    name: String,
    model: Option<String>,
    task_type: Option<String>,
    status: RunStatus,
    /// Why the run ended before its end.
    reason: Option<String>,
    figures: Vec<Figure>,
    charts: Vec<Chart>,
    /// The box of the charts' paths.
    width: f64,
    height: f64,
    evaluations: Option<Evaluations>,
    prompts: Vec<Prompt>,
    checkpoints: Vec<Stored>,
    exports: Vec<Stored>,
    timeline: Vec<Moment>,
    run_file: Option<String>,
}

/// A figure of the top row.
#[derive(Debug, Serialize)]
struct Figure {
    label: &'static str,
    before: Option<String>,
    value: String,
    note: Option<String>,
}

/// The table of evaluations.
#[derive(Debug, Serialize)]
struct Evaluations {
    columns: Vec<String>,
    rows: Vec<EvaluationRow>,
}

#[derive(Debug, Serialize)]
struct EvaluationRow {
    batch: String,
    values: Vec<Option<String>>,
    is_best: bool,
}

/// A prompt and what was answered to it in the course of training.
#[derive(Debug, Serialize)]
struct Prompt {
    prompt: String,
    answers: Vec<Answer>,
}

#[derive(Debug, Serialize)]
struct Answer {
    when: String,
    answer: String,
}

/// A checkpoint or export.
#[derive(Debug, Serialize)]
struct Stored {
    path: String,
    size: String,
}

/// A line of the timeline.
#[derive(Debug, Serialize)]
struct Moment {
    time: String,
    kind: String,
    status: RunStatus,
    message: String,
}

impl Page {
    pub(super) fn new(
        run: &RunSummary,
        events: &[Event],
        history: &History,
        generations: &[Generation],
        run_file: Option<String>,
    ) -> Self {
        let ended_early = matches!(run.status, RunStatus::Failed | RunStatus::Stopped);
        let last_event = events.last().filter(|_| ended_early);
        Self {
            name: run.name.clone(),
            model: run.model.clone(),
            task_type: run.task_type.clone(),
            status: run.status,
            reason: last_event.map(|event| event.message.clone()),
            figures: figures(run, history),
            charts: charts(history),
            width: chart::WIDTH,
            height: chart::HEIGHT,
            evaluations: evaluations(history),
            prompts: prompts(generations),
            checkpoints: stored("checkpoints", &run.checkpoints),
            exports: stored("huggingface", &run.exports),
            timeline: timeline(events),
            run_file,
        }
    }
}

fn figures(run: &RunSummary, history: &History) -> Vec<Figure> {
    let last = |name: &str| history.last.get(name).copied();
    let mut figures = Vec::new();
    figures.extend(course("Training loss", &history.loss, format::value, relative_change));
    let evaluated = history.evaluated(names::EVAL_CROSS_ENTROPY);
    figures.extend(course("Evaluation loss", &evaluated, format::value, relative_change));
    let accuracy = history.evaluated(names::EVAL_ACCURACY);
    figures.extend(course("Evaluation token accuracy", &accuracy, format::percentage, |from, to| {
        format!("{:+.1} points", (to - from) * 100.0).replace('-', "−")
    }));
    let batches = format!("in {}", format::batches(run.batches));
    figures.extend(
        last(names::TOKEN)
            .map(|tokens| plain("Tokens trained on", format::count(tokens as u64), Some(batches))),
    );
    let started = format!("started {}", format::time(run.started));
    figures.push(plain("Time", format::duration(run.duration), Some(started)));
    let mfu = last(names::MFU).map(|mfu| format!("{} MFU", format::percentage(mfu)));
    let memory = last(names::PEAK_MEMORY).map(|gigabytes| format!("{gigabytes:.1} GB at most"));
    let notes: Vec<_> = mfu.into_iter().chain(memory).collect();
    let notes = (!notes.is_empty()).then(|| notes.join(" · "));
    let speed = last(names::TOKENS_PER_SECOND);
    figures.extend(speed.map(|speed| plain("Tokens a second", format::value(speed), notes)));
    figures
}

fn plain(label: &'static str, value: String, note: Option<String>) -> Figure {
    Figure { label, before: None, value, note }
}

/// The first and the last value of a curve and what lies between them.
fn course(
    label: &'static str,
    points: &[Point],
    shown: fn(f64) -> String,
    change: fn(f64, f64) -> String,
) -> Option<Figure> {
    match points {
        [] => None,
        [only] => Some(plain(label, shown(only.1), Some(format!("at batch {}", only.0)))),
        [first, .., last] => Some(Figure {
            label,
            before: Some(shown(first.1)),
            value: shown(last.1),
            note: Some(change(first.1, last.1)),
        }),
    }
}

fn relative_change(from: f64, to: f64) -> String {
    format!("{:+.0}\u{202f}%", (to - from) / from.abs() * 100.0).replace('-', "−")
}

fn charts(history: &History) -> Vec<Chart> {
    let trend = smoothed(&history.loss, MOST_POINTS);
    let evaluated = history.evaluated(names::EVAL_CROSS_ENTROPY);
    let curve = |name, class, points| Curve { name, class, points, has_dots: false };
    let evaluation = Curve { name: "evaluation", class: "evaluation", points: &evaluated, has_dots: true };
    let loss = if history.loss.len() < SMOOTHED_FROM {
        vec![curve("training", "training", &history.loss), evaluation]
    } else {
        vec![
            curve("each batch", "each", &history.loss),
            curve("training, smoothed", "training", &trend),
            evaluation,
        ]
    };
    let mut loss = chart("Loss", "nats for each token", Scale::Fitted, &loss);
    if let Some(chart) = &mut loss {
        let missing = history.batches_without_loss;
        chart.note = (missing > 0).then(|| format!("{} without a finite loss", format::batches(missing)));
    }
    let single =
        |title, unit, scale, points| chart(title, unit, scale, &[curve("training", "training", points)]);
    let rate = single("Learning rate", "", Scale::FromZero, &history.learning_rate);
    let norm = single("Gradient norm", "before clipping", Scale::Fitted, &history.gradient_norm);
    let speed = single("Throughput", "tokens a second", Scale::FromZero, &history.tokens_per_second);
    [loss, rate, norm, speed].into_iter().flatten().collect()
}

/// `None` if nothing was evaluated.
fn evaluations(history: &History) -> Option<Evaluations> {
    let mut names: Vec<&String> = Vec::new();
    for name in history.evaluations.values().flat_map(BTreeMap::keys) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let losses = history.evaluated(names::EVAL_CROSS_ENTROPY);
    let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map(|point| point.0);
    let rows = history.evaluations.iter().map(|(&batch, evaluation)| EvaluationRow {
        batch: format::count(batch),
        values: names.iter().map(|&name| Some(evaluated(name, *evaluation.get(name)?))).collect(),
        is_best: losses.len() > 1 && best == Some(batch as f64),
    });
    let rows: Vec<_> = rows.collect();
    let columns = names.iter().map(|name| column_title(name)).collect();
    (!rows.is_empty()).then_some(Evaluations { columns, rows })
}

fn evaluated(name: &str, value: f64) -> String {
    if name.ends_with("Accuracy") { format::percentage(value) } else { format::value(value) }
}

fn column_title(name: &str) -> String {
    match name {
        "LanguageCrossEntropy" => "Cross-entropy (nats)".to_owned(),
        "LanguagePerplexity" => "Perplexity".to_owned(),
        "TokenAccuracy" => "Token accuracy".to_owned(),
        other => other.to_owned(),
    }
}

/// The answers by prompt, in the order of the first appearance. Where a prompt was answered twice at one
/// checkpoint, as by a run that was taken up there, the later answer is shown.
fn prompts(generations: &[Generation]) -> Vec<Prompt> {
    let mut order: Vec<&str> = Vec::new();
    let mut answers: BTreeMap<&str, BTreeMap<u64, &str>> = BTreeMap::new();
    for generation in generations {
        if !answers.contains_key(generation.prompt.as_str()) {
            order.push(&generation.prompt);
        }
        answers.entry(&generation.prompt).or_default().insert(generation.batch, &generation.answer);
    }
    let answer = |(batch, answer): (u64, &str)| {
        let when = match batch {
            0 => "before training".to_owned(),
            _ => format!("after {}", format::batches(batch)),
        };
        Answer { when, answer: answer.to_owned() }
    };
    let prompt = |prompt: &str| Prompt {
        prompt: prompt.to_owned(),
        answers: answers.remove(prompt).unwrap_or_default().into_iter().map(answer).collect(),
    };
    order.into_iter().map(prompt).collect()
}

fn stored(parent: &str, folders: &[StoredFolder]) -> Vec<Stored> {
    let row = |folder: &StoredFolder| Stored {
        path: format!("{parent}/{}", folder.name),
        size: format::bytes(folder.bytes),
    };
    folders.iter().map(row).collect()
}

/// The events without those that only say that training goes on: the curves show it.
fn timeline(events: &[Event]) -> Vec<Moment> {
    let moment = |event: &Event| Moment {
        time: format::time(event.time),
        kind: event.kind.to_string(),
        status: event.kind.status(),
        message: event.message.clone(),
    };
    events.iter().filter(|event| event.kind != EventType::TrainUpdated).map(moment).collect()
}
