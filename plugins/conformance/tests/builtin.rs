//! The built-in tiers pass the kit.

use std::sync::Arc;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_backends::null::NullTier;
use kvstored_backends::posix::{PosixSettings, PosixTier};
use kvstored_conformance::{Options, Subject, run};
use kvstored_core::eviction::PolicyKind;
use kvstored_core::{Result, Runtime, Tier};

struct Cache;

impl Subject for Cache {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let settings = CacheSettings {
            capacity_bytes: 8 << 20,
            policy: PolicyKind::default(),
            keep: true,
            shared: false,
            huge_pages: false,
            shadow_sample_one_in: 0,
        };
        Ok(CacheTier::open(settings, None)?)
    }

    fn survives_restart(&self) -> bool {
        false
    }
}

struct Posix {
    directory: tempfile::TempDir,
}

impl Subject for Posix {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let settings = PosixSettings {
            directories: vec![self.directory.path().to_owned()],
            capacity_bytes: 32 << 20,
            ..PosixSettings::default()
        };
        Ok(PosixTier::open(settings, Runtime::system(), None)?)
    }

    fn survives_restart(&self) -> bool {
        true
    }
}

struct Null;

impl Subject for Null {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        Ok(Arc::new(NullTier::empty()))
    }

    fn stores(&self) -> bool {
        false
    }

    fn survives_restart(&self) -> bool {
        false
    }
}

fn expect(subject: &mut dyn Subject) {
    let report = run(subject, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn cache() {
    expect(&mut Cache);
}

#[test]
fn posix() {
    expect(&mut Posix {
        directory: tempfile::tempdir().unwrap(),
    });
}

#[test]
fn empty() {
    expect(&mut Null);
}
