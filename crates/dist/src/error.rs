//! What can go wrong between ranks.

use tessera_ops::OpError;

/// A collective or an access to a sharded unit failed.
#[derive(Debug, thiserror::Error)]
pub enum DistError {
    /// A buffer could not be had, or a view did not fit.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The step loop holds more units at once than there are slots for.
    #[error("no slot is free to gather unit {unit}: more units are held at once than there are slots")]
    NoFreeSlot {
        /// The unit's index.
        unit: usize,
    },
    /// A thread panicked while it held a unit, whose content can no longer be trusted.
    #[error("a thread failed while it held sharded unit {unit}; its content cannot be trusted any more")]
    Abandoned {
        /// The unit's index.
        unit: usize,
    },
}
