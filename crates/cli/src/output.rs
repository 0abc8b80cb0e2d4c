//! Printing: results to standard output in one go, complaints to standard error, colours where a person looks.
//!
//! Nothing here panics when the reader has gone, as `println!` would.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Effects, Style};
use serde::Serialize;

use crate::failure::Failure;

/// What a heading looks like.
pub const HEADING: Style = Style::new().effects(Effects::BOLD);
/// What can be passed over.
pub const DIM: Style = Style::new().effects(Effects::DIMMED);
/// What is learnt, or has gone well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// What deserves a second look.
pub const CAREFUL: Style = AnsiColor::Yellow.on_default().effects(Effects::BOLD);
/// What failed.
pub const BAD: Style = AnsiColor::Red.on_default().effects(Effects::BOLD);

/// Whether text for a stream may be coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// For standard output.
    pub fn of_stdout() -> Self {
        Self::of(&io::stdout())
    }

    /// For standard error.
    pub fn of_stderr() -> Self {
        Self::of(&io::stderr())
    }

    /// A person looks at a terminal, and has not said no (<https://no-color.org>).
    fn of(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self(stream.is_terminal() && !refused && !dumb)
    }

    /// Whether colours are used at all.
    pub fn is_on(self) -> bool {
        self.0
    }

    /// `text` in a style, or as it is.
    pub fn paint(self, style: Style, text: &str) -> String {
        if self.0 { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// Prints a result.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Prints a result as JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Prints `kind: text` to standard error. If that is closed there is no one left to tell.
pub fn complain(kind: &str, text: &str) {
    let style = if kind == "error" { BAD } else { CAREFUL };
    let kind = Paint::of_stderr().paint(style, &format!("{kind}:"));
    let _ = writeln!(io::stderr(), "{kind} {text}");
}

/// Says something on standard error and ends the process, whether or not anybody takes what is said: a terminal may be
/// stopped, a pipe full, and whoever waits for it would never leave.
pub fn last_words(text: String, code: u8) -> ! {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (said, done) = mpsc::channel();
    thread::spawn(move || {
        let _ = writeln!(io::stderr(), "{text}");
        let _ = said.send(());
    });
    let _ = done.recv_timeout(PATIENCE);
    std::process::exit(i32::from(code))
}
