//! The live line at the foot of a terminal: one bar for whatever is under way. Where standard error is no terminal,
//! nothing is drawn.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tessera_data::Stage;
use tessera_train::observe::{Observer, Split, Update};

use crate::output::complain;

/// What a bar counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, with the time left.
    Bytes,
    /// Things, with a message behind them.
    Things,
    /// Nothing that is known: a spinner.
    Unknown,
}

/// How far something has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done. Another text begins another bar.
    pub what: String,
    /// What is counted.
    pub unit: Unit,
    /// How many are behind.
    pub done: u64,
    /// How many there are.
    pub total: u64,
    /// What else there is to say.
    pub message: String,
}

impl Progress {
    /// Progress without a message.
    pub fn new(what: impl Into<String>, unit: Unit, done: u64, total: u64) -> Self {
        Self { what: what.into(), unit, done, total, message: String::new() }
    }

    /// What an update says about how far something has come; `None` if it tells of something else.
    pub fn of(update: Update<'_>) -> Option<Self> {
        let things = |what: &str, done: usize, total: usize| {
            Some(Self::new(what, Unit::Things, done as u64, total as u64))
        };
        match update {
            Update::Downloading(file) => {
                Some(Self::new(format!("fetching {}", file.file), Unit::Bytes, file.done, file.total))
            }
            Update::Uploading(file) => {
                Some(Self::new(format!("uploading {}", file.file), Unit::Bytes, file.done, file.total))
            }
            Update::Preparing(split, progress) => {
                let data = split_name(split);
                let (what, unit) = match progress.stage {
                    Stage::Waiting => {
                        (format!("waiting for another process that prepares {data}"), Unit::Unknown)
                    }
                    Stage::Checking => (format!("checking {data}"), Unit::Bytes),
                    Stage::Tokenizing => (format!("tokenising {data}"), Unit::Bytes),
                };
                Some(Self::new(what, unit, progress.done, progress.total))
            }
            Update::CheckingWeights { done, total } => things("checking weights", done, total),
            Update::LoadingWeights { done, total } => things("loading weights", done, total),
            Update::Evaluating { done, total } => things("evaluating", done, total),
            Update::Answering { prompts } => {
                let what = format!("answering {prompts} {}", if prompts == 1 { "prompt" } else { "prompts" });
                Some(Self::new(what, Unit::Unknown, 0, 0))
            }
            Update::Exporting(path) => {
                Some(Self::new(format!("exporting to {}", path.display()), Unit::Unknown, 0, 0))
            }
            Update::Registering(place) => {
                Some(Self::new(format!("registering as {place}"), Unit::Unknown, 0, 0))
            }
            _ => None,
        }
    }
}

/// What a data set is called.
pub fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "training data",
        Split::Eval => "evaluation data",
    }
}

/// The bar on standard error.
#[derive(Debug, Default)]
pub struct Bar {
    current: Mutex<Option<(String, ProgressBar)>>,
}

impl Bar {
    /// Draws `progress`, in place of what was drawn before.
    pub fn show(&self, progress: &Progress) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|(what, _)| *what != progress.what) {
            if let Some((_, old)) = current.take() {
                old.finish_and_clear();
            }
            *current = Some((progress.what.clone(), new_bar(progress)));
        }
        if let Some((_, bar)) = current.as_ref() {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            bar.set_message(progress.message.clone());
        }
    }

    /// Removes what is drawn.
    pub fn clear(&self) {
        if let Some((_, bar)) = self.current.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }

    /// Prints something while the bar is out of the way.
    pub fn aside(&self, print: impl FnOnce()) {
        match self.current.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some((_, bar)) => bar.suspend(print),
            None => print(),
        }
    }
}

fn new_bar(progress: &Progress) -> ProgressBar {
    let template = match progress.unit {
        Unit::Bytes => "{prefix} {bar:24} {bytes}/{total_bytes}, {eta} left",
        Unit::Things => "{prefix} {bar:16} {human_pos}/{human_len} {wide_msg}",
        Unit::Unknown => "{spinner} {prefix}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(progress.total), ProgressDrawTarget::stderr())
        .with_style(style.progress_chars("━╸·"))
        .with_prefix(progress.what.clone());
    if progress.unit == Unit::Unknown {
        bar.enable_steady_tick(Duration::from_millis(120));
    }
    bar
}

/// Watches what comes before a result: bars and warnings, nothing on standard output.
#[derive(Debug, Default)]
pub struct Watcher {
    bar: Bar,
}

impl Watcher {
    /// Removes what is drawn.
    pub fn clear(&self) {
        self.bar.clear();
    }
}

impl Observer for Watcher {
    fn observe(&self, update: Update<'_>) {
        if let Some(progress) = Progress::of(update) {
            self.bar.show(&progress);
        } else if let Update::Warning(warning) = update {
            self.bar.aside(|| complain("warning", warning));
        }
    }
}
