//! A plugin that breaks the contract costs misses, never the process, never memory that is used by somebody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use kvstored_backends::cache::{CacheSettings, CacheTier};
use kvstored_backends::posix::{PosixSettings, PosixTier};
use kvstored_core::Runtime;
use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Durability, Engine, EngineSettings, Error, ErrorKind, Identity, Layout,
    Namespace, NamespaceInfo, Operation, SlotGuard, Tier,
};
use kvstored_plugin_host::PluginTier;

use crate::support::{Directory, PATIENCE, acquire, dump, expect_payload, plugins};

#[derive(Default)]
struct Released(AtomicU32);

impl SlotOwner for Released {
    fn release(&self, _slot: u32) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

struct Fixture {
    tier: Arc<PluginTier>,
    namespace: Arc<NamespaceInfo>,
    released: Arc<Released>,
    _directory: Directory,
}

impl Fixture {
    fn new(fault: &str, timeout: Duration) -> Self {
        let directory = Directory::new();
        let source = plugins().join("abi/tests/plugin/faulty.c");
        directory.compile(&source, "faulty", &[]);
        directory.list();
        let tier = directory.open("faulty", timeout, &[("fault", fault)]).unwrap();
        let layout = Layout::uniform(1, 1, 4096).unwrap();
        let namespace = Arc::new(NamespaceInfo::new(Identity::default(), layout).unwrap());
        Self {
            tier,
            namespace,
            released: Arc::default(),
            _directory: directory,
        }
    }

    fn run(&self, action: Action) -> Result<(), Error> {
        let bytes = self.namespace.layout.image_bytes();
        let arena = Arc::new(Arena::heap(bytes).unwrap());
        let (sender, ended) = channel();
        self.tier.submit(vec![Operation {
            namespace: self.namespace.clone(),
            hash: BlockHash::new(&[9; 16]).unwrap(),
            action,
            buffer: SlotGuard::new(arena, self.released.clone(), 0, 0, bytes),
            completion: Box::new(move |buffer, outcome| {
                drop(buffer);
                sender.send(outcome).unwrap();
            }),
        }]);
        let outcome = ended.recv_timeout(PATIENCE).expect("the operation ends");
        assert!(ended.recv_timeout(Duration::ZERO).is_err(), "and ends once");
        outcome
    }

    fn write(&self) -> Result<(), Error> {
        self.run(Action::Write(Durability::Tier))
    }

    fn present(&self) -> bool {
        let mut present = [false];
        let hash = BlockHash::new(&[9; 16]).unwrap();
        self.tier.lookup(&self.namespace, &[hash], &mut present);
        present[0]
    }

    /// Waits until something is so that nothing tells of.
    fn until(&self, what: impl Fn(&Self) -> bool) {
        let (_sender, never) = channel::<()>();
        for _ in 0..600 {
            if what(self) {
                return;
            }
            let _ = never.recv_timeout(Duration::from_millis(100));
        }
        panic!("{:?}", self.tier.statistics());
    }

    fn expect_out(&self) {
        // the operation may have ended before the plugin went on to its fault
        self.until(|fixture| fixture.tier.statistics().faults > 0);
        let error = self.write().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(!self.present());
        let statistics = self.tier.statistics();
        assert!(statistics.degraded && statistics.faults > 0, "{statistics:?}");
        self.tier.shutdown();
    }
}

#[test]
fn what_crashes_or_hangs_or_lies_about_itself_is_not_loaded() {
    let source = plugins().join("abi/tests/plugin/faulty.c");
    for (fault, kind, word) in [
        (1, ErrorKind::InvalidInput, "signal: 11"),
        (3, ErrorKind::InvalidInput, "has 16 bytes"),
        (4, ErrorKind::InvalidInput, "has 4294967295 bytes"),
        (5, ErrorKind::InvalidInput, "version 2.0"),
        (6, ErrorKind::InvalidInput, "lacks a function"),
        (2, ErrorKind::TimedOut, "took longer"),
    ] {
        let directory = Directory::new();
        directory.compile(&source, "faulty", &[&format!("-DFAULT={fault}")]);
        directory.list();
        let Err(error) = directory.open("faulty", Duration::from_secs(5), &[]) else {
            panic!("fault {fault}: loaded")
        };
        assert_eq!(error.kind(), kind, "fault {fault}: {error}");
        assert!(error.to_string().contains(word), "fault {fault}: {error}");
    }
}

#[test]
fn ending_an_operation_twice_or_one_that_never_was_takes_a_plugin_out() {
    for fault in ["twice", "unknown"] {
        let fixture = Fixture::new(fault, PATIENCE);
        let _ = fixture.write();
        fixture.expect_out();
    }
}

#[test]
fn rubbish_takes_a_plugin_out() {
    for fault in ["status", "more"] {
        let fixture = Fixture::new(fault, PATIENCE);
        assert_eq!(fixture.write().unwrap_err().kind(), ErrorKind::Internal);
        fixture.expect_out();
    }
}

#[test]
fn what_a_plugin_says_of_a_namespace_is_checked() {
    let fixture = Fixture::new("invents", PATIENCE);
    assert!(fixture.tier.stored_namespace(&Namespace([0; 32])).is_none());
    fixture.write().unwrap();
    assert!(fixture.present() && fixture.tier.statistics().faults == 0);
    fixture.tier.shutdown();
    Fixture::new("sizeless", PATIENCE).expect_out();
}

#[test]
fn a_short_write_is_an_error_and_not_visible() {
    let fixture = Fixture::new("short", PATIENCE);
    let error = fixture.write().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("short write"), "{error}");
    assert!(!fixture.present());
    assert!(!fixture.tier.statistics().degraded);
    fixture.tier.shutdown();
}

#[test]
fn a_read_that_read_nothing_is_corrupt_and_the_block_gone() {
    let fixture = Fixture::new("lies", PATIENCE);
    fixture.write().unwrap();
    assert!(fixture.present());
    assert_eq!(fixture.run(Action::Read).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(!fixture.present());
    assert_eq!(fixture.tier.statistics().quarantined_blocks, 1);
    fixture.tier.shutdown();
}

#[test]
fn a_buffer_that_never_comes_back_is_never_used_again() {
    let fixture = Fixture::new("never", Duration::from_secs(1));
    let error = fixture.write().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    let statistics = fixture.tier.statistics();
    assert_eq!(
        statistics.held_bytes,
        fixture.namespace.layout.image_bytes() as u64
    );
    assert!(statistics.degraded, "{statistics:?}");
    assert_eq!(
        fixture.released.0.load(Ordering::Acquire),
        0,
        "the plugin has the buffer"
    );
    assert_eq!(fixture.write().unwrap_err().kind(), ErrorKind::Unavailable);
    // closing makes this plugin write to the buffer and give it back
    fixture.tier.shutdown();
    assert_eq!(fixture.released.0.load(Ordering::Acquire), 2);
    assert_eq!(fixture.tier.statistics().held_bytes, 0);
}

#[test]
fn a_plugin_that_blocks_is_asked_again_once_it_answers() {
    let fixture = Fixture::new("blocks", Duration::from_secs(1));
    assert_eq!(fixture.write().unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(fixture.tier.statistics().degraded);
    fixture.until(|fixture| !fixture.tier.statistics().degraded);
    assert_eq!(fixture.tier.statistics().held_bytes, 0);
    fixture.tier.shutdown();
}

#[test]
fn the_next_tier_reads_into_another_slot_than_the_one_that_a_plugin_kept() {
    let fixture = Fixture::new("reads", Duration::from_secs(1));
    let storage = tempfile::tempdir().unwrap();
    let runtime = Runtime::system();
    let posix = PosixSettings {
        directories: vec![storage.path().to_owned()],
        capacity_bytes: 64 << 20,
        ..PosixSettings::default()
    };
    let cache = CacheSettings {
        capacity_bytes: 8 << 20,
        shared: false,
        huge_pages: false,
        ..CacheSettings::default()
    };
    let posix = PosixTier::open(posix, runtime.clone(), None).unwrap();
    let engine = Engine::new(
        EngineSettings::default(),
        runtime.clone(),
        CacheTier::open(cache, None).unwrap(),
        true,
        vec![fixture.tier.clone(), posix],
    );
    let layout = Layout::uniform(2, 1, 5000).unwrap();
    let namespace = engine.open_namespace(Identity::default(), layout).unwrap();
    let hash = BlockHash::new(&[3; 32]).unwrap();
    dump(&engine, &namespace, hash);
    engine.drain(runtime.deadline(PATIENCE)).unwrap();
    engine.evict(&namespace, &[hash], Some("Cache")).unwrap();
    let found = acquire(&engine, &namespace, hash);
    assert_eq!(found.tier, 2, "the plugin had it and didn't answer");
    expect_payload(&namespace, &found.slot);
    // closing makes the plugin write to the slot that it kept
    engine.shutdown();
    expect_payload(&namespace, &found.slot);
}
