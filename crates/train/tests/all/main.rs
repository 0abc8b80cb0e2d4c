//! The engine and whole runs, against goldens of `transformers` and torch and against themselves.
#![allow(clippy::unwrap_used, missing_docs)]

mod candle;
mod context;
#[cfg(feature = "stores")]
mod findings;
mod golden;
mod goldens_of_transformers;
mod mixed;
mod ranks;
mod runs;
mod tiny;
