//! The whole way from a path to a mapped data set: from the cache if it is there and whole, else made anew.
//!
//! Text is tokenised by all threads in batches of bounded size; the results are written in the order of the
//! source. So the memory needed does not grow with the source, apart from four numbers an example for packing, and
//! the result does not depend on the number of threads.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rayon::prelude::*;
use tessera_files::{FileError, FolderLock, IoContext};

use crate::batch::Dataset;
use crate::cache::{Entry, Kept, RowTable, TokenWriter, Written, remove_leftovers};
use crate::error::{DataError, Problems};
use crate::pack;
use crate::progress::{Progress, Report, Stage};
use crate::settings::{DataSettings, Packing, Task};
use crate::source::{Document, JsonLines, Line, Source, TextFiles, bytes_at_once};
use crate::summary::Summary;
use crate::tokenize::{TextTokenizer, Tokenized};
use crate::validate::{Example, check};

/// How often a lock that another process holds is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// Opens the data set that `settings` describe, making its rows first if `cache` has none for exactly this
/// content, tokenizer, template and settings.
///
/// Errors: the data's, as [`crate::validate`] finds them; conversations that the template refuses; a token id not
/// below `vocab_size`; and the file system's.
pub fn prepare(
    settings: &DataSettings,
    tokenizer: &TextTokenizer,
    cache: &Path,
    report: Report<'_>,
) -> Result<(Dataset, Summary), DataError> {
    if settings.context_length == 0 {
        return Err(DataError::NoContext);
    }
    let source = Source::open(&settings.path, settings.task)?;
    let entry = Entry::new(cache, &identity(settings, &source, tokenizer)?);
    fs::create_dir_all(cache).context("create", cache)?;
    let _lock = lock(cache, report)?;
    remove_leftovers(cache)?;
    if let Some((columns, summary)) = entry.open()? {
        return Ok((Dataset::new(entry.key().to_owned(), columns), summary));
    }
    check(&source, settings.task, report)?;
    Builder { settings, tokenizer, report, total: source.size(), done: 0 }.build(&source, &entry)?;
    match entry.open()? {
        Some((columns, summary)) => Ok((Dataset::new(entry.key().to_owned(), columns), summary)),
        None => Err(DataError::CacheUnreadable { folder: cache.to_owned() }),
    }
}

/// Everything that the rows depend on.
fn identity(
    settings: &DataSettings,
    source: &Source,
    tokenizer: &TextTokenizer,
) -> Result<String, DataError> {
    let DataSettings { path: _, task, context_length, target_responses, packing, seed, vocab_size } =
        settings;
    let content = source.content_digest()?;
    let tokens = tokenizer.identity(*task);
    let rows = (task, context_length, target_responses, packing, seed, vocab_size);
    Ok(format!("{content} {tokens} {rows:?}"))
}

/// Waits until no other process works in the folder. The operating system frees a lock when its holder ends.
fn lock(cache: &Path, report: Report<'_>) -> Result<FolderLock, FileError> {
    loop {
        if let Some(lock) = FolderLock::try_take(cache)? {
            return Ok(lock);
        }
        report(Progress { stage: Stage::Waiting, done: 0, total: 0 });
        std::thread::sleep(LOCK_INTERVAL);
    }
}

/// Why a row gave no tokens.
enum RowError {
    /// The template or tokenizer does not take it: a problem of the row.
    Refused(String),
    /// An id that the model does not have: a problem of the tokenizer.
    Outside(u32),
}

/// A part of a document that is tokenised by itself.
struct Part<'text> {
    document: &'text Document,
    text: &'text str,
    first: bool,
    last: bool,
}

/// The making of one cache entry.
struct Builder<'run> {
    settings: &'run DataSettings,
    tokenizer: &'run TextTokenizer,
    report: Report<'run>,
    total: u64,
    done: u64,
}

impl Builder<'_> {
    fn build(&mut self, source: &Source, entry: &Entry) -> Result<(), DataError> {
        let folder = entry.create()?;
        let mut writer = TokenWriter::create(folder.folder(), self.settings.context_length)?;
        match source {
            Source::JsonLines(lines) => self.rows(lines, &mut writer)?,
            Source::Text(files) => self.documents(files, &mut writer)?,
        }
        let Written { columns, kept, mut summary } = writer.finish()?;
        let rows = self.row_table(&kept);
        summary.rows = rows.rows();
        summary.tokens = rows.row_tokens.iter().copied().map(u64::from).sum();
        summary.loss_tokens = rows.row_loss_tokens.iter().copied().map(u64::from).sum();
        if summary.rows == 0 {
            return Err(self.all_dropped(&summary));
        }
        Ok(entry.finish(folder, columns, &rows, summary)?)
    }

    fn row_table(&self, kept: &[Kept]) -> RowTable {
        let capacity = u32::try_from(self.settings.context_length).unwrap_or(u32::MAX);
        match (self.settings.task, self.settings.packing) {
            (Task::ContinuedPretrain, packing) => {
                RowTable::of_documents(kept, capacity, packing == Packing::None)
            }
            (_, Packing::None) => RowTable::of_examples(kept, &pack::one_each(kept.len())),
            (_, Packing::BestFit) => {
                let lengths: Vec<u32> = kept.iter().map(|example| example.length as u32).collect();
                RowTable::of_examples(kept, &pack::best_fit(&lengths, capacity, self.settings.seed))
            }
        }
    }

    /// Conversations or prompts.
    fn rows(&mut self, lines: &JsonLines, writer: &mut TokenWriter) -> Result<(), DataError> {
        let mut problems = Problems::default();
        for batch in lines.batches(bytes_at_once()) {
            let examples: Vec<_> = batch.par_iter().map(|line| self.row(line)).collect();
            for (line, example) in batch.iter().zip(examples) {
                match example {
                    Ok(example) => writer.example(example, line.number)?,
                    Err(RowError::Refused(message)) => problems.push(line.problem(message)),
                    Err(RowError::Outside(id)) => {
                        return Err(
                            self.outside(format!("{}, line {}", lines.path().display(), line.number), id)
                        );
                    }
                }
            }
            self.advance(batch.iter().map(|line| line.bytes.len()).sum());
        }
        problems.into_result(lines.path(), self.settings.task)
    }

    fn row(&self, line: &Line<'_>) -> Result<Tokenized, RowError> {
        let example = Example::parse(line, self.settings.task).map_err(RowError::Refused)?;
        let DataSettings { target_responses, context_length, .. } = *self.settings;
        let tokenized = self.tokenizer.example(&example, target_responses, context_length);
        let tokenized = tokenized.map_err(RowError::Refused)?;
        self.below_limit(&tokenized.tokens)?;
        Ok(tokenized)
    }

    /// Text files.
    fn documents(&mut self, files: &TextFiles, writer: &mut TokenWriter) -> Result<(), DataError> {
        if let Err(RowError::Outside(id)) = self.below_limit(self.tokenizer.eos().as_slice()) {
            return Err(self.outside(files.root().display().to_string(), id));
        }
        let mut problems = Problems::default();
        for group in files.groups(bytes_at_once()) {
            let group = group?;
            let mut parts = Vec::new();
            for document in &group {
                match document.text() {
                    Ok("") => writer.drop_empty(),
                    Ok(text) => self.cut(document, text, &mut parts),
                    Err(problem) => problems.push(problem),
                }
            }
            self.write_parts(&parts, writer)?;
        }
        problems.into_result(files.root(), self.settings.task)
    }

    fn cut<'text>(&self, document: &'text Document, text: &'text str, parts: &mut Vec<Part<'text>>) {
        let texts = self.tokenizer.splitter().parts(text);
        let count = texts.len();
        let part = |(index, text)| Part { document, text, first: index == 0, last: index + 1 == count };
        parts.extend(texts.into_iter().enumerate().map(part));
    }

    /// Tokenises parts of documents, a bounded number of bytes at once, and writes the documents.
    fn write_parts(&mut self, parts: &[Part<'_>], writer: &mut TokenWriter) -> Result<(), DataError> {
        let (mut open, mut rest) = (None, parts);
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(fitting(rest, bytes_at_once()));
            let encoded: Vec<_> = batch.par_iter().map(|part| self.part(part)).collect();
            for (part, tokens) in batch.iter().zip(encoded) {
                let tokens = tokens.map_err(|error| self.part_error(part, error))?;
                let document = open.get_or_insert_with(|| writer.begin(part.document.number));
                writer.extend(document, &tokens)?;
                if let Some(document) = open.take_if(|_| part.last) {
                    writer.end(document, self.tokenizer.eos())?;
                }
            }
            self.advance(batch.iter().map(|part| part.text.len()).sum());
            rest = later;
        }
        Ok(())
    }

    fn part(&self, part: &Part<'_>) -> Result<Vec<u32>, RowError> {
        let mut tokens = Vec::new();
        self.tokenizer.encode_part(part.text, part.first, &mut tokens).map_err(RowError::Refused)?;
        self.below_limit(&tokens)?;
        Ok(tokens)
    }

    fn part_error(&self, part: &Part<'_>, error: RowError) -> DataError {
        let place = part.document.path().display().to_string();
        match error {
            RowError::Refused(message) => DataError::Tokenizer(format!("{place}: {message}")),
            RowError::Outside(id) => self.outside(place, id),
        }
    }

    fn below_limit(&self, tokens: &[u32]) -> Result<(), RowError> {
        match tokens.iter().max() {
            Some(&id) if id as usize >= self.settings.vocab_size => Err(RowError::Outside(id)),
            _ => Ok(()),
        }
    }

    fn outside(&self, place: String, id: u32) -> DataError {
        let token = self.tokenizer.inner().id_to_token(id).unwrap_or_default();
        DataError::TokenOutsideVocabulary { place, token, id, vocab_size: self.settings.vocab_size }
    }

    fn all_dropped(&self, summary: &Summary) -> DataError {
        DataError::AllDropped {
            path: self.settings.path.clone(),
            examples: summary.examples,
            empty: summary.dropped_empty,
            no_loss_token: summary.dropped_no_loss_token,
            context_length: self.settings.context_length,
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        (self.report)(Progress { stage: Stage::Tokenizing, done: self.done, total: self.total });
    }
}

/// How many parts make up about `size` bytes: as many as reach it, at least one.
fn fitting(parts: &[Part<'_>], size: usize) -> usize {
    let mut taken = 0;
    let full = parts.iter().position(|part| {
        taken += part.text.len();
        taken >= size
    });
    full.map_or(parts.len(), |last| last + 1)
}
