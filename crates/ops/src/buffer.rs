//! Memory: a [`Buffer`] is one aligned allocation on the host or a device, a [`View`] a dtype and shape over part of one.
//!
//! Views are plain borrows, so the borrow checker sees every overlap: a buffer is cut into disjoint mutable views by
//! splitting, and an [`Arena`] hands out scratch by splitting from the front.

use std::ops::Range;

use crate::cuda::{DeviceMemory, MappedMemory, PinnedMemory};
use crate::dtype::{DType, Element};
use crate::error::OpError;
use crate::memory::{Bytes, BytesMut};
use crate::queue::{Device, Queue};

/// Every view that an [`Arena`] gives, and every segment of a sharded unit, starts at a multiple of this.
pub const ALIGNMENT: usize = 64;

/// The largest number of dimensions a view can have.
const MAXIMUM_RANK: usize = 4;

/// The extents of a view, slowest first; elements are contiguous in row-major order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    extents: [usize; MAXIMUM_RANK],
    rank: usize,
}

impl Shape {
    /// The extents, slowest first.
    pub fn extents(&self) -> &[usize] {
        &self.extents[..self.rank]
    }

    /// The number of elements. An absurd shape has `usize::MAX`, which no buffer holds.
    pub fn elements(&self) -> usize {
        self.extents().iter().fold(1, |product: usize, &extent| product.saturating_mul(extent))
    }
}

impl<const RANK: usize> From<[usize; RANK]> for Shape {
    fn from(extents: [usize; RANK]) -> Self {
        const { assert!(RANK <= MAXIMUM_RANK) };
        let mut shape = Shape { extents: [1; MAXIMUM_RANK], rank: RANK };
        shape.extents[..RANK].copy_from_slice(&extents);
        shape
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.extents().fmt(formatter)
    }
}

/// One aligned, zeroed allocation.
pub struct Buffer {
    storage: Storage,
    bytes: usize,
}

enum Storage {
    Host(HostMemory),
    /// Host memory that a device copies from and to by itself.
    Pinned(PinnedMemory),
    /// Host memory that kernels of a device work in.
    Mapped(MappedMemory),
    Device(DeviceMemory),
}

/// An aligned allocation in host memory.
struct HostMemory {
    /// Bytes of no alignment of their own: only such an allocation does the system hand out zeroed without touching it.
    bytes: Vec<u8>,
    /// Where in `bytes` the first aligned one lies.
    start: usize,
}

impl HostMemory {
    fn zeroed(bytes: usize) -> Result<Self, OpError> {
        let out_of_memory = || OpError::OutOfMemory { bytes };
        let room = bytes.checked_next_multiple_of(ALIGNMENT).and_then(|bytes| bytes.checked_add(ALIGNMENT));
        let bytes: Vec<u8> = bytemuck::allocation::try_zeroed_vec(room.ok_or_else(out_of_memory)?)
            .map_err(|()| out_of_memory())?;
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Ok(Self { bytes, start })
    }
}

impl Buffer {
    /// Allocates `bytes` zero bytes of host memory. Pages take no memory before they are first written.
    ///
    /// # Errors
    /// [`OpError::OutOfMemory`] if the allocator has none.
    pub fn zeroed(bytes: usize) -> Result<Self, OpError> {
        Ok(Self { storage: Storage::Host(HostMemory::zeroed(bytes)?), bytes })
    }

    /// Allocates `bytes` zero bytes where the operators of `queue` work.
    ///
    /// # Errors
    /// When that memory has no room.
    pub fn on(queue: &Queue, bytes: usize) -> Result<Self, OpError> {
        match queue.device() {
            Device::Cpu => Self::zeroed(bytes),
            Device::Cuda(stream) => {
                let memory = DeviceMemory::zeroed(stream.gpu(), padded(bytes)?)?;
                Ok(Self { storage: Storage::Device(memory), bytes })
            }
        }
    }

    /// Allocates `bytes` zero bytes of host memory that `queue` copies from and to without the host's help.
    ///
    /// # Errors
    /// When the host has no room.
    pub fn staging(queue: &Queue, bytes: usize) -> Result<Self, OpError> {
        match queue.device() {
            Device::Cpu => Self::zeroed(bytes),
            Device::Cuda(stream) => {
                let memory = PinnedMemory::zeroed(stream.gpu(), padded(bytes)?)?;
                Ok(Self { storage: Storage::Pinned(memory), bytes })
            }
        }
    }

    /// Allocates `bytes` zero bytes of host memory in which the operators of `queue` work as in their own, at the speed of the
    /// bus between.
    ///
    /// # Errors
    /// When the host has no room.
    pub fn mapped(queue: &Queue, bytes: usize) -> Result<Self, OpError> {
        match queue.device() {
            Device::Cpu => Self::zeroed(bytes),
            Device::Cuda(stream) => {
                let memory = MappedMemory::zeroed(stream.gpu(), padded(bytes)?)?;
                Ok(Self { storage: Storage::Mapped(memory), bytes })
            }
        }
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn memory(&self, bytes: usize) -> Bytes<'_> {
        match &self.storage {
            Storage::Host(host) => Bytes::Host(&host.bytes[host.start..][..bytes]),
            Storage::Pinned(pinned) => Bytes::Host(&pinned.bytes()[..bytes]),
            Storage::Mapped(mapped) => Bytes::Device(mapped.bytes()).part(0, bytes),
            Storage::Device(device) => Bytes::Device(device.bytes()).part(0, bytes),
        }
    }

    fn memory_mut(&mut self, bytes: usize) -> BytesMut<'_> {
        match &mut self.storage {
            Storage::Host(host) => BytesMut::Host(&mut host.bytes[host.start..][..bytes]),
            Storage::Pinned(pinned) => BytesMut::Host(&mut pinned.bytes_mut()[..bytes]),
            Storage::Mapped(mapped) => BytesMut::Device(mapped.bytes()).split_at(bytes).0,
            Storage::Device(device) => BytesMut::Device(device.bytes()).split_at(bytes).0,
        }
    }

    /// The whole buffer as a vector of `dtype`; bytes that do not make a whole element are left out.
    pub fn view(&self, dtype: DType) -> View<'_> {
        let elements = self.bytes / dtype.size();
        View { bytes: self.memory(elements * dtype.size()), dtype, shape: [elements].into() }
    }

    /// The whole buffer as [`Buffer::view`], for the host to read, when all that was issued to `queue` has run; none where it
    /// lies in the memory of a device.
    ///
    /// # Errors
    /// When CUDA fails.
    pub fn on_host(&self, queue: &Queue, dtype: DType) -> Result<Option<View<'_>>, OpError> {
        match &self.storage {
            Storage::Host(_) | Storage::Pinned(_) => Ok(Some(self.view(dtype))),
            Storage::Mapped(mapped) => {
                queue.synchronize()?;
                let elements = self.bytes / dtype.size();
                let bytes = Bytes::Host(mapped.on_host()).part(0, elements * dtype.size());
                Ok(Some(View { bytes, dtype, shape: [elements].into() }))
            }
            Storage::Device(_) => Ok(None),
        }
    }

    /// The whole buffer as a mutable vector of `dtype`; bytes that do not make a whole element are left out.
    pub fn view_mut(&mut self, dtype: DType) -> ViewMut<'_> {
        let elements = self.bytes / dtype.size();
        ViewMut { bytes: self.memory_mut(elements * dtype.size()), dtype, shape: [elements].into() }
    }

    /// Scratch cut from the front of this buffer.
    pub fn arena(&mut self) -> Arena<'_> {
        let capacity = self.bytes.next_multiple_of(ALIGNMENT);
        Arena { rest: self.memory_mut(capacity), capacity }
    }
}

/// A size that an arena over the memory can use up.
fn padded(bytes: usize) -> Result<usize, OpError> {
    bytes.checked_next_multiple_of(ALIGNMENT).ok_or(OpError::OutOfMemory { bytes })
}

/// A read-only view: dtype, shape, and a borrow of the bytes.
#[derive(Clone, Copy)]
pub struct View<'a> {
    bytes: Bytes<'a>,
    dtype: DType,
    shape: Shape,
}

impl<'a> View<'a> {
    /// A view of host values, as a vector.
    pub fn of<T: Element>(values: &'a [T]) -> Self {
        let bytes = Bytes::Host(bytemuck::cast_slice(values));
        Self { bytes, dtype: T::DTYPE, shape: [values.len()].into() }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The same elements under another shape of equally many.
    pub fn reshape(self, shape: impl Into<Shape>) -> Result<Self, OpError> {
        let shape = shape.into();
        check_reshape(self.shape, shape)?;
        Ok(Self { shape, ..self })
    }

    /// `length` elements from element `start`, as a vector.
    pub fn range(self, start: usize, length: usize) -> Result<Self, OpError> {
        check_range(self.shape, start, length)?;
        let size = self.dtype.size();
        let bytes = self.bytes.part(start * size, (start + length) * size);
        Ok(Self { bytes, shape: [length].into(), ..self })
    }

    /// Some rows of a matrix.
    pub fn rows(self, rows: Range<usize>) -> Result<Self, OpError> {
        let width = self.row_width();
        self.range(rows.start * width, rows.len() * width)?.reshape([rows.len(), width])
    }

    /// Elements between the beginnings of two rows.
    fn row_width(&self) -> usize {
        self.shape.extents().iter().skip(1).product()
    }

    /// The elements, which must be of type `T` and lie on the host.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T], OpError> {
        check_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice(self.bytes.on_host()?))
    }

    /// Where the elements lie.
    pub(crate) fn bytes(&self) -> Bytes<'a> {
        self.bytes
    }
}

/// A mutable view: dtype, shape, and an exclusive borrow of the bytes.
pub struct ViewMut<'a> {
    bytes: BytesMut<'a>,
    dtype: DType,
    shape: Shape,
}

impl<'a> ViewMut<'a> {
    /// A mutable view of host values, as a vector.
    pub fn of<T: Element>(values: &'a mut [T]) -> Self {
        let shape = [values.len()].into();
        Self { bytes: BytesMut::Host(bytemuck::cast_slice_mut(values)), dtype: T::DTYPE, shape }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The size in bytes.
    pub(crate) fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// Where the elements lie.
    pub(crate) fn into_bytes(self) -> BytesMut<'a> {
        self.bytes
    }

    /// A shorter mutable borrow of the same view.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { bytes: self.bytes.reborrow(), dtype: self.dtype, shape: self.shape }
    }

    /// The same view, read only, for as long as the buffer is borrowed.
    pub fn into_view(self) -> View<'a> {
        View { bytes: self.bytes.into_bytes(), dtype: self.dtype, shape: self.shape }
    }

    /// The same view, read only.
    pub fn as_view(&self) -> View<'_> {
        View { bytes: self.bytes.as_bytes(), dtype: self.dtype, shape: self.shape }
    }

    /// The same elements under another shape of equally many.
    pub fn reshape(self, shape: impl Into<Shape>) -> Result<Self, OpError> {
        let shape = shape.into();
        check_reshape(self.shape, shape)?;
        Ok(Self { shape, ..self })
    }

    /// The same bytes as a vector of another dtype; bytes that do not make a whole element are left out.
    pub fn of_dtype(self, dtype: DType) -> Self {
        let elements = self.bytes.len() / dtype.size();
        Self { bytes: self.bytes.split_at(elements * dtype.size()).0, dtype, shape: [elements].into() }
    }

    /// Two disjoint vectors: the first `elements` elements, and the rest.
    pub fn split_at(self, elements: usize) -> Result<(Self, Self), OpError> {
        check_range(self.shape, 0, elements)?;
        let rest = self.shape.elements() - elements;
        let (left, right) = self.bytes.split_at(elements * self.dtype.size());
        Ok((
            Self { bytes: left, dtype: self.dtype, shape: [elements].into() },
            Self { bytes: right, dtype: self.dtype, shape: [rest].into() },
        ))
    }

    /// `length` elements from element `start`, as a vector.
    pub fn range(self, start: usize, length: usize) -> Result<Self, OpError> {
        Ok(self.split_at(start)?.1.split_at(length)?.0)
    }

    /// Some rows of a matrix.
    pub fn rows(self, rows: Range<usize>) -> Result<Self, OpError> {
        let width = self.as_view().row_width();
        self.range(rows.start * width, rows.len() * width)?.reshape([rows.len(), width])
    }

    /// The elements, which must be of type `T` and lie on the host.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], OpError> {
        self.as_view().as_slice()
    }

    /// The elements, mutable, which must be of type `T` and lie on the host.
    pub fn as_slice_mut<T: Element>(&mut self) -> Result<&mut [T], OpError> {
        self.reborrow().into_slice_mut()
    }

    /// The elements, mutable, for as long as the buffer is borrowed.
    pub fn into_slice_mut<T: Element>(self) -> Result<&'a mut [T], OpError> {
        check_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice_mut(self.bytes.on_host()?))
    }
}

/// Scratch memory handed out view by view from one borrowed buffer. What a stage takes, it gives back by returning:
/// the borrow ends, and the next stage starts from the front again.
pub struct Arena<'a> {
    rest: BytesMut<'a>,
    capacity: usize,
}

impl<'a> Arena<'a> {
    /// The bytes that taking `elements` of `dtype` uses up, rounding for alignment included. A memory plan is a sum of
    /// these.
    pub fn cost(dtype: DType, elements: usize) -> usize {
        (elements * dtype.size()).next_multiple_of(ALIGNMENT)
    }

    /// The next view. Its content is whatever was there before.
    ///
    /// # Errors
    /// [`OpError::ArenaExhausted`] if the buffer was planned too small.
    pub fn take(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<ViewMut<'a>, OpError> {
        let shape = shape.into();
        let length = shape.elements().saturating_mul(dtype.size());
        let wanted = length.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        let rest = std::mem::take(&mut self.rest);
        if wanted > rest.len() {
            let error =
                OpError::ArenaExhausted { wanted, used: self.capacity - rest.len(), capacity: self.capacity };
            self.rest = rest;
            return Err(error);
        }
        let (taken, rest) = rest.split_at(wanted);
        self.rest = rest;
        Ok(ViewMut { bytes: taken.split_at(length).0, dtype, shape })
    }

    /// What has not been taken yet, for a shorter time: when the inner arena is gone, its memory is free again.
    pub fn inner(&mut self) -> Arena<'_> {
        Arena { capacity: self.capacity, rest: self.rest.reborrow() }
    }
}

fn check_reshape(from: Shape, to: Shape) -> Result<(), OpError> {
    if from.elements() == to.elements() {
        return Ok(());
    }
    Err(OpError::Shape {
        operator: "reshape",
        argument: "view",
        found: from.extents().to_vec(),
        expected: format!("as many elements as {to:?}"),
    })
}

fn check_range(shape: Shape, start: usize, length: usize) -> Result<(), OpError> {
    match start.checked_add(length) {
        Some(end) if end <= shape.elements() => Ok(()),
        _ => Err(OpError::Shape {
            operator: "range",
            argument: "view",
            found: shape.extents().to_vec(),
            expected: format!("at least {start} + {length} elements"),
        }),
    }
}

fn check_dtype<T: Element>(found: DType) -> Result<(), OpError> {
    if found == T::DTYPE {
        return Ok(());
    }
    let expected = std::any::type_name::<T>();
    Err(OpError::DType { operator: "slice", argument: "view", found, expected })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_arena_gives_what_was_planned_and_no_more() {
        let plan = Arena::cost(DType::F32, 3) + Arena::cost(DType::F64, 9);
        let mut buffer = Buffer::zeroed(plan).unwrap();
        let mut arena = buffer.arena();
        let first = arena.take(DType::F32, [3]).unwrap();
        {
            let mut inner = arena.inner();
            assert_eq!(inner.take(DType::F64, [9]).unwrap().shape().elements(), 9);
        }
        arena.take(DType::F64, [3, 3]).unwrap();
        assert!(matches!(arena.take(DType::U32, [1]), Err(OpError::ArenaExhausted { .. })));
        assert_eq!(first.shape().elements(), 3);
    }

    #[test]
    fn buffers_are_aligned_and_zero() {
        for bytes in [0, 1, 63, 64, 65, 1 << 20] {
            let buffer = Buffer::zeroed(bytes).unwrap();
            let view = buffer.view(DType::F64);
            let slice = view.as_slice::<f64>().unwrap();
            assert_eq!(slice.as_ptr().align_offset(ALIGNMENT), 0);
            assert!(slice.iter().all(|&value| value == 0.0));
        }
        assert!(matches!(Buffer::zeroed(usize::MAX), Err(OpError::OutOfMemory { .. })));
    }

    #[test]
    fn bytes_can_be_taken_as_another_dtype() {
        let mut buffer = Buffer::zeroed(14).unwrap();
        let mut values = buffer.view_mut(DType::BF16);
        values.as_slice_mut::<half::bf16>().unwrap().fill(half::bf16::ONE);
        let words = values.of_dtype(DType::F32);
        assert_eq!((words.dtype(), words.shape().elements()), (DType::F32, 3));
        assert_eq!(words.as_slice::<f32>().unwrap()[0].to_bits(), 0x3f80_3f80);
    }

    #[test]
    fn a_view_is_read_only_as_what_it_is() {
        let buffer = Buffer::zeroed(16).unwrap();
        let view = buffer.view(DType::F32);
        assert!(view.as_slice::<f64>().is_err());
        assert_eq!(view.as_slice::<f32>().unwrap().len(), 4);
        assert!(view.reshape([2, 3]).is_err());
        assert!(view.range(3, 2).is_err());
        assert!(view.range(usize::MAX, 2).is_err());
    }
}
