//! The tier `Pool` keeps the contract of tiers.

use std::sync::Arc;
use std::time::Duration;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_conformance::{Options, Subject, run};
use kvstored_core::{MemoryTier, Result, Runtime, Tier};

use super::{FakeMaster, Member};
use crate::{PoolTier, TierSettings};

/// Two nodes that lend; each opening is a tier of its own on the first.
struct Pool {
    members: Vec<Member>,
}

impl Subject for Pool {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let settings = TierSettings {
            feed_interval: Duration::from_millis(10),
            ..TierSettings::default()
        };
        let client = self.members[0].client.clone();
        Ok(PoolTier::start(&settings, client, &Runtime::system())?)
    }

    fn survives_restart(&self) -> bool {
        false
    }

    fn lookups_are_hints(&self) -> bool {
        true
    }

    fn memory(&mut self) -> Result<Option<Arc<dyn MemoryTier>>> {
        let settings = CacheSettings {
            capacity_bytes: 8 << 20,
            shared: false,
            huge_pages: false,
            ..CacheSettings::default()
        };
        let memory: Arc<dyn MemoryTier> = CacheTier::open(settings, None)?;
        Ok(Some(memory))
    }
}

#[test]
fn the_tier_keeps_the_contract() {
    let master = Arc::new(FakeMaster::new(Duration::from_secs(2)));
    let members = vec![Member::new(&master, 16 << 20), Member::new(&master, 16 << 20)];
    let report = run(&mut Pool { members }, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}
