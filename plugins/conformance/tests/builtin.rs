//! The built-in tiers pass the kit.

use std::sync::Arc;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_backends::device::{HostDevice, HostDeviceSettings};
use kvstored_backends::hbm::{HbmSettings, HbmTier};
use kvstored_backends::null::NullTier;
use kvstored_backends::posix::{PosixSettings, PosixTier};
use kvstored_conformance::{Options, Subject, run};
use kvstored_core::{Device, MemoryTier, Result, Runtime, Tier};

struct Cache;

fn open_cache() -> Result<Arc<CacheTier>> {
    let settings = CacheSettings {
        capacity_bytes: 8 << 20,
        shared: false,
        huge_pages: false,
        ..CacheSettings::default()
    };
    CacheTier::open(settings, None)
}

impl Subject for Cache {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        Ok(open_cache()?)
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

    fn memory(&mut self) -> Result<Option<Arc<dyn MemoryTier>>> {
        Ok(Some(open_cache()?))
    }
}

/// A tier that keeps nothing.
struct Null(fn() -> NullTier);

impl Subject for Null {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        Ok(Arc::new((self.0)()))
    }

    fn stores(&self) -> bool {
        false
    }

    fn survives_restart(&self) -> bool {
        false
    }
}

struct Hbm {
    device: Arc<dyn Device>,
}

impl Subject for Hbm {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let settings = HbmSettings {
            capacity_bytes: 8 << 20,
            ..HbmSettings::default()
        };
        Ok(HbmTier::open(settings, &self.device, &Runtime::system(), None)?)
    }

    fn survives_restart(&self) -> bool {
        false
    }

    fn memory(&mut self) -> Result<Option<Arc<dyn MemoryTier>>> {
        Ok(Some(open_cache()?))
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
fn hbm() {
    let settings = HostDeviceSettings {
        memory_bytes: 8 << 20,
        huge_pages: false,
    };
    expect(&mut Hbm {
        device: HostDevice::new(settings, Runtime::system()),
    });
}

#[test]
fn posix() {
    expect(&mut Posix {
        directory: tempfile::tempdir().unwrap(),
    });
}

#[test]
fn empty() {
    expect(&mut Null(NullTier::empty));
}

#[test]
fn fake() {
    expect(&mut Null(NullTier::fake));
}
