//! The answers to the run file's `eval_prompts`, `generations.jsonl`: the table that shows, checkpoint by
//! checkpoint, what training does to the model's words.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::TrackError;
use crate::jsonl::{Line, LineFile, ResumePoint, read_lines};

const FILE: &str = "generations.jsonl";

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Batches done when the answer was given; 0 is before training.
    pub batch: u64,
    /// The prompt as the run file has it.
    pub prompt: String,
    /// What the model wrote.
    pub answer: String,
}

impl Line for Generation {
    const EXPECTED: &'static str = r#"one answer, {"batch": …, "prompt": …, "answer": …}"#;
}

/// Appends to a run's `generations.jsonl`.
#[derive(Debug)]
pub struct GenerationsLog {
    lines: LineFile,
}

impl GenerationsLog {
    /// Opens or creates the file in `run_folder`. Answers given after the checkpoint being resumed are cut. `None` starts
    /// over.
    pub fn open(run_folder: &Path, resumed: Option<ResumePoint>) -> Result<Self, TrackError> {
        let path = run_folder.join(FILE);
        let lines = match resumed {
            Some(point) => LineFile::open_while(path, |line: &Generation| point.keeps(line.batch))?,
            None => LineFile::open_empty(path)?,
        };
        Ok(Self { lines })
    }

    /// Writes one checkpoint's answers in one go and syncs them.
    pub fn append(&mut self, answers: &[Generation]) -> Result<(), TrackError> {
        self.lines.append(answers)?;
        Ok(self.lines.sync()?)
    }
}

/// All answers of a run, oldest first. A run without the file has none.
pub fn read_generations(run_folder: &Path) -> Result<Vec<Generation>, TrackError> {
    read_lines(&run_folder.join(FILE))?.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answer(batch: u64) -> Generation {
        Generation { batch, prompt: "2+2?\n".to_owned(), answer: format!("\"{batch}\"") }
    }

    #[test]
    fn a_resumed_run_keeps_the_answers_up_to_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = GenerationsLog::open(folder.path(), None).unwrap();
        for batch in [0, 10, 20] {
            log.append(&[answer(batch)]).unwrap();
        }
        GenerationsLog::open(folder.path(), Some(ResumePoint::after(10)))
            .unwrap()
            .append(&[answer(15)])
            .unwrap();
        assert_eq!(read_generations(folder.path()).unwrap(), [answer(0), answer(10), answer(15)]);
        GenerationsLog::open(folder.path(), None).unwrap();
        assert_eq!(read_generations(folder.path()).unwrap(), []);
    }
}
