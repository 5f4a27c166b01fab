//! The tier keeps the contract of tiers.

use std::sync::Arc;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_conformance::{Options, Subject, run};
use kvstored_core::{MemoryTier, Result, Runtime, Tier};

use crate::faulty::Faulty;
use crate::support::{open_with, settings};

struct Bucket(Arc<Faulty>);

impl Subject for Bucket {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let small = kvstored_object::S3Settings {
            capacity_bytes: 2 << 20,
            ..settings()
        };
        Ok(open_with(&self.0, small))
    }

    fn survives_restart(&self) -> bool {
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
    let report = run(
        &mut Bucket(Faulty::new()),
        &Options::default(),
        &Runtime::system(),
    );
    assert!(report.passed(), "{report}");
}
