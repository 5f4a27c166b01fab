//! Addresses and handles by what they name, so that none is taken for another.

use std::fmt;

use crate::error::{Error, Result};

/// An address in a device's memory. The host can't read or write there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DeviceAddress(pub u64);

impl DeviceAddress {
    /// The address `bytes` further; saturates, so that a wrong offset is out of every range.
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0.saturating_add(bytes as u64))
    }
}

/// An address in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct HostAddress(pub u64);

impl HostAddress {
    /// The address of a pointer.
    pub fn of(pointer: *const u8) -> Self {
        Self(pointer as u64)
    }
}

/// A stream of a device, as its driver names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RawStream(pub u64);

/// An event, as the device's runtime names it: ours, or one that the engine recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RawEvent(pub u64);

/// From where to where a batch copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Direction {
    /// From this process into the device.
    HostToDevice = 1,
    /// From the device into this process.
    DeviceToHost = 2,
    /// Within the device, or from and to what was imported from another process.
    DeviceToDevice = 3,
}

/// One copy of a batch. Which side each address is on is the batch's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Copy {
    /// Where the bytes go.
    pub destination: u64,
    /// Where they come from.
    pub source: u64,
    /// How many.
    pub bytes: u64,
}

/// What another process needs to map an allocation of this one.
#[derive(Clone, PartialEq, Eq)]
pub struct IpcKey(Box<[u8]>);

impl IpcKey {
    /// The longest key of any device.
    pub const MAX_BYTES: usize = 512;

    /// Takes a key's bytes. Fails with `InvalidInput` for none or too many.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() || bytes.len() > Self::MAX_BYTES {
            return Err(Error::invalid(format!(
                "a key of {} bytes; 1 to {} are accepted",
                bytes.len(),
                Self::MAX_BYTES
            )));
        }
        Ok(Self(bytes.into()))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A key gives access to memory, so its bytes stay out of logs.
impl fmt::Debug for IpcKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "IpcKey({} bytes)", self.0.len())
    }
}
