//! `tessera inspect`: what the model sees of a packed row, and what it learns from it.

use clap::Args;
use serde_json::{Value, json};
use tessera_data::Task;
use tessera_data::inspect::{InspectedDocument, InspectedToken, inspect_row};
use tessera_train::TrainError;
use tessera_train::plan::Prepared;

use crate::failure::Failure;
use crate::output::{DIM, GOOD, HEADING, Paint, print, print_json};
use crate::run_file::RunFile;
use crate::text::{count, counted, harmless};

/// Shows packed rows: their documents, decoded, with the loss tokens in colour.
///
/// Where there is no colour, loss tokens stand between [[ and ]].
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tessera inspect run.yaml --row 3\n  tessera inspect run.yaml --batch 0 target_responses=last"
)]
pub struct InspectArguments {
    #[command(flatten)]
    run_file: RunFile,
    /// The packed row, counted from 0 [default: the first of the first batch]
    #[arg(long, conflicts_with = "batch")]
    row: Option<usize>,
    /// All rows of a batch of the run, counted from 0
    #[arg(long)]
    batch: Option<u64>,
    /// Print tokens, texts and marks as JSON
    #[arg(long)]
    json: bool,
}

impl InspectArguments {
    /// Prints the rows.
    pub fn run(self) -> Result<(), Failure> {
        let prepared = self.run_file.prepare()?;
        let rows = self.rows(&prepared)?;
        let mut shown = Vec::with_capacity(rows.len());
        for row in rows {
            let documents =
                inspect_row(&prepared.train, &prepared.tokenizer, row).map_err(TrainError::from)?;
            shown.push((row, documents));
        }
        if self.json {
            let rows: Vec<_> = shown.iter().map(|(row, documents)| row_json(*row, documents)).collect();
            return print_json(&rows);
        }
        let paint = Paint::of_stdout();
        let texts: Vec<_> =
            shown.iter().map(|(row, documents)| row_text(paint, &prepared, *row, documents)).collect();
        print(&texts.join("\n"))
    }

    /// The rows that are asked for.
    fn rows(&self, prepared: &Prepared) -> Result<Vec<usize>, Failure> {
        let rows = prepared.train.rows();
        match self.row {
            Some(row) if row >= rows => Err(Failure::Argument(format!(
                "--row {row}: the data has {}, counted from 0 to {}",
                counted(rows, "packed row", "packed rows"),
                rows.saturating_sub(1)
            ))),
            Some(row) => Ok(vec![row]),
            None => {
                let mut rows = self.batch_rows(prepared, self.batch.unwrap_or(0))?;
                rows.truncate(if self.batch.is_some() { rows.len() } else { 1 });
                Ok(rows)
            }
        }
    }

    fn batch_rows(&self, prepared: &Prepared, batch: u64) -> Result<Vec<usize>, Failure> {
        let length = &prepared.plan.length;
        if batch >= length.total_batches {
            return Err(Failure::Argument(format!(
                "--batch {batch}: the run has {}, counted from 0",
                counted(length.total_batches, "batch", "batches")
            )));
        }
        let in_epoch = length.epoch.batches().max(1);
        let rows = prepared.order().rows_of(batch / in_epoch, (batch % in_epoch) as usize);
        Ok(rows.into_iter().flatten().collect())
    }
}

fn learnt(document: &InspectedDocument) -> usize {
    document.tokens.iter().filter(|token| token.loss).count()
}

fn row_json(row: usize, documents: &[InspectedDocument]) -> Value {
    let token = |token: &InspectedToken| json!({"id": token.id, "text": token.text, "loss": token.loss});
    let document = |document: &InspectedDocument| {
        let tokens: Vec<_> = document.tokens.iter().map(token).collect();
        json!({"origin": document.origin, "tokens": tokens})
    };
    json!({"row": row, "documents": documents.iter().map(document).collect::<Vec<_>>()})
}

fn row_text(paint: Paint, prepared: &Prepared, row: usize, documents: &[InspectedDocument]) -> String {
    let tokens: usize = documents.iter().map(|document| document.tokens.len()).sum();
    let loss_tokens: usize = documents.iter().map(learnt).sum();
    let heading = format!(
        "Row {} of {}: {}, {} of {} tokens, {}",
        count(row),
        count(prepared.train.rows()),
        counted(documents.len(), "document", "documents"),
        count(tokens),
        count(prepared.plan.settings.context_length),
        counted(loss_tokens, "loss token", "loss tokens"),
    );
    let mut text = paint.paint(HEADING, &heading) + "\n";
    for (index, document) in documents.iter().enumerate() {
        let heading = format!(
            "── document {} of {}, {} {}: {}, {}",
            index + 1,
            documents.len(),
            origin_name(prepared.plan.settings.task()),
            count(document.origin),
            counted(document.tokens.len(), "token", "tokens"),
            counted(learnt(document), "loss token", "loss tokens"),
        );
        text.push_str(&format!("{}\n{}\n", paint.paint(DIM, &heading), marked(paint, document)));
    }
    text
}

/// What a document's number counts.
fn origin_name(task: Task) -> &'static str {
    match task {
        Task::ChatCompletion | Task::InstructionFinetune => "line",
        Task::ContinuedPretrain => "text file",
    }
}

/// A document's text, what has loss in colour or between marks.
fn marked(paint: Paint, document: &InspectedDocument) -> String {
    let stretches = document.tokens.chunk_by(|first, second| first.loss == second.loss);
    let stretch = |tokens: &[InspectedToken]| {
        let text: String = tokens.iter().map(|token| harmless(&token.text)).collect();
        match (tokens.first().is_some_and(|token| token.loss), paint.is_on()) {
            (true, true) => paint.paint(GOOD, &text),
            (true, false) => format!("[[{text}]]"),
            (false, _) => text,
        }
    };
    stretches.map(stretch).collect()
}
