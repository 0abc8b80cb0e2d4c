//! What threads make tokens of side by side: rows, and parts of documents.

use crate::error::{DataError, RowProblem};
use crate::settings::{DataSettings, HoldOut};
use crate::source::{Document, Place, Record, Source};
use crate::tokenize::{TextTokenizer, Tokenized};
use crate::validate::{self, Example};

/// Why a row gave no tokens.
pub(super) enum RowError {
    /// The template or tokenizer does not take it: a problem of the row.
    Refused(String),
    /// An id that the model does not have: a problem of the tokenizer.
    Outside(u32),
}

/// A document and where it comes from.
pub(super) struct Placed<'text> {
    pub(super) document: Document,
    pub(super) place: Place<'text>,
    pub(super) origin: usize,
}

impl<'text> Placed<'text> {
    /// The document of a record, with the record's number.
    pub(super) fn open(record: Record<'text>, source: &Source) -> (usize, Result<Self, RowProblem>) {
        let (place, origin) = (record.place, record.origin);
        (origin, validate::document(record, source).map(|document| Self { document, place, origin }))
    }
}

/// A part of a document that is tokenised by itself.
pub(super) struct Part<'text> {
    pub(super) document: &'text Placed<'text>,
    pub(super) text: &'text str,
    pub(super) first: bool,
    pub(super) last: bool,
}

/// Makes tokens as a data set's settings say.
#[derive(Clone, Copy)]
pub(super) struct Tokenizing<'run> {
    pub(super) settings: &'run DataSettings,
    pub(super) tokenizer: &'run TextTokenizer,
}

impl Tokenizing<'_> {
    /// The tokens of a row with where it comes from; none of one that the data set does not have.
    pub(super) fn row<'source>(
        self,
        record: Record<'source>,
        source: &'source Source,
    ) -> (Place<'source>, usize, Result<Option<Tokenized>, RowError>) {
        let Record { place, origin, mut content } = record;
        let DataSettings { task, target_responses, context_length, hold_out, .. } = *self.settings;
        let mut tokenize = || {
            let example = Example::parse(&mut content, source, task).map_err(RowError::Refused)?;
            if !takes(hold_out, || example.fingerprint()) {
                return Ok(None);
            }
            let tokenized = self.tokenizer.example(&example, target_responses, context_length);
            let tokenized = tokenized.map_err(RowError::Refused)?;
            self.below_limit(&tokenized.tokens)?;
            Ok(Some(tokenized))
        };
        let tokenized = tokenize();
        (place, origin, tokenized)
    }

    /// The tokens of a part of a document.
    pub(super) fn part(self, part: &Part<'_>) -> Result<Vec<u32>, RowError> {
        let mut tokens = Vec::new();
        self.tokenizer.encode_part(part.text, part.first, &mut tokens).map_err(RowError::Refused)?;
        self.below_limit(&tokens)?;
        Ok(tokens)
    }

    /// Why a part gave no tokens, as the run's error.
    pub(super) fn part_error(self, part: &Part<'_>, error: RowError) -> DataError {
        let place = part.document.place.shown();
        match error {
            RowError::Refused(message) => DataError::Tokenizer(format!("{place}: {message}")),
            RowError::Outside(id) => self.outside(place, id),
        }
    }

    /// Refuses ids that the model does not have.
    pub(super) fn below_limit(self, tokens: &[u32]) -> Result<(), RowError> {
        match tokens.iter().max() {
            Some(&id) if id as usize >= self.settings.vocab_size => Err(RowError::Outside(id)),
            _ => Ok(()),
        }
    }

    /// The error of such an id.
    pub(super) fn outside(self, place: String, id: u32) -> DataError {
        let token = self.tokenizer.inner().id_to_token(id).unwrap_or_default();
        DataError::TokenOutsideVocabulary { place, token, id, vocab_size: self.settings.vocab_size }
    }
}

/// Whether the data set has an example, of which the fingerprint is made where it decides.
pub(super) fn takes(hold_out: Option<HoldOut>, fingerprint: impl FnOnce() -> u64) -> bool {
    hold_out.is_none_or(|hold_out| hold_out.takes(fingerprint()))
}
