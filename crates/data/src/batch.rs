//! A prepared data set, and the batch at a position: rows gathered from the mapped columns without padding.

use std::ops::Range;

use crate::cache::Columns;
use crate::pin::Pin;

/// The label of a position that has no target.
pub const IGNORED_LABEL: i32 = -100;

/// Packed rows, memory-mapped. Row numbers below are from 0; one that the data set does not have is a mistake of
/// the caller and panics, as a slice index does.
#[derive(Debug)]
pub struct Dataset {
    identity: String,
    columns: Columns,
    pins: Vec<Pin>,
}

/// A stretch of one example or document within a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its place in the token columns.
    pub(crate) range: Range<usize>,
    /// Its record's number, from 1.
    pub(crate) origin: u64,
}

/// Rows for one forward and backward, one after the other without padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids, \[tokens\].
    pub tokens: Vec<u32>,
    /// The target of each position, [`IGNORED_LABEL`] where there is none, \[tokens\].
    pub labels: Vec<i32>,
    /// Each token's position in its document, from 0, \[tokens\]. The part of a document that a row begins with
    /// counts from 0 again.
    pub positions: Vec<u32>,
    /// Where documents begin: 0, …, tokens; \[documents + 1\].
    pub cu_seqlens: Vec<u32>,
    /// Where rows begin: 0, …, tokens; \[rows + 1\]. An empty row has no tokens.
    pub row_starts: Vec<u32>,
    /// Positions that have a target.
    pub loss_tokens: usize,
}

impl MicroBatch {
    fn clear(&mut self) {
        self.tokens.clear();
        self.labels.clear();
        self.positions.clear();
        self.cu_seqlens.clear();
        self.row_starts.clear();
        self.cu_seqlens.push(0);
        self.row_starts.push(0);
        self.loss_tokens = 0;
    }

    fn end(&self) -> u32 {
        self.tokens.len() as u32
    }
}

impl Dataset {
    pub(crate) fn new(identity: String, columns: Columns, pins: Vec<Pin>) -> Self {
        Self { identity, columns, pins }
    }

    /// What was read of each source, in the order in which they were named.
    pub fn pins(&self) -> &[Pin] {
        &self.pins
    }

    /// A digest of everything that the rows depend on: content, tokenizer, template, settings. Data sets of one identity
    /// have the same rows.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Number of packed rows.
    pub fn rows(&self) -> usize {
        self.columns.row_tokens.len()
    }

    /// Tokens of a row.
    pub fn tokens(&self, row: usize) -> usize {
        self.columns.row_tokens[row] as usize
    }

    /// Positions of a row that have a target.
    pub fn loss_tokens(&self, row: usize) -> usize {
        self.columns.row_loss_tokens[row] as usize
    }

    /// Σ of the squared lengths of a row's documents, which the cost of attention follows.
    pub fn squared_lengths(&self, row: usize) -> u64 {
        self.pieces(row).map(|piece| (piece.range.len() as u64).pow(2)).sum()
    }

    /// The rows, in the order given; `None` is an empty row.
    pub fn micro_batch(&self, rows: &[Option<usize>]) -> MicroBatch {
        let mut batch = MicroBatch::default();
        self.micro_batch_into(rows, &mut batch);
        batch
    }

    /// [`Dataset::micro_batch`] into buffers that are there already.
    pub fn micro_batch_into(&self, rows: &[Option<usize>], batch: &mut MicroBatch) {
        batch.clear();
        for row in rows {
            if let Some(row) = *row {
                self.pieces(row).for_each(|piece| self.append(piece.range, batch));
                batch.loss_tokens += self.loss_tokens(row);
            }
            batch.row_starts.push(batch.end());
        }
    }

    fn append(&self, range: Range<usize>, batch: &mut MicroBatch) {
        batch.positions.extend(0..range.len() as u32);
        batch.tokens.extend_from_slice(&self.columns.tokens[range.clone()]);
        batch.labels.extend_from_slice(&self.columns.labels[range]);
        batch.cu_seqlens.push(batch.end());
    }

    /// What a row is made of.
    pub(crate) fn pieces(&self, row: usize) -> impl Iterator<Item = Piece> + '_ {
        let Columns { piece_start, piece_length, piece_origin, row_start, .. } = &self.columns;
        (row_start[row] as usize..row_start[row + 1] as usize).map(move |piece| {
            let start = piece_start[piece] as usize;
            Piece { range: start..start + piece_length[piece] as usize, origin: piece_origin[piece] }
        })
    }

    /// The tokens and labels of a piece.
    pub(crate) fn content(&self, piece: &Piece) -> (&[u32], &[i32]) {
        (&self.columns.tokens[piece.range.clone()], &self.columns.labels[piece.range.clone()])
    }
}
