//! From a source file to the batch at a position.
//!
//! The pipeline, a module a stage: `source` reads records from files of any kind, [`delta`] says which files a table is, `validate` makes examples of them and
//! refuses bad ones by name, `template` renders conversations and cuts them into turns, `tokenize` makes tokens
//! and a loss mask, `mix` orders examples of several sources, [`pack`] puts examples into rows, `cache` keeps all that on disk, [`order`] says which rows a
//! batch has and `batch` gathers them. [`prepare()`] runs the stages; [`inspect`] shows what came out. Nothing
//! here knows of models or devices.

mod batch;
mod cache;
pub mod delta;
mod error;
pub mod inspect;
mod mix;
pub mod order;
pub mod pack;
mod pin;
mod prepare;
mod progress;
mod settings;
mod source;
mod summary;
mod template;
mod tokenize;
mod validate;

pub use batch::{Dataset, IGNORED_LABEL, MicroBatch};
pub use error::{DataError, RowProblem};
pub use order::{Order, split};
pub use pin::Pin;
pub use prepare::prepare;
pub use progress::{Progress, Report, Stage};
pub use settings::{
    Columns, Contents, DataSettings, Fetched, HoldOut, Packing, SourceSettings, TargetResponses, Task,
};
pub use source::{Unit, is_file_name, table_among, wanted_names};
pub use summary::{LengthHistogram, SourceSummary, Summary};
pub use tokenize::TextTokenizer;
pub use validate::validate;
