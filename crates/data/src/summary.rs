//! The account of a prepared data set: what went in, what was cut or dropped, what the rows hold.

use serde::{Deserialize, Serialize};

/// How many examples have which length, in tokens before truncation. Bucket `k` holds the lengths from `2^k`
/// to `2^(k+1) − 1`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LengthHistogram {
    counts: Vec<usize>,
    /// Tokens of the longest example.
    pub longest: u64,
}

impl LengthHistogram {
    pub(crate) fn add(&mut self, length: u64) {
        let Some(bucket) = length.checked_ilog2() else { return };
        let bucket = bucket as usize;
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.longest = self.longest.max(length);
    }

    /// The buckets from the first to the last that is not empty: shortest length, longest length, examples.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, usize)> + '_ {
        let filled = self.counts.iter().enumerate().skip_while(|(_, count)| **count == 0);
        filled.map(|(bucket, &count)| (1 << bucket, (1 << bucket) * 2 - 1, count))
    }
}

/// What became of the examples of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSummary {
    /// Its rows or text files.
    pub records: usize,
    /// Those of this data set, dropped ones included: all, unless some are held out.
    pub examples: usize,
    /// Examples that were not dropped.
    pub kept: usize,
    /// Places that they have in the mix: more than there are, if they come round again.
    pub used: usize,
}

/// What became of the examples of a data set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Rows of the files, or text files: those dropped included.
    pub examples: usize,
    /// Dropped: the prompt, a response, or the document is empty.
    pub dropped_empty: usize,
    /// Dropped: no loss token within the first `context_length` tokens.
    pub dropped_no_loss_token: usize,
    /// Kept, but cut to `context_length` tokens.
    pub truncated: usize,
    /// Tokens that this cut off.
    pub truncated_tokens: u64,
    /// Tokens in all rows, BOS and EOS included.
    pub tokens: u64,
    /// Positions that have a target.
    pub loss_tokens: u64,
    /// Packed rows.
    pub rows: usize,
    /// Tokens that a full row holds.
    pub context_length: usize,
    /// Lengths of the examples that are not empty.
    pub lengths: LengthHistogram,
    /// The same by source, in the order in which they are named.
    pub sources: Vec<SourceSummary>,
}

impl Summary {
    /// Examples that are in no row.
    pub fn dropped(&self) -> usize {
        self.dropped_empty + self.dropped_no_loss_token
    }

    /// The share of the rows' room that tokens fill, 0 to 1.
    pub fn packing_efficiency(&self) -> f64 {
        let room = self.rows as f64 * self.context_length as f64;
        if room > 0.0 { self.tokens as f64 / room } else { 0.0 }
    }
}
