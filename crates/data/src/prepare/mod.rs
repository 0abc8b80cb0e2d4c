//! The whole way from a path to a mapped data set: from the cache if it is there and whole, else made anew.
//!
//! Text is tokenised by all threads in batches of bounded size; the results are written in the order of the
//! source. So the memory needed does not grow with the source, apart from four numbers an example for packing, and
//! the result does not depend on the number of threads.

mod tokenizing;

use std::fs;
use std::path::Path;
use std::time::Duration;

use rayon::prelude::*;
use tessera_files::{FileError, FolderLock, IoContext};

use crate::batch::Dataset;
use crate::cache::{Columns, Entry, Kept, RowTable, TokenWriter, Written, remove_leftovers};
use crate::error::{DataError, Problems};
use crate::mix::{TooOften, interleave};
use crate::pack;
use crate::progress::{Progress, Report, Stage};
use crate::settings::{DataSettings, HoldOut, Packing, Task};
use crate::source::{Source, bytes_at_once};
use crate::summary::{SourceSummary, Summary};
use crate::tokenize::TextTokenizer;
use crate::validate::{self, check};
use tokenizing::{Part, Placed, RowError, Tokenizing, takes};

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
    let open = |source| Source::open(source, settings.task);
    let sources = settings.sources.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let digests = sources.iter().map(Source::content_digest).collect::<Result<Vec<_>, _>>()?;
    let entry = Entry::new(cache, &identity(settings, &sources, &digests, tokenizer));
    fs::create_dir_all(cache).context("create", cache)?;
    let _lock = lock(cache, report)?;
    remove_leftovers(cache)?;
    let dataset = |(columns, summary): (Columns, Summary)| {
        let read = sources.iter().zip(&digests).zip(&summary.sources);
        let pins = read.map(|((source, digest), account)| source.pin(digest, account.records)).collect();
        (Dataset::new(entry.key().to_owned(), columns, pins), summary)
    };
    if let Some(opened) = entry.open()? {
        return Ok(dataset(opened));
    }
    check(&sources, settings.task, report)?;
    let total = sources.iter().map(Source::size).sum();
    let tokenizing = Tokenizing { settings, tokenizer };
    Builder { tokenizing, settings, report, total, done: 0, origins: 0 }.build(&sources, &entry)?;
    match entry.open()? {
        Some(opened) => Ok(dataset(opened)),
        None => Err(DataError::CacheUnreadable { folder: cache.to_owned() }),
    }
}

/// Everything that the rows depend on. Of a single source the share of the mix is all of it, whatever its weight.
fn identity(
    settings: &DataSettings,
    sources: &[Source],
    digests: &[String],
    tokenizer: &TextTokenizer,
) -> String {
    let DataSettings {
        sources: _,
        hold_out,
        task,
        context_length,
        target_responses,
        packing,
        seed,
        vocab_size,
    } = settings;
    let described = |(source, digest): (&Source, &String)| {
        let weight = if sources.len() == 1 { 1.0 } else { source.weight };
        format!("{digest} {:?} {weight}", source.columns)
    };
    let content: Vec<_> = sources.iter().zip(digests).map(described).collect();
    let tokens = tokenizer.identity(*task);
    let rows = (hold_out, task, context_length, target_responses, packing, seed, vocab_size);
    format!("{} {tokens} {rows:?}", content.join(" "))
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

/// What was read of a source.
#[derive(Debug, Default)]
struct Read {
    records: usize,
    /// The number of the last record.
    last: usize,
}

impl Read {
    fn add(&mut self, origin: usize) {
        self.records += 1;
        self.last = origin;
    }
}

/// The making of one cache entry.
struct Builder<'run> {
    tokenizing: Tokenizing<'run>,
    settings: &'run DataSettings,
    report: Report<'run>,
    total: u64,
    done: u64,
    /// Records of the sources before the present one.
    origins: usize,
}

impl Builder<'_> {
    fn build(&mut self, sources: &[Source], entry: &Entry) -> Result<(), DataError> {
        let folder = entry.create()?;
        let mut writer = TokenWriter::create(folder.folder(), self.settings.context_length)?;
        let mut accounts = Vec::new();
        for source in sources {
            let (examples, kept) = (writer.examples(), writer.kept());
            let read = match self.settings.task {
                Task::ContinuedPretrain => self.documents(source, &mut writer)?,
                _ => self.rows(source, &mut writer)?,
            };
            self.origins += read.last;
            let (examples, kept) = (writer.examples() - examples, writer.kept() - kept);
            accounts.push(SourceSummary { records: read.records, examples, kept, used: kept });
        }
        let Written { columns, kept, mut summary } = writer.finish()?;
        summary.sources = accounts;
        let rows = self.row_table(&self.mixed(kept, sources, &mut summary)?);
        summary.rows = rows.rows();
        summary.tokens = rows.row_tokens.iter().copied().map(u64::from).sum();
        summary.loss_tokens = rows.row_loss_tokens.iter().copied().map(u64::from).sum();
        if summary.rows == 0 {
            return Err(self.all_dropped(&summary, sources));
        }
        Ok(entry.finish(folder, columns, &rows, summary)?)
    }

    /// The examples in the order of the mix. Those that come round again have their tokens once.
    fn mixed(
        &self,
        kept: Vec<Kept>,
        sources: &[Source],
        summary: &mut Summary,
    ) -> Result<Vec<Kept>, DataError> {
        if sources.len() == 1 {
            return Ok(kept);
        }
        let counts: Vec<usize> = summary.sources.iter().map(|source| source.kept).collect();
        let weights: Vec<f64> = sources.iter().map(|source| source.weight).collect();
        let mut starts = vec![0];
        counts.iter().for_each(|count| starts.push(starts.last().unwrap_or(&0) + count));
        summary.sources.iter_mut().for_each(|source| source.used = 0);
        let mut mixed = Vec::new();
        let mix =
            interleave(&counts, &weights).map_err(|TooOften { source, rounds }| DataError::Unbalanced {
                path: self.settings.sources[source].path.clone(),
                rounds,
                examples: counts[source],
            })?;
        for (source, example) in mix {
            mixed.extend(kept.get(starts[source] + example));
            summary.sources[source].used += 1;
        }
        Ok(mixed)
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
    fn rows(&mut self, source: &Source, writer: &mut TokenWriter) -> Result<Read, DataError> {
        let (mut problems, mut read) = (Problems::default(), Read::default());
        let tokenizing = self.tokenizing;
        let row = |record| tokenizing.row(record, source);
        let rows = |records: Vec<_>| records.into_par_iter().map(row).collect::<Vec<_>>();
        source.read(rows, |examples, bytes| {
            for (place, origin, example) in examples {
                read.add(origin);
                match example {
                    Ok(Some(example)) => writer.example(example, self.origins + origin)?,
                    Ok(None) => {}
                    Err(RowError::Refused(message)) => problems.push(place.problem(message)),
                    Err(RowError::Outside(id)) => return Err(tokenizing.outside(place.shown(), id)),
                }
            }
            self.advance(bytes);
            Ok(())
        })?;
        problems.into_result(source.path(), self.settings.task)?;
        Ok(read)
    }

    /// Texts.
    fn documents(&mut self, source: &Source, writer: &mut TokenWriter) -> Result<Read, DataError> {
        let tokenizing = self.tokenizing;
        let eos = tokenizing.tokenizer.eos();
        if let Err(RowError::Outside(id)) = tokenizing.below_limit(eos.as_slice()) {
            return Err(tokenizing.outside(source.path().display().to_string(), id));
        }
        let (mut problems, mut read) = (Problems::default(), Read::default());
        let open = |records: Vec<_>| {
            records.into_par_iter().map(|record| Placed::open(record, source)).collect::<Vec<_>>()
        };
        source.read(open, |opened, bytes| {
            let mut documents = Vec::new();
            for (origin, document) in opened {
                read.add(origin);
                match document {
                    Ok(document) => documents.push(document),
                    Err(problem) => problems.push(problem),
                }
            }
            let mut parts = Vec::new();
            for document in &documents {
                let text = document.document.text().unwrap_or_default();
                match takes(self.settings.hold_out, || validate::of_texts([text])) {
                    false => {}
                    true if text.is_empty() => writer.drop_empty(),
                    true => self.cut(document, text, &mut parts),
                }
            }
            self.write_parts(&parts, bytes, writer)
        })?;
        problems.into_result(source.path(), self.settings.task)?;
        Ok(read)
    }

    fn cut<'text>(&self, document: &'text Placed, text: &'text str, parts: &mut Vec<Part<'text>>) {
        let texts = self.tokenizing.tokenizer.splitter().parts(text);
        let count = texts.len();
        let part = |(index, text)| Part { document, text, first: index == 0, last: index + 1 == count };
        parts.extend(texts.into_iter().enumerate().map(part));
    }

    /// Tokenises parts of documents, a bounded number of bytes at once, and writes the documents. They came from `bytes`
    /// bytes of the source.
    fn write_parts(
        &mut self,
        parts: &[Part<'_>],
        bytes: u64,
        writer: &mut TokenWriter,
    ) -> Result<(), DataError> {
        let whole: usize = parts.iter().map(|part| part.text.len()).sum();
        let (mut open, mut rest, mut behind, mut told) = (None, parts, 0, 0);
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(fitting(rest, bytes_at_once()));
            let encoded: Vec<_> = batch.par_iter().map(|part| self.tokenizing.part(part)).collect();
            for (part, tokens) in batch.iter().zip(encoded) {
                let tokens = tokens.map_err(|error| self.tokenizing.part_error(part, error))?;
                let origin = self.origins + part.document.origin;
                let document = open.get_or_insert_with(|| writer.begin(origin));
                writer.extend(document, &tokens)?;
                if let Some(document) = open.take_if(|_| part.last) {
                    writer.end(document, self.tokenizing.tokenizer.eos())?;
                }
            }
            behind += batch.iter().map(|part| part.text.len()).sum::<usize>();
            let share = (u128::from(bytes) * behind as u128 / whole.max(1) as u128) as u64;
            self.advance(share - told);
            (rest, told) = (later, share);
        }
        self.advance(bytes - told);
        Ok(())
    }

    fn all_dropped(&self, summary: &Summary, sources: &[Source]) -> DataError {
        if let Some(HoldOut { fraction, held_out }) = self.settings.hold_out
            && summary.examples == 0
        {
            let purpose = if held_out { "evaluate on" } else { "train on" };
            return DataError::NothingHeldOut { fraction, purpose };
        }
        let paths: Vec<_> = sources.iter().map(|source| source.path().display().to_string()).collect();
        DataError::AllDropped {
            path: paths.join(", ").into(),
            examples: summary.examples,
            empty: summary.dropped_empty,
            no_loss_token: summary.dropped_no_loss_token,
            context_length: self.settings.context_length,
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
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
