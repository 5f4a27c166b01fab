//! The port of the device, and what is registered with it.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use kvstored_core::{Result, Runtime};
use kvstored_verbs::{Driver, LinkSettings, Nic, NicChoice, Registration, Slice};
use parking_lot::Mutex;

use crate::identity::RegionId;
use crate::memory::RegionState;
use crate::settings::EngineSettings;

/// How long a peer may take to stop what isn't wanted any more, as a part of the time after which it's given up.
const GRACE_PART: u32 = 5;

/// A region that the device knows. The registration goes first.
struct Registered {
    registration: Arc<Registration>,
    _region: Arc<RegionState>,
}

/// A port, the thread that works for its links, and the regions that were used with it.
pub(super) struct Port {
    pub nic: Arc<Nic>,
    pub driver: Driver,
    pub settings: LinkSettings,
    regions: Mutex<HashMap<RegionId, Registered>>,
}

impl Port {
    /// Opens the first port that works. Fails with `Unavailable` where there is none, or no library.
    pub fn open(settings: &EngineSettings, runtime: &Runtime) -> Result<Arc<Self>> {
        let nic = Nic::open(&NicChoice::default())?;
        let driver = Driver::start(&nic, runtime)?;
        tracing::info!(?nic, "RDMA is there");
        let usual = LinkSettings::default();
        let settings = LinkSettings {
            queue_depth: settings.queue_depth,
            silence: settings.peer_timeout,
            grace: (settings.peer_timeout / GRACE_PART).clamp(usual.grace, usual.grace * 20),
            ..usual
        };
        Ok(Arc::new(Self {
            nic,
            driver,
            settings,
            regions: Mutex::default(),
        }))
    }

    /// A range of a region, which is registered with the device when it's first used. The caller is counted in at the
    /// region, and has checked the range.
    pub fn slice(&self, region: &Arc<RegionState>, offset: u64, length: u64) -> Result<Slice> {
        let mut regions = self.regions.lock();
        let registration = if let Some(known) = regions.get(&region.id()) {
            known.registration.clone()
        } else {
            let base = std::ptr::with_exposed_provenance_mut(region.base());
            // SAFETY: the memory is valid until it's unregistered, which waits for whoever is counted in and then
            // calls `forget` before it returns; nothing forms references to it.
            let registration = unsafe { Registration::new(self.nic.domain(), base, region.length())? };
            let known = Registered {
                registration: registration.clone(),
                _region: region.clone(),
            };
            regions.insert(region.id(), known);
            registration
        };
        drop(regions);
        registration.slice(offset, length)
    }

    /// The device forgets a region that nobody is counted in at any more.
    pub fn forget(&self, region: RegionId) {
        let known = self.regions.lock().remove(&region);
        if let Some(known) = known
            && Arc::strong_count(&known.registration) > 1
        {
            tracing::error!(
                region = region.value(),
                "a region is let go while RDMA still uses it"
            );
        }
    }

    /// Ends all links and forgets all regions.
    pub fn stop(&self) {
        self.driver.shutdown();
        self.regions.lock().clear();
    }
}
