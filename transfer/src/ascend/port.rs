//! The opened transport, and what is registered with it.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstored_core::transport::{Exposure, RawMemory};
use kvstored_core::{Error, ErrorKind, MemoryTransport, Result};
use parking_lot::Mutex;

use crate::identity::RegionId;
use crate::memory::RegionState;

struct Registered {
    memory: RawMemory,
    _region: Arc<RegionState>,
}

/// The registrations of one exposure, and how often one was made.
#[derive(Default)]
struct Registrations {
    regions: Mutex<HashMap<RegionId, Registered>>,
    generation: AtomicU64,
}

/// An open transport.
pub(super) struct Port {
    pub transport: Arc<dyn MemoryTransport>,
    /// What this side moves bytes from and to, for peers.
    own: Registrations,
    /// What serving peers move bytes from and to, for us.
    exposed: Registrations,
}

impl Port {
    pub fn new(transport: Arc<dyn MemoryTransport>) -> Self {
        Self {
            transport,
            own: Registrations::default(),
            exposed: Registrations::default(),
        }
    }

    fn registrations(&self, exposure: Exposure) -> &Registrations {
        match exposure {
            Exposure::Own => &self.own,
            Exposure::Peers => &self.exposed,
        }
    }

    /// Registers a region, if it isn't. The caller is counted in at it. Returns the generation that a connection must have
    /// been made in, at least, to know it.
    pub fn know(&self, region: &Arc<RegionState>, exposure: Exposure) -> Result<u64> {
        let registrations = self.registrations(exposure);
        let mut regions = registrations.regions.lock();
        if let Entry::Vacant(free) = regions.entry(region.id()) {
            let bytes = region.length() as u64;
            // SAFETY: the memory is valid until it's unregistered, which waits for whoever is counted in and then for
            // `forget`.
            let memory = unsafe { self.transport.register(region.base(), bytes, exposure)? };
            free.insert(Registered {
                memory,
                _region: region.clone(),
            });
            registrations.generation.fetch_add(1, Ordering::AcqRel);
        }
        Ok(registrations.generation.load(Ordering::Acquire))
    }

    /// How often memory was registered.
    pub fn generation(&self, exposure: Exposure) -> u64 {
        self.registrations(exposure).generation.load(Ordering::Acquire)
    }

    /// Ends what peers do to a region of ours. Once this returns `Ok`, none touches it any more.
    pub fn fence(&self, region: RegionId) -> Result<()> {
        self.unregister(region, Exposure::Peers)
    }

    /// The transport forgets a region that nobody is counted in at any more.
    pub fn forget(&self, region: RegionId) -> Result<()> {
        self.unregister(region, Exposure::Peers)?;
        self.unregister(region, Exposure::Own)
    }

    fn unregister(&self, region: RegionId, exposure: Exposure) -> Result<()> {
        let mut regions = self.registrations(exposure).regions.lock();
        let Some(known) = regions.get(&region) else {
            return Ok(());
        };
        // SAFETY: the handle is there, so it wasn't taken back.
        unsafe { self.transport.unregister(known.memory) }.map_err(|error| {
            Error::new(ErrorKind::Busy, "the transport doesn't let go of the memory").with("because", error)
        })?;
        regions.remove(&region);
        Ok(())
    }
}
