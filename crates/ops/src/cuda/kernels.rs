//! The kernels, compiled: machine code for some kinds of GPU, and PTX, from which the driver makes that of newer ones.

/// The name of each file below `kernels/`, with underscores for slashes, and its fat binary; none where the feature `cuda` is
/// off.
pub(super) const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The version of the toolkit that compiled them, major and minor, as it says in the head of their PTX.
pub fn toolkit() -> Option<(i32, i32)> {
    const BEFORE: &[u8] = b"Cuda compilation tools, release ";
    let (_, code) = FILES.first()?;
    let start = code.windows(BEFORE.len()).position(|window| window == BEFORE)? + BEFORE.len();
    let version = std::str::from_utf8(code.get(start..)?.split(|&byte| byte == b',').next()?).ok()?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
