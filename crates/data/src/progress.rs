//! How far a data set's preparation has come, for whoever draws the bar.

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Another process is preparing data in the same cache folder; `done` and `total` are 0.
    Waiting,
    /// Every row is checked against the rules of its task.
    Checking,
    /// Text becomes tokens.
    Tokenizing,
}

/// One report: `done` of `total` bytes of the source have been through `stage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of the source behind.
    pub done: u64,
    /// Bytes of the source in all.
    pub total: u64,
}

/// Takes the reports. They come from one thread at a time, `done` rising within a stage.
pub type Report<'a> = &'a (dyn Fn(Progress) + Sync);
