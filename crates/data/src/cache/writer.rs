//! Tokens and labels on their way to disk, and the account of what was kept.

use std::collections::BTreeMap;
use std::path::Path;

use tessera_files::FileError;

use super::column::{ColumnWriter, Digests};
use crate::batch::IGNORED_LABEL;
use crate::summary::Summary;
use crate::tokenize::Tokenized;

/// An example or document in the token columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Where it begins.
    pub(crate) start: u64,
    /// Its tokens.
    pub(crate) length: u64,
    /// Its positions that have a target.
    pub(crate) loss_tokens: u64,
    /// Its line or file number, from 1.
    pub(crate) origin: u64,
}

/// What a [`TokenWriter`] leaves.
pub(crate) struct Written {
    /// The digests of the token columns.
    pub(crate) columns: BTreeMap<String, Digests>,
    /// What the columns hold.
    pub(crate) kept: Vec<Kept>,
    /// The account, except of the rows.
    pub(crate) summary: Summary,
}

/// Writes examples in the order of the file.
pub(crate) struct TokenWriter {
    tokens: ColumnWriter,
    labels: ColumnWriter,
    written: u64,
    context_length: usize,
    kept: Vec<Kept>,
    summary: Summary,
}

impl TokenWriter {
    pub(crate) fn create(folder: &Path, context_length: usize) -> Result<Self, FileError> {
        Ok(Self {
            tokens: ColumnWriter::create(folder, "tokens")?,
            labels: ColumnWriter::create(folder, "labels")?,
            written: 0,
            context_length,
            kept: Vec::new(),
            summary: Summary { context_length, ..Summary::default() },
        })
    }

    /// Examples so far, those that were dropped included.
    pub(crate) fn examples(&self) -> usize {
        self.summary.examples
    }

    /// Examples so far that were kept.
    pub(crate) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Writes an example cut to the context, unless nothing in it can be learnt.
    pub(crate) fn example(&mut self, mut example: Tokenized, origin: usize) -> Result<(), FileError> {
        self.summary.examples += 1;
        if example.empty_text {
            self.summary.dropped_empty += 1;
            return Ok(());
        }
        let whole = example.tokens.len();
        self.summary.lengths.add(whole as u64);
        example.tokens.truncate(self.context_length);
        example.targets.truncate(self.context_length);
        let labels = shifted(&example);
        let loss_tokens = labels.iter().filter(|&&label| label != IGNORED_LABEL).count();
        if loss_tokens == 0 {
            self.summary.dropped_no_loss_token += 1;
            return Ok(());
        }
        if whole > self.context_length {
            self.summary.truncated += 1;
            self.summary.truncated_tokens += (whole - self.context_length) as u64;
        }
        let start = self.append(&example.tokens, &labels)?;
        let length = self.written - start;
        self.kept.push(Kept { start, length, loss_tokens: loss_tokens as u64, origin: origin as u64 });
        Ok(())
    }

    /// Begins a document, to be continued by [`TokenWriter::extend`] and closed by [`TokenWriter::end`].
    pub(crate) fn begin(&mut self, origin: usize) -> OpenDocument {
        OpenDocument { start: self.written, origin: origin as u64, last: None }
    }

    /// Continues a document. Each token is the target of the one before it, across parts too.
    pub(crate) fn extend(&mut self, document: &mut OpenDocument, tokens: &[u32]) -> Result<(), FileError> {
        let Some((&last, body)) = tokens.split_last() else { return Ok(()) };
        let without_predecessor = usize::from(document.last.is_none());
        let inputs: Vec<u32> = document.last.iter().chain(body).copied().collect();
        let labels: Vec<i32> = tokens.iter().skip(without_predecessor).map(|&token| token as i32).collect();
        document.last = Some(last);
        self.append(&inputs, &labels).map(|_| ())
    }

    /// Ends a document with EOS, once. One of a single token has nothing to learn and is dropped.
    pub(crate) fn end(&mut self, mut document: OpenDocument, eos: Option<u32>) -> Result<(), FileError> {
        self.summary.examples += 1;
        if let Some(eos) = eos.filter(|&eos| document.last != Some(eos)) {
            self.extend(&mut document, &[eos])?;
        }
        if let Some(last) = document.last {
            self.append(&[last], &[IGNORED_LABEL])?;
        }
        let OpenDocument { start, origin, .. } = document;
        let length = self.written - start;
        self.summary.lengths.add(length);
        match length.saturating_sub(1) {
            0 => self.summary.dropped_no_loss_token += 1,
            loss_tokens => self.kept.push(Kept { start, length, loss_tokens, origin }),
        }
        Ok(())
    }

    /// Counts a document without text.
    pub(crate) fn drop_empty(&mut self) {
        self.summary.examples += 1;
        self.summary.dropped_empty += 1;
    }

    fn append(&mut self, tokens: &[u32], labels: &[i32]) -> Result<u64, FileError> {
        let start = self.written;
        self.tokens.write(tokens)?;
        self.labels.write(labels)?;
        self.written += tokens.len() as u64;
        Ok(start)
    }

    /// Closes the files.
    pub(crate) fn finish(self) -> Result<Written, FileError> {
        let columns = [("tokens", self.tokens.finish()?), ("labels", self.labels.finish()?)];
        let columns = columns.map(|(name, digests)| (name.to_owned(), digests)).into();
        Ok(Written { columns, kept: self.kept, summary: self.summary })
    }
}

/// A document whose last token so far still lacks its target.
pub(crate) struct OpenDocument {
    start: u64,
    origin: u64,
    last: Option<u32>,
}

/// The target of each position: the token after it, if that one is to be predicted.
fn shifted(example: &Tokenized) -> Vec<i32> {
    let next = example.tokens.iter().zip(&example.targets).skip(1);
    let labels = next.map(|(&token, &target)| if target { token as i32 } else { IGNORED_LABEL });
    labels.chain(example.tokens.last().map(|_| IGNORED_LABEL)).collect()
}
