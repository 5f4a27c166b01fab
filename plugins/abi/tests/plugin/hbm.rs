//! The Hbm tier over devices behind the interface.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvstored_backends::hbm::{HbmSettings, HbmTier};
use kvstored_conformance::{Options, Subject, run};
use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Device, Durability, ErrorKind, Identity, Layout, NamespaceInfo, Operation,
    Result, Runtime, SlotGuard, Tier,
};

use crate::devices::Emulator;
use crate::support::{Directory, PATIENCE, plugins};

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
}

#[test]
fn over_the_ascend_plugin_it_keeps_the_contract() {
    let mut hbm = Hbm {
        device: Emulator::ascendcl().open(0).unwrap(),
    };
    let report = run(&mut hbm, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn over_the_cuda_plugin_it_keeps_the_contract() {
    let mut hbm = Hbm {
        device: Emulator::cuda().open(0).unwrap(),
    };
    let report = run(&mut hbm, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn with_a_library_without_batches_it_keeps_the_contract() {
    let emulator = Emulator::ascendcl();
    let mut hbm = Hbm {
        device: emulator.open(0).unwrap(),
    };
    emulator.set("NO_BATCH", 1);
    let report = run(&mut hbm, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

/// A device in C with something wrong with it.
fn odd_device(fault: &str) -> Result<Arc<dyn Device>> {
    let directory = Directory::new();
    directory.compile(
        &plugins().join("abi/tests/plugin/device.c"),
        "odd",
        &[&format!("-DFAULT_{fault}")],
    );
    directory.list();
    Ok(directory.open_device("odd", &[])?)
}

#[test]
fn a_device_in_c_keeps_the_contract() {
    let mut hbm = Hbm {
        device: odd_device("NONE").unwrap(),
    };
    let report = run(&mut hbm, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn a_device_with_a_function_missing_is_refused() {
    let error = odd_device("NO_COPY").err().unwrap();
    assert!(
        error.to_string().contains("its device's table lacks a function"),
        "{error}"
    );
}

#[test]
fn a_plugin_without_a_device_is_none() {
    let directory = Directory::new();
    directory.copy_memory();
    directory.list();
    let error = directory.open_device("memory", &[]).err().unwrap();
    assert!(error.to_string().contains("it has no device"), "{error}");
}

#[test]
fn a_device_that_gives_what_cannot_be_is_not_asked_again() {
    let device = odd_device("STATUS").unwrap();
    let error = device.create_stream().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("status 4711"), "{error}");
    let error = device.allocate(4096).unwrap_err();
    assert!(error.to_string().contains("broke the contract"), "{error}");
}

struct Loose;

impl SlotOwner for Loose {
    fn release(&self, _slot: u32) {}
}

#[test]
fn a_device_whose_call_never_returns_costs_misses() {
    let device = odd_device("HANG").unwrap();
    let settings = HbmSettings {
        capacity_bytes: 1 << 20,
        timeout: Duration::from_millis(50),
        streams: 1,
        ..HbmSettings::default()
    };
    let tier = HbmTier::open(settings, &device, &Runtime::system(), None).unwrap();
    let layout = Layout::uniform(1, 1, 4096).unwrap();
    let namespace = Arc::new(
        NamespaceInfo::new(Identity::default(), layout).unwrap_or_else(|error| {
            panic!("{error}");
        }),
    );
    tier.open_namespace(&namespace).unwrap();
    let (ended, wait) = channel();
    for number in 0..3 {
        let arena = Arc::new(Arena::heap(8192).unwrap());
        let ended = ended.clone();
        tier.submit(vec![Operation {
            namespace: namespace.clone(),
            hash: BlockHash::new(&[number; 16]).unwrap(),
            action: Action::Write(Durability::Tier),
            buffer: SlotGuard::new(arena, Arc::new(Loose), 0, 0, 8192),
            completion: Box::new(move |_, outcome| ended.send(outcome).unwrap()),
        }]);
    }
    for _ in 0..3 {
        let error = wait.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Unavailable),
            "{error}"
        );
    }
    let statistics = tier.statistics();
    assert!(statistics.degraded);
    assert_eq!((statistics.blocks, statistics.held_bytes), (0, 8192));
    // it would wait for the hung thread for some time
    std::mem::forget(tier);
}
