//! `report.html`: the run on one page that needs nothing but itself, for a browser, a phone or paper.
//!
//! It is made from the files of the run folder alone, so it can be made again at any time. All text of the user's
//! (prompts, answers, messages, the run file) passes through the template engine's HTML escaping.

mod chart;
mod format;
mod history;
mod page;
mod thin;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use tessera_files::{FileError, IoContext, write_atomic};

use crate::error::TrackError;
use crate::events::read_events;
use crate::generations::read_generations;
use crate::runs::summarise;
use history::History;
use page::Page;

/// The name decides the escaping: the engine escapes for HTML what ends in `.html`.
const TEMPLATE_NAME: &str = "report.html";
const TEMPLATE: &str = include_str!("../report.html.jinja");

/// Writes `report.html` into `run_folder` from what its other files hold, and gives its path.
///
/// # Errors
/// [`TrackError::NotARun`] where no event was ever written; a broken line in one of the files.
pub fn write_report(run_folder: &Path) -> Result<PathBuf, TrackError> {
    let html = render(run_folder)?;
    let path = run_folder.join("report.html");
    write_atomic(&path, html.as_bytes())?;
    Ok(path)
}

fn render(run_folder: &Path) -> Result<String, TrackError> {
    let events = read_events(run_folder)?;
    let run = summarise(run_folder, &events)?;
    let history = History::read(run_folder)?;
    let run_file = read_if_present(&run_folder.join("run.yaml"))?;
    let page = Page::new(&run, &events, &history, &read_generations(run_folder)?, run_file);
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    Ok(environment.render_named_str(TEMPLATE_NAME, TEMPLATE, Serde(&page))?)
}

fn read_if_present(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("read", path),
    }
}
