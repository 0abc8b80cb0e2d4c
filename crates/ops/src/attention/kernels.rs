//! Which of the kernels in `kernels/attention` serve a layer on a GPU, and their launches.
//!
//! bf16 with heads of 64 and 128 has kernels on tensor cores, and others for the H100's and H200's, of which four warps
//! issue a product together; fp32, heads of any other size and matrices that do not begin at 16 bytes have plain ones.

use super::Heads;
use crate::buffer::{View, ViewMut};
use crate::cuda::{Grid, Kernel, Stream, is_aligned};
use crate::dtype::DType;
use crate::error::OpError;

/// Threads of a block, where four warps do not work together.
const THREADS: usize = 128;

/// Warps of a block.
const WARPS: usize = 4;

/// Of a plain kernel: rows of its own that a block works on, and rows of the other side that meet them at once.
const PLAIN_ROWS: [usize; 2] = [8, 32];

/// For warpgroups: threads of a block, its rows, those of the other side that meet them at once, and the pairs of tiles of
/// these that have room.
const GROUP_THREADS: usize = 256;
const GROUP_ROWS: usize = 128;
const GROUP_OTHERS: usize = 64;
const GROUP_STAGES: usize = 4;

/// The compute capability of GPUs whose warps form warpgroups: later ones have it no more.
const WARPGROUPS: i32 = 9;

/// How a kernel multiplies.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    TensorCores,
    Warpgroups,
}

/// A layer on a GPU.
#[derive(Clone, Copy)]
pub(super) struct Kernels<'a> {
    stream: &'a Stream,
    operator: &'static str,
    heads: Heads,
    rows: usize,
    documents: usize,
    dtype: DType,
    way: Way,
}

/// What a kernel writes.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pass {
    Output,
    KeyGradients,
    QueryGradients,
}

impl<'a> Kernels<'a> {
    /// For a layer whose matrices are all of one dtype and have `rows` rows.
    pub fn new(
        operator: &'static str,
        stream: &'a Stream,
        heads: Heads,
        (rows, documents): (usize, usize),
        dtype: DType,
        matrices: &[View<'_>],
    ) -> Self {
        let way = match dtype == DType::BF16 && matches!(heads.size, 64 | 128) && is_aligned(matrices) {
            false => Way::Plain,
            true if stream.gpu().capability().0 == WARPGROUPS => Way::Warpgroups,
            true => Way::TensorCores,
        };
        Self { stream, operator, heads, rows, documents, dtype, way }
    }

    /// How the names of plain kernels end.
    fn variant(&self) -> Result<&'static str, OpError> {
        self.stream.variant(self.operator, "qkv", self.dtype)
    }

    /// Launches the kernel of a pass, to which `arguments` gives its operands, the documents among them.
    pub fn launch(
        &self,
        pass: Pass,
        arguments: impl FnOnce(Kernel<'a>) -> Kernel<'a>,
    ) -> Result<(), OpError> {
        let (name, file, group_file) = match pass {
            Pass::Output => ("attention_forward", "attention_forward", "hopper_attention_forward"),
            Pass::KeyGradients => {
                ("attention_backward_keys", "attention_backward", "hopper_attention_backward")
            }
            Pass::QueryGradients => {
                ("attention_backward_queries", "attention_backward", "hopper_attention_backward")
            }
        };
        let Heads { query, key_value, size, window } = self.heads;
        let (file, kernel) = match self.way {
            Way::Plain => ("attention_plain", format!("{name}_{}", self.variant()?)),
            Way::TensorCores => (file, format!("{name}_{size}")),
            Way::Warpgroups => (group_file, format!("hopper_{name}_{size}")),
        };
        let kernel = self.stream.kernel(self.operator, file, &kernel);
        let kernel = arguments(kernel)
            .u32(self.rows)
            .u32(self.documents)
            .u32(query)
            .u32(key_value)
            .u32(window.unwrap_or(0));
        match self.way {
            Way::Plain => kernel.u32(size).launch(self.plain_grid(pass)),
            Way::TensorCores => kernel.launch(self.tensor_core_grid(pass)),
            Way::Warpgroups => kernel.launch(self.group_grid(pass)),
        }
    }

    /// The heads that have blocks of their own in a pass.
    fn own_heads(&self, pass: Pass) -> usize {
        if pass == Pass::KeyGradients { self.heads.key_value } else { self.heads.query }
    }

    fn tensor_core_grid(&self, pass: Pass) -> Grid {
        let size = self.heads.size;
        // Rows of the other side that are worked on at once: what the registers leave room for.
        let others = if size == 64 { 64 } else { 32 };
        let rows_bytes = |rows: usize| rows * size * DType::BF16.size();
        let (own, shared) = match pass {
            Pass::Output => (128, rows_bytes(128 + 2 * others)),
            Pass::KeyGradients => (64, rows_bytes(2 * 64 + 4 * others) + 4 * others * DType::F32.size()),
            Pass::QueryGradients => (64, rows_bytes(2 * 64 + 4 * others)),
        };
        Grid::of([self.rows.div_ceil(own), self.own_heads(pass), 1]).threads(THREADS).shared(shared)
    }

    fn group_grid(&self, pass: Pass) -> Grid {
        let rows_bytes = |rows: usize| rows * self.heads.size * DType::BF16.size();
        let (own, others) = (rows_bytes(GROUP_ROWS), rows_bytes(GROUP_STAGES * 2 * GROUP_OTHERS));
        let shared = match pass {
            Pass::Output => own + others,
            Pass::KeyGradients => 2 * own + others + GROUP_STAGES * 2 * GROUP_OTHERS * DType::F32.size(),
            Pass::QueryGradients => 2 * own + others,
        };
        // What takes longest comes first, of all heads: else the last head's would leave most of the GPU waiting for it.
        let blocks = [self.own_heads(pass), self.rows.div_ceil(GROUP_ROWS), 1];
        Grid::of(blocks).threads(GROUP_THREADS).shared(shared)
    }

    fn plain_grid(&self, pass: Pass) -> Grid {
        let [own, others] = PLAIN_ROWS;
        let rows = 2 * others
            + own
                * match pass {
                    Pass::Output => 2,
                    Pass::QueryGradients => 3,
                    Pass::KeyGradients => 4,
                };
        let shared = rows * (self.heads.size + 1) * DType::F32.size();
        Grid::of([self.rows.div_ceil(own), self.own_heads(pass), 1]).threads(THREADS).shared(shared)
    }

    /// `delta` `[T·Hq]` fp32 = rowsum(dO∘O), which both passes of the backward take.
    pub fn fill_delta(
        &self,
        doutput: View<'_>,
        output: View<'_>,
        delta: &ViewMut<'_>,
    ) -> Result<(), OpError> {
        let count = self.rows * self.heads.query;
        self.stream
            .kernel(self.operator, "attention_plain", &format!("attention_delta_{}", self.variant()?))
            .input("doutput", doutput, self.dtype)
            .input("output", output, self.dtype)
            .output("scratch", delta, DType::F32)
            .u64(count)
            .u32(self.heads.size)
            .launch(Grid::blocks(count.div_ceil(WARPS)).threads(THREADS))
    }
}
