//! Between the host and wherever a queue works: for what is read or changed now and then, outside of steps. On the CPU values
//! are used where they lie; on a GPU they are copied, and the host waits.

use std::borrow::Cow;

use crate::buffer::{View, ViewMut};
use crate::dtype::Element;
use crate::error::OpError;
use crate::fill;
use crate::queue::{Device, Queue};

/// The elements of a view, when all that was issued to `queue` has run.
///
/// # Errors
/// When the view is of another dtype, or CUDA fails.
pub fn to_host<'a, T: Element>(queue: &Queue, view: View<'a>) -> Result<Cow<'a, [T]>, OpError> {
    match queue.device() {
        Device::Cpu => view.as_slice().map(Cow::Borrowed),
        Device::Cuda(_) => {
            let mut values = vec![T::zeroed(); view.shape().elements()];
            fill::copy(queue, view, ViewMut::of(&mut values).reshape(view.shape())?)?;
            queue.synchronize()?;
            Ok(Cow::Owned(values))
        }
    }
}

/// Lets `body` change the elements of a view on the host.
///
/// # Errors
/// When the view is of another dtype, or CUDA fails.
pub fn on_host<T: Element, R>(
    queue: &Queue,
    mut view: ViewMut<'_>,
    body: impl FnOnce(&mut [T]) -> R,
) -> Result<R, OpError> {
    match queue.device() {
        Device::Cpu => Ok(body(view.as_slice_mut()?)),
        Device::Cuda(_) => {
            let mut values = to_host(queue, view.as_view())?.into_owned();
            let result = body(&mut values);
            fill::copy(queue, View::of(&values).reshape(view.shape())?, view)?;
            queue.synchronize()?;
            Ok(result)
        }
    }
}
