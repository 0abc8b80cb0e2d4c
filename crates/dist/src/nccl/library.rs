//! NCCL itself: communicators whose calls return errors. All `unsafe` of this engine is here.
//!
//! Communicators are non-blocking: a call returns while NCCL still connects to its peers, and [`Communicator::status`] says
//! when what was called has been queued on its stream. So no call can stand still, whoever is missing. Nothing here
//! panics, and nothing is done when a communicator is merely dropped: it is to be destroyed or aborted.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::{MaybeUninit, offset_of};
use std::sync::OnceLock;

use cudarc::nccl::sys;
use cudarc::nccl::sys::ncclResult_t as Code;
use tessera_ops::cuda::Stream;
use tessera_ops::{DType, OpError, View};

use crate::error::DistError;

/// The oldest NCCL that has all that is used: communicators can be split.
const OLDEST: c_int = 2_18_00;

/// What pins the order of NCCL's sums: a ring that is cut in pieces by size alone. Left to itself, NCCL chooses by what it
/// has measured. Every collective has a ring; not all have a tree.
const PINNED: [(&str, &str); 2] = [("NCCL_ALGO", "Ring"), ("NCCL_PROTO", "Simple")];

/// What the ranks of a run have in common, before they know one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UniqueId([u8; UniqueId::BYTES]);

impl UniqueId {
    /// Its size.
    pub const BYTES: usize = 128;

    /// A new one.
    ///
    /// # Errors
    /// When there is no NCCL, or it finds no network.
    pub fn new() -> Result<Self, DistError> {
        find()?;
        let mut id = MaybeUninit::uninit();
        // SAFETY: the function fills the id, unless it fails.
        let id = unsafe {
            done("making an id", sys::ncclGetUniqueId(id.as_mut_ptr()))?;
            id.assume_init()
        };
        Ok(Self(id.internal.map(|byte| byte as u8)))
    }

    /// To be sent to the other ranks.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// What another rank has sent.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

/// The version of NCCL, which is new enough: major, minor, patch.
///
/// # Errors
/// When there is none, or one that is too old; what to do is said.
pub fn version() -> Result<(i32, i32, i32), DistError> {
    let version = find()?;
    Ok((version / 10_000, version / 100 % 100, version % 100))
}

/// NCCL's version in one number. Fails, saying what to do, unless NCCL is there.
fn find() -> Result<c_int, DistError> {
    static FOUND: OnceLock<Result<c_int, String>> = OnceLock::new();
    FOUND.get_or_init(look).clone().map_err(DistError::NoNccl)
}

fn look() -> Result<c_int, String> {
    // SAFETY: loading runs the library's initialisers, and it is about to be used.
    if !unsafe { sys::is_culib_present() } {
        return Err("found no libnccl.so, which several GPUs need: install NVIDIA's package libnccl-dev. Where there is only a \
                    libnccl.so.2, make a link of that name to it, in a folder that LD_LIBRARY_PATH names"
            .to_owned());
    }
    for (name, value) in PINNED {
        if std::env::var_os(name).is_none() {
            // SAFETY: it happens once in a process, before NCCL is used. Rust's own readers of the environment wait for
            // one another; of the libraries only NCCL reads it from here on, on threads that start later.
            unsafe { std::env::set_var(name, value) };
        }
    }
    let mut version = 0;
    // SAFETY: the function writes a number.
    let found = done("asking for its version", unsafe { sys::ncclGetVersion(&mut version) });
    found.map_err(|error| error.to_string())?;
    if version < OLDEST {
        let (major, minor) = (version / 10_000, version / 100 % 100);
        return Err(format!("NCCL {major}.{minor} is too old: install 2.18 or newer"));
    }
    Ok(version)
}

/// Whether what was called last has been queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    Done,
    UnderWay,
}

fn status(doing: &'static str, code: Code) -> Result<Status, DistError> {
    match code {
        Code::ncclSuccess => Ok(Status::Done),
        Code::ncclInProgress => Ok(Status::UnderWay),
        code => Err(DistError::Nccl { doing, message: message(code) }),
    }
}

fn done(doing: &'static str, code: Code) -> Result<(), DistError> {
    status(doing, code).map(drop)
}

/// What NCCL says of an error.
fn message(code: Code) -> String {
    // SAFETY: both functions return texts that stay, or none.
    let texts = unsafe { [sys::ncclGetErrorString(code), sys::ncclGetLastError(std::ptr::null_mut())] };
    let texts = texts.into_iter().filter(|text| !text.is_null());
    // SAFETY: as above.
    let texts =
        texts.map(|text: *const c_char| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
    let texts: Vec<String> = texts.filter(|text| !text.is_empty()).collect();
    format!("{} ({code:?})", texts.join(": "))
}

/// Elements in the memory of a GPU.
#[derive(Clone, Copy)]
pub(super) struct Span {
    address: u64,
    elements: usize,
    dtype: DType,
}

impl Span {
    /// Those of a view, which must lie on the stream's GPU. The span outlives the borrow, as queued work does: a buffer
    /// that is freed first waits for its GPU, so that the memory stays allocated for all that was queued before. Spans
    /// therefore go to a collective while their buffer is there.
    pub fn of(stream: &Stream, view: View<'_>) -> Result<Self, OpError> {
        let address = stream.address("a collective", "buffer", view)?;
        Ok(Self { address, elements: view.shape().elements(), dtype: view.dtype() })
    }

    fn kind(&self) -> sys::ncclDataType_t {
        match self.dtype {
            DType::F32 => sys::ncclDataType_t::ncclFloat32,
            DType::BF16 => sys::ncclDataType_t::ncclBfloat16,
            DType::F64 => sys::ncclDataType_t::ncclFloat64,
            DType::U32 => sys::ncclDataType_t::ncclUint32,
            DType::I32 => sys::ncclDataType_t::ncclInt32,
        }
    }

    fn at(&self, element: usize) -> *mut c_void {
        (self.address + (element * self.dtype.size()) as u64) as *mut c_void
    }
}

/// One rank's end of a group. It is used by one thread, to which its GPU is bound.
pub(super) struct Communicator {
    raw: sys::ncclComm_t,
    rank: usize,
    ranks: usize,
}

// SAFETY: NCCL binds a communicator to a GPU, not to a thread; it has one owner.
unsafe impl Send for Communicator {}

/// Where NCCL puts a new communicator, which may take until the split is done.
pub(super) struct Part(Box<sys::ncclComm_t>);

/// What makes a communicator non-blocking. What NCCL has added to its configuration since 2.17 is left to it.
fn configuration() -> sys::ncclConfig_t {
    const UNDEFINED: c_int = c_int::MIN;
    // SAFETY: numbers and pointers, for which zero is a value.
    let mut configuration: sys::ncclConfig_t = unsafe { MaybeUninit::zeroed().assume_init() };
    configuration.size = offset_of!(sys::ncclConfig_t, trafficClass);
    configuration.magic = 0xcafe_beef;
    configuration.version = 2_17_00;
    configuration.blocking = 0;
    configuration.cgaClusterSize = UNDEFINED;
    configuration.minCTAs = UNDEFINED;
    configuration.maxCTAs = UNDEFINED;
    configuration.splitShare = UNDEFINED;
    configuration
}

fn number(value: usize) -> Result<c_int, DistError> {
    let too_large = || DistError::Nccl { doing: "counting ranks", message: format!("{value} is too large") };
    c_int::try_from(value).map_err(|_| too_large())
}

impl Communicator {
    /// Begins to join the group of `ranks` ranks that `id` stands for, on the GPU that is bound to this thread.
    pub fn join(id: &UniqueId, rank: usize, ranks: usize) -> Result<Self, DistError> {
        find()?;
        let id = sys::ncclUniqueId { internal: id.0.map(|byte| byte as c_char) };
        let (mut raw, mut configuration) = (std::ptr::null_mut(), configuration());
        let (place, size) = (number(rank)?, number(ranks)?);
        // SAFETY: the communicator is written before the call returns, and the configuration is copied.
        let code = unsafe { sys::ncclCommInitRankConfig(&mut raw, size, id, place, &mut configuration) };
        done("joining the other ranks", code)?;
        Ok(Self { raw, rank, ranks })
    }

    /// Begins to split the group by colour; [`Communicator::part`] is the group of this rank's when that is done.
    pub fn split(&self, colour: usize) -> Result<Part, DistError> {
        let (colour, key) = (number(colour)?, number(self.rank)?);
        let (mut part, mut configuration) = (Box::new(std::ptr::null_mut()), configuration());
        // SAFETY: the communicator has all calls before done, the configuration is copied, and the part's place stays.
        let code = unsafe { sys::ncclCommSplit(self.raw, colour, key, &raw mut *part, &mut configuration) };
        let part = Part(part);
        match done("splitting a group", code) {
            Ok(()) => Ok(part),
            Err(error) => {
                part.give_up();
                Err(error)
            }
        }
    }

    /// This rank's end of a part of the group, in which it is `rank` of `ranks`.
    pub fn part(part: Part, rank: usize, ranks: usize) -> Self {
        Self { raw: *part.0, rank, ranks }
    }

    /// This rank, in the group.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Whether what was called last has been queued, and whether anything has failed since.
    pub fn status(&self, doing: &'static str) -> Result<Status, DistError> {
        let mut code = Code::ncclSuccess;
        // SAFETY: the communicator is there, and the function writes a code.
        done("asking for errors", unsafe { sys::ncclCommGetAsyncError(self.raw, &mut code) })?;
        status(doing, code)
    }

    /// Queues: whole = what all ranks have in it, each in its own of the equal slices.
    pub fn all_gather(&self, stream: &Stream, whole: Span) -> Result<(), DistError> {
        let count = whole.elements / self.ranks;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: the slices lie in the span, which lives until the stream has come past the call.
        let code = unsafe {
            let own = whole.at(self.rank * count);
            sys::ncclAllGather(own, whole.at(0), count, whole.kind(), self.raw, raw(stream))
        };
        done("an all-gather", code)
    }

    /// Queues: this rank's of the equal slices of `whole` = the sum over all ranks of what they have in it.
    pub fn reduce_scatter(&self, stream: &Stream, whole: Span) -> Result<(), DistError> {
        let count = whole.elements / self.ranks;
        if count == 0 {
            return Ok(());
        }
        let sum = sys::ncclRedOp_t::ncclSum;
        // SAFETY: as for all-gather.
        let code = unsafe {
            let own = whole.at(self.rank * count);
            sys::ncclReduceScatter(whole.at(0), own, count, whole.kind(), sum, self.raw, raw(stream))
        };
        done("a reduce-scatter", code)
    }

    /// Queues: values = the sum over all ranks.
    pub fn all_reduce(&self, stream: &Stream, values: Span) -> Result<(), DistError> {
        if values.elements == 0 {
            return Ok(());
        }
        let (place, count, sum) = (values.at(0), values.elements, sys::ncclRedOp_t::ncclSum);
        // SAFETY: as for all-gather.
        let code =
            unsafe { sys::ncclAllReduce(place, place, count, values.kind(), sum, self.raw, raw(stream)) };
        done("an all-reduce", code)
    }

    /// Queues: values = those of rank `root`.
    pub fn broadcast(&self, stream: &Stream, values: Span, root: usize) -> Result<(), DistError> {
        if values.elements == 0 {
            return Ok(());
        }
        let (place, count, root) = (values.at(0), values.elements, number(root)?);
        // SAFETY: as for all-gather.
        let code =
            unsafe { sys::ncclBroadcast(place, place, count, values.kind(), root, self.raw, raw(stream)) };
        done("a broadcast", code)
    }

    /// Queues: the i-th of the equal blocks of `got` = this rank's of the blocks of rank i; its own excepted.
    pub fn exchange(&self, stream: &Stream, given: Span, got: Span) -> Result<(), DistError> {
        let count = given.elements / self.ranks;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: a group of calls is opened, and closed whatever they return.
        done("an all-to-all", unsafe { sys::ncclGroupStart() })?;
        let mut others = (0..self.ranks).filter(|&peer| peer != self.rank);
        let queued = others.try_for_each(|peer| {
            let (place, kind, stream) = (number(peer)?, given.kind(), raw(stream));
            // SAFETY: the blocks lie in the spans, which live until the stream has come past the calls.
            let codes = unsafe {
                [
                    sys::ncclSend(given.at(peer * count), count, kind, place, self.raw, stream),
                    sys::ncclRecv(got.at(peer * count), count, kind, place, self.raw, stream),
                ]
            };
            codes.into_iter().try_for_each(|code| done("an all-to-all", code))
        });
        // SAFETY: as above.
        let closed = done("an all-to-all", unsafe { sys::ncclGroupEnd() });
        queued.and(closed)
    }

    /// Begins to leave the group in good order.
    pub fn finalize(&self) -> Result<(), DistError> {
        // SAFETY: the communicator is there, and nothing is called on it any more but its end.
        done("leaving a group", unsafe { sys::ncclCommFinalize(self.raw) })
    }

    /// Frees what the group took, after [`Communicator::finalize`] is done.
    pub fn destroy(self) -> Result<(), DistError> {
        // SAFETY: the communicator is there, and its only owner is gone with this.
        done("leaving a group", unsafe { sys::ncclCommDestroy(self.raw) })
    }

    /// Ends what is under way, whoever is missing, and frees what the group took. NCCL waits for its own threads.
    pub fn abort(self) -> Result<(), DistError> {
        // SAFETY: as for destroy.
        done("giving up a group", unsafe { sys::ncclCommAbort(self.raw) })
    }
}

impl Part {
    /// Leaves the place to a split that has failed and may still be written to.
    pub fn give_up(self) {
        Box::leak(self.0);
    }
}

// SAFETY: as for the communicator.
unsafe impl Send for Part {}

/// The stream as NCCL's own headers call it.
fn raw(stream: &Stream) -> sys::cudaStream_t {
    stream.raw().cu_stream().cast()
}
