//! Devices that are built in: host memory that stands for a device where there is none, or none that is wanted.

mod event;
mod host;
mod stream;
#[cfg(test)]
mod tests;

pub use host::{EngineEvent, HostDevice, HostDeviceSettings};
