//! Memory that is read and written: of the kind that engines have who use the transport.

use std::sync::Arc;

use kvstored_core::{Result, Runtime};
use kvstored_transfer::{Region, TransferEngine};

use super::cases::Transport;
use crate::tools::buffer::Buffer;
use crate::tools::registered::Registered;

/// Memory of one engine.
pub enum Memory {
    /// The engine's own, which other processes can map.
    Allocated(Region),
    /// The caller's, in huge pages as the raw sockets' is.
    Registered(Registered),
}

impl Memory {
    /// Fresh zeroed memory. Without shared memory nothing has to be mapped elsewhere.
    pub fn new(
        engine: &Arc<TransferEngine>,
        transport: Transport,
        bytes: usize,
        runtime: &Runtime,
    ) -> Result<Self> {
        if transport == Transport::Shm {
            return engine.allocate(bytes).map(Self::Allocated);
        }
        Registered::new(Buffer::new(bytes)?, engine, runtime).map(Self::Registered)
    }

    /// The engine's name for it.
    pub fn region(&self) -> &Region {
        match self {
            Self::Allocated(region) => region,
            Self::Registered(registered) => registered.region(),
        }
    }

    /// Copies bytes in, while no transfer touches them.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<()> {
        match self {
            Self::Allocated(region) => region.write(offset as u64, source),
            Self::Registered(registered) => registered.write(offset, source),
        }
    }

    /// Copies bytes out, while no transfer touches them.
    pub fn read(&self, offset: usize, destination: &mut [u8]) -> Result<()> {
        match self {
            Self::Allocated(region) => region.read(offset as u64, destination),
            Self::Registered(registered) => registered.read(offset, destination),
        }
    }
}
