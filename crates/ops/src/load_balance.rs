//! The load-balancing loss of a mixture of experts (Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, equations 4 to 6),
//! as `load_balancing_loss_func` of `transformers` pools it over all layers, for each packed row by itself.
//!
//! forward:  ℓᵣ = E·Σₑ fᵣₑ·Pᵣₑ,  f = counts/(L·Tᵣ),  P = sums/(L·Tᵣ)
//! backward: dp\[t, e\] = scale·E·counts\[r, e\]/(L·Tᵣ)² for a token t of row r, the same in every layer
//! Of row r with Tᵣ tokens over L layers, counts\[r, e\] says how often a token chose expert e, and sums\[r, e\] adds the
//! tokens' probabilities of e; both `[R, E]`, f64. Tokens lie one row after the other: row r has the tokens
//! row_starts\[r\]..row_starts\[r + 1\], `[R + 1]` u32 from 0 to T. An empty row has no loss. The counts have no gradient.
//! A rank may hold only the tokens `part` of the rows: its shares are then summed over the ranks before they are used.
//! On a GPU probabilities and their gradients are fp32, and nobody checks what `row_starts` and `chosen` hold.
//!
//! Taken for each row, a row's loss does not depend on the rows that share its micro-batch.

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::for_row_blocks_of;
use crate::queue::{Device, Queue};

/// The kernels of a GPU.
const FILE: &str = "load_balance";

/// Adds one layer's share, its `probabilities` `[t, E]` and `chosen` experts `[t, k]` of the t tokens `part`, to `counts`
/// and `sums`.
pub fn add(
    queue: &Queue,
    probabilities: View<'_>,
    chosen: View<'_>,
    row_starts: View<'_>,
    part: Range<usize>,
    mut counts: ViewMut<'_>,
    mut sums: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "load_balance::add";
    let (tokens, experts) = check::matrix(OPERATOR, "probabilities", probabilities.shape())?;
    let (_, choices) = check::matrix(OPERATOR, "chosen", chosen.shape())?;
    check::shape(OPERATOR, "chosen", chosen.shape(), [tokens, choices])?;
    let row_count = row_count(OPERATOR, row_starts, &part, tokens)?;
    check::shape(OPERATOR, "counts", counts.shape(), [row_count, experts])?;
    check::shape(OPERATOR, "sums", sums.shape(), [row_count, experts])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, probabilities, F => {
            let rows = Rows::new(OPERATOR, row_starts, &part)?;
            let chosen = chosen.as_slice::<u32>()?;
            check::indices(OPERATOR, chosen, experts)?;
            let probabilities = probabilities.as_slice::<F>()?;
            let counts = counts.as_slice_mut::<f64>()?.par_chunks_exact_mut(experts);
            let sums = sums.as_slice_mut::<f64>()?.par_chunks_exact_mut(experts);
            counts.zip_eq(sums).enumerate().for_each(|(row, (counts, sums))| {
                let tokens = rows.tokens_in(row, &part);
                for &expert in &chosen[tokens.start * choices..tokens.end * choices] {
                    counts[expert as usize] += 1.0;
                }
                add_rows(&probabilities[tokens.start * experts..tokens.end * experts], sums);
            });
            Ok(())
        }),
        Device::Cuda(stream) => stream
            .kernel(OPERATOR, FILE, "load_balance_add")
            .input("probabilities", probabilities, DType::F32)
            .input("chosen", chosen, DType::U32)
            .input("row_starts", row_starts, DType::U32)
            .u32(part.start)
            .u32(tokens)
            .output("counts", &counts, DType::F64)
            .output("sums", &sums, DType::F64)
            .u32(experts)
            .u32(choices)
            .launch(Grid::blocks(row_count)),
    }
}

/// Adds each row of `values` to `sums`, in the order of the rows.
fn add_rows<T: Float>(values: &[T], sums: &mut [f64]) {
    for row in values.chunks_exact(sums.len()) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += value.to_f64();
        }
    }
}

/// Adds scale·Σᵣ ℓᵣ to `total` `[1]` f64, once `layers` layers have added their shares.
pub fn loss(
    queue: &Queue,
    counts: View<'_>,
    sums: View<'_>,
    row_starts: View<'_>,
    layers: usize,
    scale: f64,
    mut total: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "load_balance::loss";
    let (_, experts) = check::matrix(OPERATOR, "counts", counts.shape())?;
    let row_count = row_count(OPERATOR, row_starts, &(0..0), 0)?;
    check::shape(OPERATOR, "counts", counts.shape(), [row_count, experts])?;
    check::shape(OPERATOR, "sums", sums.shape(), [row_count, experts])?;
    check::shape(OPERATOR, "total", total.shape(), [1])?;
    match queue.device() {
        Device::Cpu => {
            let rows = Rows::new(OPERATOR, row_starts, &(0..0))?;
            let (counts, sums) = (counts.as_slice::<f64>()?, sums.as_slice::<f64>()?);
            let total = total.as_slice_mut::<f64>()?;
            for (row, (counts, sums)) in
                counts.chunks_exact(experts).zip(sums.chunks_exact(experts)).enumerate()
            {
                let product: f64 = counts.iter().zip(sums).map(|(count, sum)| count * sum).sum();
                total[0] += product * rows.factor(row, experts, layers, scale);
            }
            Ok(())
        }
        Device::Cuda(stream) => stream
            .kernel(OPERATOR, FILE, "load_balance_loss")
            .input("counts", counts, DType::F64)
            .input("sums", sums, DType::F64)
            .input("row_starts", row_starts, DType::U32)
            .u32(layers)
            .f64(scale)
            .output("total", &total, DType::F64)
            .u32(row_count)
            .u32(experts)
            .launch(Grid::blocks(1).threads(1)),
    }
}

/// Replaces `dprobabilities` `[t, E]` of the t tokens `part` by one layer's gradient of scale·Σᵣ ℓᵣ.
pub fn backward(
    queue: &Queue,
    counts: View<'_>,
    row_starts: View<'_>,
    part: Range<usize>,
    layers: usize,
    scale: f64,
    mut dprobabilities: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "load_balance::backward";
    let (tokens, experts) = check::matrix(OPERATOR, "dprobabilities", dprobabilities.shape())?;
    let row_count = row_count(OPERATOR, row_starts, &part, tokens)?;
    check::shape(OPERATOR, "counts", counts.shape(), [row_count, experts])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dprobabilities, F => {
            let rows = Rows::new(OPERATOR, row_starts, &part)?;
            let counts = counts.as_slice::<f64>()?;
            for_row_blocks_of(dprobabilities.as_slice_mut::<F>()?, experts, |first, gradients| {
                for (token, gradient) in (part.start + first..).zip(gradients.chunks_exact_mut(experts)) {
                    let row = rows.containing(token);
                    let factor = rows.factor(row, experts, layers, scale);
                    for (gradient, count) in gradient.iter_mut().zip(&counts[row * experts..]) {
                        *gradient = F::from_f64(count * factor);
                    }
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => stream
            .kernel(OPERATOR, FILE, "load_balance_backward")
            .input("counts", counts, DType::F64)
            .input("row_starts", row_starts, DType::U32)
            .u32(part.start)
            .u32(layers)
            .f64(scale)
            .output("dprobabilities", &dprobabilities, DType::F32)
            .u32(row_count)
            .u32(experts)
            .launch(Grid::blocks(tokens).threads(32)),
    }
}

/// The number of packed rows R; fails unless the `tokens` tokens can be the `part` of them.
fn row_count(
    operator: &'static str,
    row_starts: View<'_>,
    part: &Range<usize>,
    tokens: usize,
) -> Result<usize, OpError> {
    let length = check::vector(operator, "row_starts", row_starts.shape())?;
    if length > usize::from(tokens > 0) && part.len() == tokens && part.start <= part.end {
        return Ok(length - 1);
    }
    Err(refusal(operator, vec![length], format!("rows that hold tokens {part:?}, which are {tokens}")))
}

/// The packed rows of a micro-batch: where in its tokens each begins, and the end of the last.
#[derive(Clone, Copy)]
struct Rows<'a> {
    starts: &'a [u32],
}

impl<'a> Rows<'a> {
    /// Fails unless `row_starts` rises from 0 and holds the tokens `part`.
    fn new(operator: &'static str, row_starts: View<'a>, part: &Range<usize>) -> Result<Self, OpError> {
        let starts = row_starts.as_slice::<u32>()?;
        let end = starts.last().map_or(0, |&end| end as usize);
        if starts.first() == Some(&0) && starts.is_sorted() && part.end <= end {
            return Ok(Self { starts });
        }
        let expected = format!("a rising list from 0 to {} or more", part.end);
        Err(refusal(operator, vec![starts.len(), end], expected))
    }

    fn tokens(self, row: usize) -> Range<usize> {
        self.starts[row] as usize..self.starts[row + 1] as usize
    }

    /// The tokens of a row that are in `part`, counted from its start.
    fn tokens_in(self, row: usize, part: &Range<usize>) -> Range<usize> {
        let tokens = self.tokens(row);
        let place = |token: usize| token.clamp(part.start, part.end) - part.start;
        place(tokens.start)..place(tokens.end)
    }

    /// The row that has `token`, which must be below the number of tokens.
    fn containing(self, token: usize) -> usize {
        self.starts.partition_point(|&start| start as usize <= token) - 1
    }

    /// scale·E/(L·Tᵣ)², and 0 for an empty row.
    fn factor(self, row: usize, experts: usize, layers: usize, scale: f64) -> f64 {
        match self.tokens(row).len() {
            0 => 0.0,
            tokens => scale * experts as f64 / (layers as f64 * tokens as f64).powi(2),
        }
    }
}

/// What is wrong with `row_starts`: their number, their end where that is known, and what they should be.
fn refusal(operator: &'static str, found: Vec<usize>, expected: String) -> OpError {
    OpError::Shape { operator, argument: "row_starts", found, expected }
}
