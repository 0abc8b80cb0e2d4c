//! The kernels as PTX, which the driver compiles for the GPU that is there and keeps in its own cache.

/// The name of each file below `kernels/`, with underscores for slashes, and its PTX; none where the feature `cuda` is off.
pub(super) const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
