//! libnccl: communicators whose ranks are threads of this process, or of several that share a folder. Nothing blocks the host but a split: a collective
//! is an entry of its stream. A group's sends and receives are one entry, made at the group's end.
//!
//! A communicator that was asked to be non-blocking is slow to queue: what is called on it comes to the stream only when
//! its state has been asked for twice, as the real one takes its time to connect. Whoever records an event before that
//! records it too early, and whoever calls again before that is refused.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::put;
use super::world::{Registry, current_device, stream_of, world};
use crate::driver::{
    Collective, CollectiveKind, Communicator, Element, Exchange, Folder, Member, Message, Part, Reduction,
    Work, lock,
};

const SUCCESS: u32 = 0;
const UNHANDLED_CUDA_ERROR: u32 = 1;
const INTERNAL_ERROR: u32 = 3;
const INVALID_ARGUMENT: u32 = 4;
const INVALID_USAGE: u32 = 5;
const REMOTE_ERROR: u32 = 6;
const IN_PROGRESS: u32 = 7;
/// 2.28.0.
const VERSION: c_int = 22800;
const ID_BYTES: usize = 128;

/// `ncclUniqueId`: a number at its start.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; ID_BYTES]);

static MEMBERS: Mutex<Registry<Arc<Member>>> = Mutex::new(Registry::new());
static COMMUNICATORS: Mutex<BTreeMap<u64, Arc<Communicator>>> = Mutex::new(BTreeMap::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> u32 {
    unsafe { put(version, VERSION) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> u32 {
    let mut bytes = [0; ID_BYTES];
    let number = u64::from(std::process::id()) << 32 | NEXT_ID.fetch_add(1, Ordering::SeqCst);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    unsafe { put(id, UniqueId(bytes)) };
    SUCCESS
}

fn add(member: Arc<Member>) -> u64 {
    lock(&MEMBERS).insert(member)
}

fn member(handle: u64) -> Option<Arc<Member>> {
    lock(&MEMBERS).get(handle).cloned()
}

/// What `ncclConfig_t` begins with.
#[repr(C)]
#[derive(Clone, Copy)]
struct Configuration {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

const MAGIC: c_uint = 0xcafe_beef;

/// Whether a configuration, if there is one, asks for a non-blocking communicator; nothing if it is none.
unsafe fn wants_no_blocking(configuration: *const c_void) -> Option<bool> {
    if configuration.is_null() {
        return Some(false);
    }
    // SAFETY: the caller gives a configuration of NCCL 2.14 or later, of which these are the first fields.
    let configuration = unsafe { configuration.cast::<Configuration>().read() };
    (configuration.magic == MAGIC).then_some(configuration.blocking == 0)
}

/// Joins without waiting for the others: a rank that never comes shows at the first collective.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(handle: *mut u64, size: c_int, id: UniqueId, rank: c_int) -> u32 {
    let (Ok(size), Ok(rank)) = (usize::try_from(size), usize::try_from(rank)) else {
        return INVALID_ARGUMENT;
    };
    let Some(device) = current_device() else { return UNHANDLED_CUDA_ERROR };
    let mut number = [0; 8];
    number.copy_from_slice(&id.0[..8]);
    let number = u64::from_le_bytes(number);
    let mut all = lock(&COMMUNICATORS);
    let new = || {
        let folder = world().settings.meet.as_deref().map(|path| Folder::new(path, number.to_string()));
        Arc::new(Communicator::over(size, folder))
    };
    let communicator = all.entry(number).or_insert_with(new);
    if communicator.size != size {
        return INVALID_ARGUMENT;
    }
    match Member::join(communicator, rank, device, &world().settings) {
        Some(joined) => {
            unsafe { put(handle, add(joined)) };
            SUCCESS
        }
        None => INVALID_USAGE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    handle: *mut u64,
    size: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut c_void,
) -> u32 {
    let Some(no_blocking) = (unsafe { wants_no_blocking(config) }) else { return INVALID_ARGUMENT };
    let mut joined = 0;
    let code = unsafe { ncclCommInitRank(&mut joined, size, id, rank) };
    unsafe { put(handle, joined) };
    match member(joined) {
        Some(found) if code == SUCCESS && no_blocking => {
            found.never_block();
            IN_PROGRESS
        }
        _ => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitAll(handles: *mut u64, size: c_int, devices: *const c_int) -> u32 {
    let Ok(size) = usize::try_from(size) else { return INVALID_ARGUMENT };
    let communicator = Arc::new(Communicator::new(size));
    for rank in 0..size {
        // SAFETY: the caller gives `size` devices, or none for the first ones, and room for as many handles.
        let device = if devices.is_null() { rank as c_int } else { unsafe { devices.add(rank).read() } };
        let device = usize::try_from(device).ok().filter(|device| *device < world().device_count());
        let joined = device.and_then(|device| Member::join(&communicator, rank, device, &world().settings));
        let Some(joined) = joined else { return INVALID_ARGUMENT };
        unsafe { put(handles.add(rank), add(joined)) };
    }
    SUCCESS
}

/// Waits for all ranks, as the real function does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommSplit(
    handle: u64,
    color: c_int,
    key: c_int,
    new: *mut u64,
    config: *mut c_void,
) -> u32 {
    let Some(no_blocking) = (unsafe { wants_no_blocking(config) }) else { return INVALID_ARGUMENT };
    let Some(found) = member(handle) else { return INVALID_ARGUMENT };
    match found.split(color, key, world()) {
        Some(joined) => {
            if let (true, Some(joined)) = (no_blocking, &joined) {
                joined.never_block();
            }
            unsafe { put(new, joined.map_or(0, add)) };
            SUCCESS
        }
        None => INTERNAL_ERROR,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(handle: u64) -> u32 {
    let Some(found) = member(handle) else { return INVALID_ARGUMENT };
    world().synchronise_device(found.device).map_or(UNHANDLED_CUDA_ERROR, |()| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(handle: u64) -> u32 {
    if lock(&MEMBERS).remove(handle).is_some() { SUCCESS } else { INVALID_ARGUMENT }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(handle: u64) -> u32 {
    let Some(found) = lock(&MEMBERS).remove(handle) else { return INVALID_ARGUMENT };
    found.abort(world());
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(handle: u64, error: *mut u32) -> u32 {
    let Some(found) = member(handle) else { return INVALID_ARGUMENT };
    let code = match world().failure(found.device) {
        Some(_) => UNHANDLED_CUDA_ERROR,
        None if found.is_broken() => REMOTE_ERROR,
        None if found.is_busy(world()) => IN_PROGRESS,
        None => SUCCESS,
    };
    unsafe { put(error, code) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(handle: u64, count: *mut c_int) -> u32 {
    let Some(found) = member(handle) else { return INVALID_ARGUMENT };
    unsafe { put(count, found.communicator.size as c_int) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(handle: u64, rank: *mut c_int) -> u32 {
    let Some(found) = member(handle) else { return INVALID_ARGUMENT };
    unsafe { put(rank, found.rank as c_int) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCuDevice(handle: u64, device: *mut c_int) -> u32 {
    let Some(found) = member(handle) else { return INVALID_ARGUMENT };
    unsafe { put(device, found.device as c_int) };
    SUCCESS
}

thread_local! {
    /// How many groups are open in one another.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// What the open group sends and receives, by communicator and stream.
    static GROUP: RefCell<BTreeMap<(u64, u64), Vec<Message>>> = const { RefCell::new(BTreeMap::new()) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> u32 {
    DEPTH.set(DEPTH.get() + 1);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> u32 {
    match DEPTH.get() {
        0 => INVALID_USAGE,
        1 => {
            DEPTH.set(0);
            let exchanges = GROUP.take().into_iter().map(|((handle, stream), messages)| {
                let Some(member) = member(handle) else { return INVALID_ARGUMENT };
                let exchange = Exchange::new(&member, messages);
                queue(&member, stream, Work::Exchange(Arc::clone(&member), exchange))
            });
            // The first code that is not success.
            exchanges.fold(SUCCESS, |code, next| if code == SUCCESS { next } else { code })
        }
        depth => {
            DEPTH.set(depth - 1);
            SUCCESS
        }
    }
}

/// Puts work of a rank on a stream, when the communicator comes to it.
fn queue(member: &Arc<Member>, stream: u64, work: Work) -> u32 {
    match member.defer(stream, work) {
        Ok(()) => IN_PROGRESS,
        Err(None) => INVALID_USAGE,
        Err(Some(work)) => {
            if world().enqueue(stream, work) {
                SUCCESS
            } else {
                INVALID_ARGUMENT
            }
        }
    }
}

/// Adds a message to the open group, or to one of its own.
fn message(peer: c_int, handle: u64, stream: u64, message: impl FnOnce(usize) -> Option<Message>) -> u32 {
    let Some(member) = member(handle) else { return INVALID_ARGUMENT };
    let Some(stream) = stream_of(stream) else { return INVALID_ARGUMENT };
    let peer = usize::try_from(peer).ok().filter(|peer| *peer < member.communicator.size);
    let Some(message) = peer.and_then(message) else { return INVALID_ARGUMENT };
    if world().stream_device(stream) != Some(member.device) {
        return INVALID_ARGUMENT;
    }
    GROUP.with_borrow_mut(|group| group.entry((handle, stream)).or_default().push(message));
    if DEPTH.get() > 0 {
        return SUCCESS;
    }
    DEPTH.set(1);
    unsafe { ncclGroupEnd() }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    from: u64,
    count: usize,
    number_type: c_uint,
    peer: c_int,
    handle: u64,
    stream: u64,
) -> u32 {
    message(peer, handle, stream, |to| {
        Some(Message::Send { to, from, element: element(number_type)?, count })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    into: u64,
    count: usize,
    number_type: c_uint,
    peer: c_int,
    handle: u64,
    stream: u64,
) -> u32 {
    message(peer, handle, stream, |from| {
        Some(Message::Receive { from, into, element: element(number_type)?, count })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(result: u32) -> *const c_char {
    let text = match result {
        SUCCESS => c"no error",
        UNHANDLED_CUDA_ERROR => c"unhandled cuda error: the emulator's message is on standard error",
        INTERNAL_ERROR => c"internal error: the emulator's message is on standard error",
        INVALID_ARGUMENT => c"invalid argument",
        INVALID_USAGE => c"invalid usage",
        REMOTE_ERROR => c"remote process exited or there was a network error",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetLastError(_handle: u64) -> *const c_char {
    c"the emulator's messages are on standard error".as_ptr()
}

fn element(kind: c_uint) -> Option<Element> {
    Some(match kind {
        1 => Element::U8,
        2 => Element::I32,
        3 => Element::U32,
        4 => Element::I64,
        5 => Element::U64,
        6 => Element::F16,
        7 => Element::F32,
        8 => Element::F64,
        9 => Element::Bf16,
        _ => return None,
    })
}

fn reduction(operation: c_uint) -> Option<Reduction> {
    Some(match operation {
        0 => Reduction::Sum,
        1 => Reduction::Product,
        2 => Reduction::Maximum,
        3 => Reduction::Minimum,
        4 => Reduction::Average,
        _ => return None,
    })
}

/// Queues this rank's share of a collective.
fn meet(
    kind: Option<CollectiveKind>,
    [send, receive]: [u64; 2],
    count: usize,
    number_type: c_uint,
    handle: u64,
    stream: u64,
) -> u32 {
    let (Some(kind), Some(element), Some(member)) = (kind, element(number_type), member(handle)) else {
        return INVALID_ARGUMENT;
    };
    let Some(stream) = stream_of(stream) else { return INVALID_ARGUMENT };
    if world().stream_device(stream) != Some(member.device) {
        return INVALID_ARGUMENT;
    }
    let part = Part { collective: Collective { kind, element, count }, send, receive };
    queue(&member, stream, member.meet(part))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    send: u64,
    receive: u64,
    count: usize,
    number_type: c_uint,
    operation: c_uint,
    handle: u64,
    stream: u64,
) -> u32 {
    let kind = reduction(operation).map(CollectiveKind::AllReduce);
    meet(kind, [send, receive], count, number_type, handle, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    send: u64,
    receive: u64,
    count: usize,
    number_type: c_uint,
    operation: c_uint,
    handle: u64,
    stream: u64,
) -> u32 {
    let kind = reduction(operation).map(CollectiveKind::ReduceScatter);
    meet(kind, [send, receive], count, number_type, handle, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    send: u64,
    receive: u64,
    count: usize,
    number_type: c_uint,
    handle: u64,
    stream: u64,
) -> u32 {
    meet(Some(CollectiveKind::AllGather), [send, receive], count, number_type, handle, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    send: u64,
    receive: u64,
    count: usize,
    number_type: c_uint,
    root: c_int,
    handle: u64,
    stream: u64,
) -> u32 {
    let size = member(handle).map_or(0, |found| found.communicator.size);
    let root = usize::try_from(root).ok().filter(|root| *root < size);
    let kind = root.map(|root| CollectiveKind::Broadcast { root });
    meet(kind, [send, receive], count, number_type, handle, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBcast(
    buffer: u64,
    count: usize,
    number_type: c_uint,
    root: c_int,
    handle: u64,
    stream: u64,
) -> u32 {
    unsafe { ncclBroadcast(buffer, buffer, count, number_type, root, handle, stream) }
}
