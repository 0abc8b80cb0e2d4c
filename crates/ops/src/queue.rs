//! Where work is issued.

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The host's processors.
    Cpu,
}

/// An ordered queue of work on a device. On the CPU an operator has run when its call returns; its loops are spread
/// over the current rayon pool.
#[derive(Debug)]
pub struct Queue {
    device: Device,
}

impl Queue {
    /// A queue on the host's processors.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu }
    }

    /// The device that runs the work.
    pub fn device(&self) -> Device {
        self.device
    }
}
