//! The engine and whole runs, against goldens of `transformers` and torch and against themselves.
#![allow(clippy::unwrap_used, missing_docs)]

mod golden;
mod goldens_of_transformers;
mod runs;
mod tiny;
