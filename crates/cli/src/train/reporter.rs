//! What a person sees of a run: the bar while it goes on, and lines that stay.
//!
//! Lines go to standard output, the bar and warnings to standard error. Where the bar is not seen, batches get lines of
//! their own, few enough for a log.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tessera_data::Summary;
use tessera_train::observe::{Answer, EvaluationReport, Observer, Split, StepReport, Update};
use tessera_train::plan::RunPlan;

use crate::failure::NETWORK;
use crate::output::{DIM, HEADING, Paint, complain, last_words};
use crate::summary::run_summary;
use crate::text::{count, counted, duration, percent, rate, shortened, value};
use crate::train::signals;
use crate::watch::{Bar, Progress, Unit};

/// Characters of a prompt or answer that are shown; the whole is in the report.
const SHOWN: usize = 240;
/// The shortest time between two lines about batches.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// The shortest part of the run between them: a long run's log stays readable.
const LINE_PARTS: u64 = 200;
/// The part of the run after which a line comes in any case.
const SURE_PARTS: u64 = 10;

/// Shows a run.
pub struct Reporter {
    bar: Bar,
    /// Lines go to standard error.
    lines_to_stderr: bool,
    /// Batches get lines.
    batch_lines: bool,
    paint: Paint,
    state: Mutex<State>,
}

/// What was said before and is needed again.
#[derive(Default)]
struct State {
    train: Option<Summary>,
    eval: Option<Summary>,
    task: Option<String>,
    first_prompt: Option<String>,
    last_line: Option<(Instant, u64)>,
    /// The bar of the batches, which comes back when something else is done.
    batches: Option<Progress>,
}

impl State {
    /// Whether the batch `done` of `total` gets a line.
    fn line_is_due(&mut self, now: Instant, done: u64, total: u64) -> bool {
        let due = match self.last_line {
            None => true,
            Some(_) if done == total => true,
            Some((then, before)) => {
                let passed = (done - before).saturating_mul(LINE_PARTS) >= total;
                let sure = done * SURE_PARTS / total.max(1) > before * SURE_PARTS / total.max(1);
                sure || (passed && now.duration_since(then) >= LINE_INTERVAL)
            }
        };
        if due {
            self.last_line = Some((now, done));
        }
        due
    }
}

impl Reporter {
    /// A reporter whose lines leave standard output alone where a program reads that.
    pub fn new(lines_to_stderr: bool) -> Self {
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            bar: Bar::default(),
            lines_to_stderr,
            batch_lines: !stderr || !(stdout || lines_to_stderr),
            paint: if lines_to_stderr { Paint::of_stderr() } else { Paint::of_stdout() },
            state: Mutex::default(),
        }
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.bar.clear();
    }

    /// The run's task, once it is known.
    pub fn task(&self) -> Option<String> {
        self.state().task.clone()
    }

    /// The first of the run's eval prompts.
    pub fn first_prompt(&self) -> Option<String> {
        self.state().first_prompt.clone()
    }

    /// Says that the first signal was understood.
    pub fn stopping(&self, signal: i32) {
        let name = signals::name(signal);
        self.aside(&format!("{name}: stopping after this batch, then saving; once more to leave at once"));
    }

    /// Says why the process ends now.
    pub fn leaving(&self, signal: i32, again: bool, has_trained: bool) -> ! {
        let why = match (has_trained, again) {
            (true, _) => {
                "after the last batch: everything is saved here; the same command does what is left to register and upload"
            }
            (false, true) => {
                "again: leaving at once; the same command goes on from the newest checkpoint, if there is one"
            }
            (false, false) => {
                "before the first batch: nothing to save; the same command goes on from the newest checkpoint, if there is one"
            }
        };
        last_words(format!("{} {why}", signals::name(signal)), signals::exit_code(signal))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line about the process itself, for the person at the terminal.
    fn aside(&self, text: &str) {
        self.bar.aside(|| drop(writeln!(io::stderr(), "{text}")));
    }

    /// Lines that stay. A reader that has gone does not end the training.
    fn say(&self, text: &str) {
        self.bar.aside(|| {
            if self.lines_to_stderr {
                drop(writeln!(io::stderr(), "{text}"));
            } else {
                drop(writeln!(io::stdout(), "{text}"));
            }
        });
    }

    fn planned(&self, plan: &RunPlan) {
        let mut state = self.state();
        state.task = Some(plan.settings.task_type.to_string());
        state.first_prompt = plan.settings.eval_prompts.first().cloned();
        let none = Summary::default();
        let (train, eval) = (state.train.as_ref().unwrap_or(&none), state.eval.as_ref());
        let text = run_summary(self.paint, plan, train, eval);
        drop(state);
        self.bar.clear();
        self.say(&text);
    }

    fn step(&self, step: &StepReport) {
        let done = step.batch + 1;
        let mfu = step.mfu.map(|mfu| format!("  MFU {}", percent(mfu))).unwrap_or_default();
        // What matters most comes first: a narrow terminal cuts the end of the bar's line.
        let figures = format!(
            "loss {}  {} left  {} tokens/s  lr {}{mfu}",
            value(step.loss),
            duration(step.remaining),
            count(step.tokens_per_second.round() as u64),
            rate(step.learning_rate),
        );
        if self.batch_lines && self.state().line_is_due(Instant::now(), done, step.total_batches) {
            let gradient = value(step.gradient_norm);
            self.say(&format!("batch {done}/{}  {figures}  gradient norm {gradient}", step.total_batches));
        }
        self.show_batches(done, step.total_batches, figures);
    }

    fn show_batches(&self, done: u64, total: u64, message: String) {
        let progress = Progress { message, ..Progress::new("training", Unit::Things, done, total) };
        self.bar.show(&progress);
        self.state().batches = Some(progress);
    }

    /// Draws the batches again, if they have begun.
    fn back_to_batches(&self) {
        if let Some(progress) = &self.state().batches {
            self.bar.show(progress);
        }
    }

    fn evaluated(&self, report: &EvaluationReport) {
        self.say(&format!(
            "{} after {}: cross-entropy {}, perplexity {}, accuracy {}",
            self.paint.paint(HEADING, "Evaluation"),
            counted(report.batch, "batch", "batches"),
            value(report.cross_entropy),
            value(report.perplexity()),
            percent(report.accuracy)
        ));
    }

    fn answered(&self, answers: &[Answer]) {
        for answer in answers {
            let prompt = self.paint.paint(DIM, &format!("  > {}", shortened(&answer.prompt, SHOWN)));
            self.say(&format!("{prompt}\n    {}", shortened(&answer.text, SHOWN)));
        }
    }

    fn path(&self, what: &str, path: &Path) {
        self.say(&format!("{} {}", self.paint.paint(HEADING, what), path.display()));
    }
}

impl Observer for Reporter {
    fn observe(&self, update: Update<'_>) {
        if let Some(progress) = Progress::of(update) {
            self.bar.show(&progress);
        }
        match update {
            Update::Prepared(Split::Train, summary) => self.state().train = Some(summary.clone()),
            Update::Prepared(Split::Eval, summary) => self.state().eval = Some(summary.clone()),
            Update::Planned(plan) => self.planned(plan),
            Update::Resumed { checkpoint, .. } => self.path("Going on from", checkpoint),
            Update::Evaluated(report) => {
                self.evaluated(report);
                self.back_to_batches();
            }
            Update::Answered(answers) => {
                self.answered(answers);
                self.back_to_batches();
            }
            Update::Tracked(address) => {
                self.say(&format!("{} {address}", self.paint.paint(HEADING, "Tracked at")))
            }
            Update::TrainingStarts { batch, total } => {
                self.show_batches(batch, total, String::new());
            }
            Update::Step(step) => self.step(step),
            Update::CheckpointSaved(path) => self.path("Saved", path),
            Update::Exported(path) => {
                self.path("Exported", path);
                self.back_to_batches();
            }
            Update::Registered(registered) => {
                self.say(&format!("{} as {registered}", self.paint.paint(HEADING, "Registered")))
            }
            Update::Warning(warning) => self.bar.aside(|| complain("warning", warning)),
            // The ranks that wait cannot end the process.
            Update::Stalled(alarm) => last_words(format!("error: {alarm}"), NETWORK),
            Update::Uploaded(url) => self.say(&format!("{} {url}", self.paint.paint(HEADING, "Uploaded to"))),
            Update::Downloading(_)
            | Update::Uploading(_)
            | Update::Preparing(..)
            | Update::CheckingWeights { .. }
            | Update::LoadingWeights { .. }
            | Update::Evaluating { .. }
            | Update::Answering { .. }
            | Update::Exporting(_)
            | Update::Registering(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(total: u64, batch: Duration) -> Vec<u64> {
        let (mut state, start) = (State::default(), Instant::now());
        (1..=total)
            .filter(|&done| state.line_is_due(start + batch * u32::try_from(done).unwrap_or(0), done, total))
            .collect()
    }

    #[test]
    fn quick_runs_get_a_line_at_each_tenth_and_the_first_and_last() {
        assert_eq!(lines(30, Duration::ZERO), [1, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]);
        assert_eq!(lines(1, Duration::ZERO), [1]);
    }

    #[test]
    fn slow_runs_get_a_line_every_few_seconds_and_long_ones_not_more_than_some_hundred() {
        assert_eq!(lines(5, Duration::from_secs(3)), [1, 2, 3, 4, 5]);
        let long = lines(100_000, Duration::from_secs(1)).len();
        assert!((200..=220).contains(&long), "{long}");
    }
}
