//! Bytes, wherever they lie: what buffers own and views borrow.
//!
//! Host memory is a slice, so that Rust sees who reads and who writes it. Device memory is an address which this process
//! cannot read; the borrow is kept all the same, so that the same code is refused for the same reasons on both.

use std::marker::PhantomData;

use crate::error::OpError;

/// Bytes in the memory of a device, borrowed from the buffer that owns them.
#[derive(Clone, Copy)]
pub(crate) struct DeviceBytes<'a> {
    ordinal: usize,
    address: u64,
    length: usize,
    borrow: PhantomData<&'a [u8]>,
}

impl DeviceBytes<'_> {
    /// `length` bytes at `address` of device `ordinal`, which must stay allocated for the lifetime.
    pub fn new(ordinal: usize, address: u64, length: usize) -> Self {
        Self { ordinal, address, length, borrow: PhantomData }
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    fn part(self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.length, "bytes {start}..{end} of {}", self.length);
        Self { address: self.address + start as u64, length: end - start, ..self }
    }
}

/// Bytes to read.
#[derive(Clone, Copy)]
pub(crate) enum Bytes<'a> {
    Host(&'a [u8]),
    Device(DeviceBytes<'a>),
}

impl<'a> Bytes<'a> {
    /// Those from `start` to before `end`, which must be there.
    pub fn part(self, start: usize, end: usize) -> Self {
        match self {
            Bytes::Host(bytes) => Bytes::Host(&bytes[start..end]),
            Bytes::Device(bytes) => Bytes::Device(bytes.part(start, end)),
        }
    }

    /// The bytes, which must lie on the host.
    pub fn on_host(self) -> Result<&'a [u8], OpError> {
        match self {
            Bytes::Host(bytes) => Ok(bytes),
            Bytes::Device(bytes) => Err(OpError::NotOnHost { ordinal: bytes.ordinal }),
        }
    }
}

/// Bytes to write.
pub(crate) enum BytesMut<'a> {
    Host(&'a mut [u8]),
    Device(DeviceBytes<'a>),
}

impl<'a> BytesMut<'a> {
    pub fn len(&self) -> usize {
        match self {
            BytesMut::Host(bytes) => bytes.len(),
            BytesMut::Device(bytes) => bytes.length,
        }
    }

    pub fn reborrow(&mut self) -> BytesMut<'_> {
        match self {
            BytesMut::Host(bytes) => BytesMut::Host(bytes),
            BytesMut::Device(bytes) => BytesMut::Device(*bytes),
        }
    }

    pub fn into_bytes(self) -> Bytes<'a> {
        match self {
            BytesMut::Host(bytes) => Bytes::Host(bytes),
            BytesMut::Device(bytes) => Bytes::Device(bytes),
        }
    }

    pub fn as_bytes(&self) -> Bytes<'_> {
        match self {
            BytesMut::Host(bytes) => Bytes::Host(bytes),
            BytesMut::Device(bytes) => Bytes::Device(*bytes),
        }
    }

    /// The first `length` bytes, which must be there, and the rest.
    pub fn split_at(self, length: usize) -> (Self, Self) {
        match self {
            BytesMut::Host(bytes) => {
                let (front, rest) = bytes.split_at_mut(length);
                (BytesMut::Host(front), BytesMut::Host(rest))
            }
            BytesMut::Device(bytes) => {
                let (front, rest) = (bytes.part(0, length), bytes.part(length, bytes.length));
                (BytesMut::Device(front), BytesMut::Device(rest))
            }
        }
    }

    /// The bytes, which must lie on the host.
    pub fn on_host(self) -> Result<&'a mut [u8], OpError> {
        match self {
            BytesMut::Host(bytes) => Ok(bytes),
            BytesMut::Device(bytes) => Err(OpError::NotOnHost { ordinal: bytes.ordinal }),
        }
    }
}

impl Default for BytesMut<'_> {
    fn default() -> Self {
        BytesMut::Host(&mut [])
    }
}
