//! The row table: which stretches of the token columns make a row.

use super::Kept;
use crate::pack::PackedRows;

/// The table's columns; see [`super::Columns`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RowTable {
    pub(crate) piece_start: Vec<u64>,
    pub(crate) piece_length: Vec<u32>,
    pub(crate) piece_origin: Vec<u64>,
    pub(crate) row_start: Vec<u64>,
    pub(crate) row_tokens: Vec<u32>,
    pub(crate) row_loss_tokens: Vec<u32>,
}

/// A row being filled.
#[derive(Default)]
struct Open {
    tokens: u32,
    loss_tokens: u32,
}

impl RowTable {
    fn new() -> Self {
        Self {
            piece_start: Vec::new(),
            piece_length: Vec::new(),
            piece_origin: Vec::new(),
            row_start: vec![0],
            row_tokens: Vec::new(),
            row_loss_tokens: Vec::new(),
        }
    }

    /// Whole examples in the rows that packing gave them.
    pub(crate) fn of_examples(kept: &[Kept], rows: &PackedRows) -> Self {
        let mut table = Self::new();
        for members in rows.iter() {
            let mut row = Open::default();
            for example in members.iter().filter_map(|&member| kept.get(member)) {
                table.add(
                    &mut row,
                    example.start,
                    example.length as u32,
                    example.loss_tokens as u32,
                    example.origin,
                );
            }
            table.close(&mut row);
        }
        table
    }

    /// Documents one after the other, cut wherever `context_length` tokens are full. With `apart` each begins
    /// a row. A document's last token is the target of the one before it and has none itself, so where a cut would
    /// leave it alone it is left out: every piece, and so every row, has a target.
    pub(crate) fn of_documents(kept: &[Kept], context_length: u32, apart: bool) -> Self {
        let (mut table, mut row) = (Self::new(), Open::default());
        for document in kept {
            let mut done = 0;
            while document.length - done > 1 {
                let rest = document.length - done;
                let length = rest.min(u64::from(context_length - row.tokens)) as u32;
                let loss_tokens = length - u32::from(u64::from(length) == rest);
                table.add(&mut row, document.start + done, length, loss_tokens, document.origin);
                done += u64::from(length);
                if row.tokens == context_length {
                    table.close(&mut row);
                }
            }
            if apart {
                table.close(&mut row);
            }
        }
        table.close(&mut row);
        table
    }

    pub(crate) fn rows(&self) -> usize {
        self.row_tokens.len()
    }

    fn add(&mut self, row: &mut Open, start: u64, length: u32, loss_tokens: u32, origin: u64) {
        self.piece_start.push(start);
        self.piece_length.push(length);
        self.piece_origin.push(origin);
        row.tokens += length;
        row.loss_tokens += loss_tokens;
    }

    /// Ends a row, unless it is empty.
    fn close(&mut self, row: &mut Open) {
        let Open { tokens, loss_tokens } = std::mem::take(row);
        if tokens > 0 {
            self.row_start.push(self.piece_start.len() as u64);
            self.row_tokens.push(tokens);
            self.row_loss_tokens.push(loss_tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn document(start: u64, length: u64) -> Kept {
        Kept { start, length, loss_tokens: length - 1, origin: 1 }
    }

    #[test]
    fn documents_are_cut_without_losing_a_target() {
        let table = RowTable::of_documents(&[document(0, 5), document(5, 2), document(7, 6)], 4, false);
        assert_eq!(table.piece_start, [0, 5, 7, 9]);
        assert_eq!(table.piece_length, [4, 2, 2, 4]);
        assert_eq!(table.row_start, [0, 1, 3, 4]);
        assert_eq!(table.row_tokens, [4, 4, 4]);
        assert_eq!(table.row_loss_tokens, [4, 3, 3]);
    }

    #[test]
    fn documents_apart_begin_rows() {
        let table = RowTable::of_documents(&[document(0, 5), document(5, 2)], 4, true);
        assert_eq!(table.row_tokens, [4, 2]);
        assert_eq!(table.row_start, [0, 1, 2]);
    }
}
