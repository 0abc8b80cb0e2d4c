//! A device's memory: allocations far apart in a 64-bit address space, no address used twice.
//!
//! So an access outside an allocation, before it or after it was freed, hits nothing and is named. Fresh memory is
//! all ones (NaN as a number), and which bytes were written is known. Memory of the host that is mapped is an allocation
//! too, at an address of the device's own, so that a program which takes the host's address for it is found out.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use super::byte_set::ByteSet;
use super::race::Races;
use crate::EmulatorError;
use crate::ptx::Space;

/// Generic addresses of shared, local and parameter memory; what is higher is global.
const SHARED_WINDOW: u64 = 1 << 44;
const LOCAL_WINDOW: u64 = 2 << 44;
const PARAM_WINDOW: u64 = 3 << 44;
const GLOBAL_WINDOW: u64 = 4 << 44;
/// Devices lie a terabyte apart, so that a pointer tells its device.
const DEVICE_STRIDE: u64 = 1 << 40;
/// As cudaMalloc aligns.
const ALIGNMENT: u64 = 512;

/// Where a space begins among the generic addresses.
pub(crate) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Const | Space::Generic => 0,
    }
}

/// The space that a generic address lies in.
pub(crate) fn space_of(address: u64) -> Space {
    match address {
        SHARED_WINDOW..LOCAL_WINDOW => Space::Shared,
        LOCAL_WINDOW..PARAM_WINDOW => Space::Local,
        PARAM_WINDOW..GLOBAL_WINDOW => Space::Param,
        _ => Space::Global,
    }
}

/// The device that a global address belongs to.
pub(crate) fn device_of(address: u64) -> Option<usize> {
    address.checked_sub(GLOBAL_WINDOW).map(|offset| (offset / DEVICE_STRIDE) as usize)
}

#[derive(Debug)]
pub(crate) struct DeviceMemory {
    /// In ascending order of their addresses.
    allocations: Vec<Allocation>,
    /// Start and size of what was freed, for messages.
    freed: BTreeMap<u64, u64>,
    next: u64,
    used: u64,
    limit: u64,
    /// The allocation found last: the next access is mostly there too.
    recent: usize,
}

#[derive(Debug)]
pub(super) struct Allocation {
    base: u64,
    pub bytes: Bytes,
    pub written: ByteSet,
    /// Made at the first checked access.
    pub races: Option<Races>,
}

/// Where an allocation's bytes are.
#[derive(Debug)]
pub(super) enum Bytes {
    Own(Vec<u8>),
    Mapped(HostBytes),
}

/// Memory of the host that a device reads and writes by itself.
#[derive(Debug)]
pub(crate) struct HostBytes {
    start: *mut u8,
    length: usize,
}

// SAFETY: whoever made this promised that the memory stays; which thread runs the device's work does not matter to it.
#[allow(unsafe_code)]
unsafe impl Send for HostBytes {}

impl HostBytes {
    /// # Safety
    /// The bytes must be initialised, stay where they are until they are unmapped, and not be touched by the host while
    /// the device may use them.
    #[allow(unsafe_code)]
    pub unsafe fn new(start: *mut u8, length: usize) -> Self {
        Self { start, length }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            // SAFETY: promised to `HostBytes::new`.
            #[allow(unsafe_code)]
            Self::Mapped(host) => unsafe { std::slice::from_raw_parts(host.start, host.length) },
        }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Own(bytes) => bytes,
            // SAFETY: promised to `HostBytes::new`.
            #[allow(unsafe_code)]
            Self::Mapped(host) => unsafe { std::slice::from_raw_parts_mut(host.start, host.length) },
        }
    }
}

impl DeviceMemory {
    /// The memory of device `index`, of `limit` bytes.
    pub fn new(index: usize, limit: u64) -> Self {
        Self {
            allocations: Vec::new(),
            freed: BTreeMap::new(),
            next: GLOBAL_WINDOW + index as u64 * DEVICE_STRIDE,
            used: 0,
            limit,
            recent: 0,
        }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Allocations that were not freed.
    pub fn live(&self) -> usize {
        self.allocations.len()
    }

    pub fn allocate(&mut self, bytes: u64) -> Result<u64, EmulatorError> {
        if bytes > self.limit - self.used {
            return Err(EmulatorError::OutOfMemory { wanted: bytes, used: self.used, limit: self.limit });
        }
        self.used += bytes;
        let size = bytes as usize;
        Ok(self.place(Bytes::Own(vec![0xff; size]), ByteSet::new(size)))
    }

    /// Gives memory of the host an address here. It takes none of the device's, and all of it counts as written: what the
    /// host writes is not seen.
    pub fn map(&mut self, host: HostBytes) -> u64 {
        let mut written = ByteSet::new(host.length);
        written.insert(0, host.length);
        self.place(Bytes::Mapped(host), written)
    }

    fn place(&mut self, bytes: Bytes, written: ByteSet) -> u64 {
        let base = self.next;
        // At least a gap of one alignment between neighbours.
        self.next = (base + bytes.len() as u64 + ALIGNMENT).next_multiple_of(ALIGNMENT);
        self.allocations.push(Allocation { base, bytes, written, races: None });
        base
    }

    pub fn free(&mut self, address: u64) -> Result<(), EmulatorError> {
        let index = self.starting_at(address)?;
        let allocation = &self.allocations[index];
        let size = allocation.bytes.len() as u64;
        if matches!(allocation.bytes, Bytes::Mapped(_)) {
            let problem = "it is the host's".to_owned();
            return Err(EmulatorError::Copy { what: "free", bytes: size, address, problem });
        }
        self.used -= size;
        self.forget(index);
        Ok(())
    }

    /// Takes the address of memory of the host away again.
    pub fn unmap(&mut self, address: u64) -> Result<(), EmulatorError> {
        let index = self.starting_at(address)?;
        self.forget(index);
        Ok(())
    }

    fn starting_at(&self, address: u64) -> Result<usize, EmulatorError> {
        let found = self.allocations.binary_search_by_key(&address, |allocation| allocation.base);
        found.map_err(|_| EmulatorError::Copy {
            what: "free",
            bytes: 0,
            address,
            problem: self.describe(address),
        })
    }

    fn forget(&mut self, index: usize) {
        let allocation = self.allocations.remove(index);
        self.freed.insert(allocation.base, allocation.bytes.len() as u64);
    }

    /// The allocation that holds all of an access, and the offset in it.
    pub fn find(&mut self, address: u64, size: usize) -> Option<(usize, usize)> {
        let inside = |allocation: &Allocation| {
            let offset = address.checked_sub(allocation.base)?;
            let offset = usize::try_from(offset).ok()?;
            (allocation.bytes.len().checked_sub(size)? >= offset).then_some(offset)
        };
        if let Some(offset) = self.allocations.get(self.recent).and_then(inside) {
            return Some((self.recent, offset));
        }
        let index =
            self.allocations.partition_point(|allocation| allocation.base <= address).checked_sub(1)?;
        let offset = inside(&self.allocations[index])?;
        self.recent = index;
        Some((index, offset))
    }

    pub(super) fn allocation(&mut self, index: usize) -> &mut Allocation {
        &mut self.allocations[index]
    }

    /// What lies at an address that no allocation holds, in words.
    pub fn describe(&self, address: u64) -> String {
        let index = self.allocations.partition_point(|allocation| allocation.base <= address);
        let below = index.checked_sub(1).map(|index| &self.allocations[index]);
        if let Some((base, size)) = self.freed.range(..=address).next_back()
            && address < base + (*size).max(1)
        {
            return format!("it lies in an allocation of {size} bytes at {base:#x} that was freed");
        }
        match below {
            Some(below) if address < below.base + below.bytes.len() as u64 + ALIGNMENT => format!(
                "the allocation of {} bytes at {:#x} ends {} bytes before the access does",
                below.bytes.len(),
                below.base,
                address.saturating_sub(below.base + below.bytes.len() as u64)
            ),
            _ => match self.allocations.get(index) {
                Some(above) if above.base - address <= ALIGNMENT => format!(
                    "it lies {} bytes before the allocation of {} bytes at {:#x}",
                    above.base - address,
                    above.bytes.len(),
                    above.base
                ),
                _ => "no allocation is near".to_owned(),
            },
        }
    }

    fn host_range(
        &mut self,
        what: &'static str,
        address: u64,
        bytes: usize,
    ) -> Result<(usize, usize), EmulatorError> {
        self.find(address, bytes).ok_or_else(|| EmulatorError::Copy {
            what,
            bytes: bytes as u64,
            address,
            problem: self.describe(address),
        })
    }

    /// Copies from the host.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), EmulatorError> {
        if data.is_empty() {
            return Ok(());
        }
        let (index, offset) = self.host_range("a write by the host", address, data.len())?;
        let allocation = &mut self.allocations[index];
        allocation.bytes[offset..offset + data.len()].copy_from_slice(data);
        allocation.written.insert(offset, data.len());
        Ok(())
    }

    /// Copies to the host.
    pub fn read(&mut self, address: u64, bytes: usize) -> Result<&[u8], EmulatorError> {
        if bytes == 0 {
            return Ok(&[]);
        }
        let (index, offset) = self.host_range("a read by the host", address, bytes)?;
        Ok(&self.allocations[index].bytes[offset..offset + bytes])
    }

    /// Copies out what something on the device reads: all of it must have been written.
    pub fn read_written(
        &mut self,
        what: &'static str,
        address: u64,
        bytes: usize,
    ) -> Result<Vec<u8>, EmulatorError> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let (index, offset) = self.host_range(what, address, bytes)?;
        let allocation = &self.allocations[index];
        if !allocation.written.contains_all(offset, bytes) {
            let problem = "some of them were never written".to_owned();
            return Err(EmulatorError::Copy { what, bytes: bytes as u64, address, problem });
        }
        Ok(allocation.bytes[offset..offset + bytes].to_vec())
    }

    /// Sets bytes by repeating a pattern.
    pub fn fill(&mut self, address: u64, pattern: &[u8], count: usize) -> Result<(), EmulatorError> {
        let data = pattern.repeat(count);
        self.write(address, &data)
    }

    /// Bytes with whether each was ever written, for a copy between devices.
    pub fn take_out(&mut self, address: u64, bytes: usize) -> Result<(Vec<u8>, Vec<bool>), EmulatorError> {
        if bytes == 0 {
            return Ok((Vec::new(), Vec::new()));
        }
        let (index, offset) = self.host_range("a copy", address, bytes)?;
        let allocation = &self.allocations[index];
        Ok((allocation.bytes[offset..offset + bytes].to_vec(), allocation.written.slice(offset, bytes)))
    }

    /// The other half of [`take_out`](Self::take_out): what was never written stays so.
    pub fn put_in(&mut self, address: u64, data: &[u8], written: &[bool]) -> Result<(), EmulatorError> {
        if data.is_empty() {
            return Ok(());
        }
        let (index, offset) = self.host_range("a copy", address, data.len())?;
        let allocation = &mut self.allocations[index];
        allocation.bytes[offset..offset + data.len()].copy_from_slice(data);
        allocation.written.copy_from(offset, written);
        Ok(())
    }
}
