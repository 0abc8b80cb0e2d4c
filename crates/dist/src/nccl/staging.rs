//! Bytes of the host on their way between ranks: through a little memory of the GPU, in pieces.

use std::hash::{DefaultHasher, Hash, Hasher};

use tessera_ops::{Buffer, DType, OpError, Queue, View, ViewMut, transfer};

use super::lane::{Collective, Lane};
use crate::error::DistError;

/// Bytes on the GPU, and as many of pinned host memory, through which a rank's plans, labels and small tables pass. Many
/// ranks take more, so that each has room for a header.
pub const STAGING_BYTES: usize = 1 << 20;

/// Words of a rank's header: the hash of its call, and an extent.
const HEADER: usize = 4;
/// Words in which a rank says what it calls, when it has found that others call something else.
const TEXT: usize = 128;

/// The two areas.
pub(super) struct Staging {
    device: Buffer,
    host: Buffer,
}

impl Staging {
    pub fn new(queue: &Queue, ranks: usize) -> Result<Self, OpError> {
        // A header of each rank, and as many rounded values of each as there are ranks.
        let (headers, values) = (ranks * HEADER * DType::U32.size(), ranks * ranks * DType::BF16.size());
        let bytes = STAGING_BYTES.max(headers).max(values);
        Ok(Self { device: Buffer::on(queue, bytes)?, host: Buffer::staging(queue, bytes)? })
    }

    fn words(&self) -> usize {
        self.host.len() / DType::U32.size()
    }

    /// The GPU's area as fp32, for whoever queues work that needs a little room.
    pub fn scratch(&mut self) -> ViewMut<'_> {
        self.device.view_mut(DType::F32)
    }

    /// The first words of the GPU's area.
    fn on_gpu(&self, words: usize) -> Result<View<'_>, OpError> {
        self.device.view(DType::U32).range(0, words)
    }

    /// Queues the copy of `words` to the GPU's area, behind its first `first` words.
    fn send(&mut self, queue: &Queue, first: usize, words: &[u32]) -> Result<(), OpError> {
        let mut pinned = self.host.view_mut(DType::U32).range(first, words.len())?;
        pinned.as_slice_mut::<u32>()?.copy_from_slice(words);
        let device = self.device.view_mut(DType::U32).range(first, words.len())?;
        // SAFETY: the area is written again only when the lane's stream has come past what is queued, which every user of it
        // waits for, and lives as long as the lane.
        #[allow(unsafe_code)]
        unsafe {
            transfer::queue_copy(queue, pinned.as_view(), device)
        }
    }

    /// Queues the copy of the first words of the GPU's area to the host.
    fn fetch(&mut self, queue: &Queue, words: usize) -> Result<(), OpError> {
        let device = self.device.view(DType::U32).range(0, words)?;
        let host = self.host.view_mut(DType::U32).range(0, words)?;
        // SAFETY: as in `send`; what is fetched is read when the stream has come past it.
        #[allow(unsafe_code)]
        unsafe {
            transfer::queue_copy(queue, device, host)
        }
    }

    /// What was fetched, once the stream has come past it.
    fn fetched(&self, words: usize) -> Result<&[u32], OpError> {
        self.host.view(DType::U32).range(0, words)?.as_slice()
    }
}

/// Bytes as words, the last of which may be filled up with zeros.
fn pack(bytes: &[u8]) -> Vec<u32> {
    let word = |chunk: &[u8]| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(word)
    };
    bytes.chunks(4).map(word).collect()
}

/// The first `length` bytes of words.
fn unpack(words: &[u32], length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}

impl Lane {
    /// What all ranks of a group give, in their order; they give equally many words, of which there is room for those of
    /// all.
    fn gather_words(&mut self, group: usize, own: &[u32]) -> Result<Vec<u32>, DistError> {
        let (ranks, rank) = (self.ranks_in(group), self.rank_in(group));
        let words = own.len() * ranks;
        self.staging.send(&self.queue, rank * own.len(), own)?;
        let whole = self.span(self.staging.on_gpu(words)?)?;
        self.call(group, |stream, communicator| communicator.all_gather(stream, whole))?;
        self.fetch_words(words)
    }

    fn fetch_words(&mut self, words: usize) -> Result<Vec<u32>, DistError> {
        self.staging.fetch(&self.queue, words)?;
        self.until_done()?;
        Ok(self.staging.fetched(words)?.to_vec())
    }

    /// The extents that the ranks of a group bring to `call`, if all are in it.
    pub fn meet(&mut self, collective: &Collective, extent: usize) -> Result<Vec<usize>, DistError> {
        let Collective { group, call, .. } = collective;
        let mut hasher = DefaultHasher::new();
        call.hash(&mut hasher);
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let ([a, b], [c, d]) = (halves(hasher.finish()), halves(extent as u64));
        let all = self.gather_words(*group, &[a, b, c, d])?;
        let headers = || all.chunks_exact(HEADER);
        match headers().position(|header| header[..2] != [a, b]) {
            None => Ok(headers()
                .map(|header| (u64::from(header[3]) << 32 | u64::from(header[2])) as usize)
                .collect()),
            Some(other) => Err(self.mismatch(collective, other)?),
        }
    }

    /// What the ranks call instead of the same: they tell one another, for all have seen by now that they differ.
    fn mismatch(&mut self, collective: &Collective, other: usize) -> Result<DistError, DistError> {
        let Collective { group, call, members, .. } = collective;
        // Plain numbers and strings have a JSON form.
        let text = serde_json::to_vec(call).unwrap_or_default();
        let mut own = pack(&text);
        own.resize(TEXT, 0);
        let all = self.gather_words(*group, &own)?;
        // A rank that knows ends, and its end would end this collective for those that do not know yet.
        let _ = self.gather_words(*group, &[0]);
        let text = unpack(&all[other * TEXT..][..TEXT], TEXT * 4);
        let text: Vec<u8> = text.into_iter().take_while(|&byte| byte != 0).collect();
        let other_call = serde_json::from_slice(&text).unwrap_or_else(|_| call.clone());
        Ok(DistError::Mismatch { one: (self.rank(), call.clone()), other: (members[other], other_call) })
    }

    /// The bytes of rank `root`.
    pub fn broadcast(
        &mut self,
        collective: &Collective,
        root: usize,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, DistError> {
        let (group, length) = (collective.group, self.meet(collective, bytes.len())?[root]);
        if self.rank_in(group) != root {
            return self.receive(group, root, length);
        }
        for piece in pack(&bytes).chunks(self.staging.words()) {
            self.staging.send(&self.queue, 0, piece)?;
            self.broadcast_words(group, root, piece.len())?;
            // The next piece is written where this one lies.
            self.until_done()?;
        }
        Ok(bytes)
    }

    fn receive(&mut self, group: usize, root: usize, length: usize) -> Result<Vec<u8>, DistError> {
        let (mut words, expected) = (Vec::new(), length.div_ceil(4));
        while words.len() < expected {
            let piece = (expected - words.len()).min(self.staging.words());
            self.broadcast_words(group, root, piece)?;
            words.extend(self.fetch_words(piece)?);
        }
        Ok(unpack(&words, length))
    }

    fn broadcast_words(&mut self, group: usize, root: usize, words: usize) -> Result<(), DistError> {
        let values = self.span(self.staging.on_gpu(words)?)?;
        self.call(group, |stream, communicator| communicator.broadcast(stream, values, root))
    }

    /// The bytes of all ranks, in their order.
    pub fn all_gather_bytes(
        &mut self,
        collective: &Collective,
        bytes: &[u8],
    ) -> Result<Vec<Vec<u8>>, DistError> {
        let lengths = self.meet(collective, bytes.len())?;
        let longest = lengths.iter().copied().max().unwrap_or(0).div_ceil(4);
        let mut own = pack(bytes);
        own.resize(longest, 0);
        let mut all: Vec<Vec<u32>> = lengths.iter().map(|_| Vec::with_capacity(longest)).collect();
        for piece in own.chunks((self.staging.words() / lengths.len()).max(1)) {
            let words = self.gather_words(collective.group, piece)?;
            all.iter_mut().zip(words.chunks_exact(piece.len())).for_each(|(words, part)| words.extend(part));
        }
        Ok(all.iter().zip(lengths).map(|(words, length)| unpack(words, length)).collect())
    }
}
