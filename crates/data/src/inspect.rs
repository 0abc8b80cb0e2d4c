//! A packed row in readable form: its documents, token by token, with what is learnt.

use crate::batch::{Dataset, IGNORED_LABEL};
use crate::error::DataError;
use crate::tokenize::TextTokenizer;

/// One token of an inspected document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedToken {
    /// The id.
    pub id: u32,
    /// The text it completes. A character whose bytes span tokens is shown with the last of them.
    pub text: String,
    /// Whether it is predicted from the token before it, so that the loss counts it. The first token of a row's
    /// document never is: if a document was cut there, the row before has that target.
    pub loss: bool,
}

/// One document, or part of one, of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedDocument {
    /// The line, row or text file that it comes from, counted from 1 as if all files were one.
    pub origin: u64,
    /// Its tokens.
    pub tokens: Vec<InspectedToken>,
}

/// The documents of a row. Panics, as [`Dataset`] does, on a row that is not there.
pub fn inspect_row(
    dataset: &Dataset,
    tokenizer: &TextTokenizer,
    row: usize,
) -> Result<Vec<InspectedDocument>, DataError> {
    let document = |piece| {
        let (tokens, labels) = dataset.content(&piece);
        Ok(InspectedDocument { origin: piece.origin, tokens: inspect_tokens(tokenizer, tokens, labels)? })
    };
    dataset.pieces(row).map(document).collect()
}

fn inspect_tokens(
    tokenizer: &TextTokenizer,
    tokens: &[u32],
    labels: &[i32],
) -> Result<Vec<InspectedToken>, DataError> {
    let mut stream = tokenizer.inner().decode_stream(false);
    let learnt = std::iter::once(false).chain(labels.iter().map(|&label| label != IGNORED_LABEL));
    let token = |(&id, loss): (&u32, bool)| {
        let text = stream.step(id).map_err(|error| DataError::Tokenizer(error.to_string()))?;
        Ok(InspectedToken { id, text: text.unwrap_or_default(), loss })
    };
    tokens.iter().zip(learnt).map(token).collect()
}
