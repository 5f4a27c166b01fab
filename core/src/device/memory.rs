//! Device memory, registrations and imports that end by themselves.

use std::fmt;
use std::sync::Arc;

use super::{Device, DeviceAddress, HostAddress, IpcKey};
use crate::error::{Error, Result};
use crate::memory::Arena;

/// The address of `bytes` at `offset` in a range. Fails with `InvalidInput` outside of it.
fn within(base: DeviceAddress, length: usize, offset: usize, bytes: usize) -> Result<DeviceAddress> {
    match offset.checked_add(bytes) {
        Some(end) if end <= length => Ok(base.offset(offset)),
        _ => Err(Error::invalid(format!(
            "bytes {offset}+{bytes} are outside the device memory's {length}"
        ))),
    }
}

/// An allocation on a device; freed with its last use, which a copy under way is one of.
pub struct DeviceMemory {
    device: Arc<dyn Device>,
    address: DeviceAddress,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates. Fails with `InvalidInput` for no bytes and `NoSpace` for too many.
    pub fn allocate(device: &Arc<dyn Device>, bytes: usize) -> Result<Arc<Self>> {
        if bytes == 0 {
            return Err(Error::invalid("an allocation of 0 bytes"));
        }
        let address = device
            .allocate(bytes)
            .map_err(|error| error.with("device", device.name()).with("bytes", bytes))?;
        Ok(Arc::new(Self {
            device: device.clone(),
            address,
            bytes,
        }))
    }

    /// The device that it's on.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of a range. Fails with `InvalidInput` outside of the allocation.
    pub fn address(&self, offset: usize, bytes: usize) -> Result<DeviceAddress> {
        within(self.address, self.bytes, offset, bytes)
    }

    /// A key by which another process may import it. It must live as long as anybody has it imported.
    pub fn export(&self) -> Result<IpcKey> {
        // SAFETY: the address and size are those of our allocation.
        unsafe { self.device.export_memory(self.address, self.bytes) }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by us and freed once; a stream with a copy under way holds the memory.
        if let Err(error) = unsafe { self.device.free(self.address) } {
            tracing::warn!(device = self.device.name(), bytes = self.bytes, %error, "device memory not freed");
        }
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DeviceMemory")
            .field("device", &self.device.name())
            .field("address", &self.address)
            .field("bytes", &self.bytes)
            .finish()
    }
}

/// Memory of another process on a device, mapped here.
pub struct ImportedMemory {
    device: Arc<dyn Device>,
    address: DeviceAddress,
    bytes: usize,
    key: IpcKey,
}

impl ImportedMemory {
    /// Maps what a key names. How large it is the two processes tell one another.
    pub fn import(device: &Arc<dyn Device>, key: &IpcKey, bytes: usize) -> Result<Arc<Self>> {
        let address = device
            .import_memory(key)
            .map_err(|error| error.with("device", device.name()))?;
        Ok(Arc::new(Self {
            device: device.clone(),
            address,
            bytes,
            key: key.clone(),
        }))
    }

    /// The address of a range. Fails with `InvalidInput` outside of it.
    pub fn address(&self, offset: usize, bytes: usize) -> Result<DeviceAddress> {
        within(self.address, self.bytes, offset, bytes)
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for ImportedMemory {
    fn drop(&mut self) {
        // SAFETY: imported by us with this key and closed once; a stream with a copy under way holds it.
        if let Err(error) = unsafe { self.device.close_import(self.address, &self.key) } {
            tracing::warn!(device = self.device.name(), %error, "imported device memory not closed");
        }
    }
}

impl fmt::Debug for ImportedMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ImportedMemory")
            .field("device", &self.device.name())
            .field("address", &self.address)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Host memory that a device knows, so that copies from and to it run by themselves.
pub struct HostRegistration {
    device: Arc<dyn Device>,
    arena: Arc<Arena>,
}

impl HostRegistration {
    /// Registers all of an arena that is in use, now or later; it stays mapped as long as it's registered. Fails with
    /// `Unsupported` where the device can't, which costs speed and nothing else.
    pub fn of_arena(device: &Arc<dyn Device>, arena: &Arc<Arena>) -> Result<Self> {
        let bytes = arena.claim(arena.length());
        // SAFETY: the registration holds the arena, and with it its mapping.
        unsafe { device.register_host(HostAddress::of(arena.base()), bytes) }
            .map_err(|error| error.with("device", device.name()).with("bytes", bytes))?;
        Ok(Self {
            device: device.clone(),
            arena: arena.clone(),
        })
    }
}

impl Drop for HostRegistration {
    fn drop(&mut self) {
        let address = HostAddress::of(self.arena.base());
        // SAFETY: registered by us and unregistered once; owners end their streams before their registrations.
        if let Err(error) = unsafe { self.device.unregister_host(address) } {
            tracing::warn!(device = self.device.name(), %error, "host memory not unregistered");
        }
    }
}
