//! The examples pass the conformance kit, and a pipeline works over one.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvstored_backends::cache::{CacheSettings, CacheTier};

use kvstored_conformance::{Options, Subject, run};
use kvstored_core::memory::SlotOwner;
use kvstored_core::{
    Action, Arena, BlockHash, Durability, Engine, EngineSettings, ErrorKind, Identity, Layout, MemoryTier,
    NamespaceInfo, Operation, Result, Runtime, SlotGuard, Tier,
};

use crate::support::{Directory, PATIENCE, acquire, dump, expect_payload, plugins};

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _slot: u32) {}
}

fn open_cache() -> Result<Arc<CacheTier>> {
    let settings = CacheSettings {
        capacity_bytes: 8 << 20,
        shared: false,
        huge_pages: false,
        ..CacheSettings::default()
    };
    CacheTier::open(settings, None)
}

struct Plugged {
    directory: Directory,
    name: &'static str,
    settings: Vec<(&'static str, String)>,
    survives: bool,
}

impl Subject for Plugged {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let settings: Vec<(&str, &str)> = self
            .settings
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        let tier = self
            .directory
            .open(self.name, Duration::from_secs(20), &settings)?;
        Ok(tier)
    }

    fn survives_restart(&self) -> bool {
        self.survives
    }

    fn memory(&mut self) -> Result<Option<Arc<dyn MemoryTier>>> {
        Ok(Some(open_cache()?))
    }
}

#[test]
fn the_example_in_rust_keeps_the_contract() {
    let directory = Directory::new();
    directory.copy_memory();
    directory.list();
    let mut subject = Plugged {
        directory,
        name: "memory",
        settings: vec![("capacity_bytes", (2 << 20).to_string())],
        survives: false,
    };
    let report = run(&mut subject, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn the_example_in_c_keeps_the_contract() {
    let directory = Directory::new();
    directory.compile(&plugins().join("examples/c/files.c"), "files", &[]);
    directory.list();
    let blocks = directory.path().join("blocks");
    std::fs::create_dir(&blocks).unwrap();
    let mut subject = Plugged {
        directory,
        name: "files",
        settings: vec![("path", blocks.display().to_string())],
        survives: true,
    };
    let report = run(&mut subject, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn the_tutorial_is_a_whole_plugin() {
    let directory = Directory::new();
    let guide = std::fs::read_to_string(plugins().join("../docs/plugin-abi.md")).unwrap();
    let (_, from_code) = guide.split_once("```c\n").unwrap();
    let (code, _) = from_code.split_once("```").unwrap();
    let source = directory.path().join("shelf.c");
    std::fs::write(&source, code).unwrap();
    directory.compile(&source, "shelf", &[]);
    directory.list();
    let mut subject = Plugged {
        directory,
        name: "shelf",
        settings: vec![("capacity_bytes", (2 << 20).to_string())],
        survives: false,
    };
    let report = run(&mut subject, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn a_wrong_setting_is_named() {
    let directory = Directory::new();
    directory.copy_memory();
    directory.list();
    let Err(error) = directory.open("memory", Duration::from_secs(5), &[("capacity", "1")]) else {
        panic!("opened")
    };
    assert!(error.to_string().contains("capacity is unknown"), "{error}");
}

#[test]
fn a_pipeline_writes_through_a_plugin_and_reads_from_it() {
    let directory = Directory::new();
    directory.copy_memory();
    directory.list();
    let plugin = directory.open("memory", PATIENCE, &[]).unwrap();
    let runtime = Runtime::system();
    let engine = Engine::new(
        EngineSettings::default(),
        runtime.clone(),
        open_cache().unwrap(),
        true,
        vec![plugin],
    );
    assert_eq!(engine.tier_names(), ["Cache", "Plugin(memory)"]);
    let layout = Layout::uniform(3, 1, 5000).unwrap();
    let namespace = engine.open_namespace(Identity::default(), layout).unwrap();
    let hash = BlockHash::new(&[3; 32]).unwrap();
    dump(&engine, &namespace, hash);
    engine.drain(runtime.deadline(PATIENCE)).unwrap();
    assert_eq!(engine.evict(&namespace, &[hash], Some("Cache")).unwrap(), 1);
    let found = acquire(&engine, &namespace, hash);
    assert_eq!(found.tier, 1, "it came from the plugin");
    expect_payload(&namespace, &found.slot);
    drop(found);
    engine.shutdown();
}

#[test]
fn a_drain_waits_until_the_callers_were_told() {
    let directory = Directory::new();
    directory.copy_memory();
    directory.list();
    let plugin = directory.open("memory", PATIENCE, &[]).unwrap();
    let layout = Layout::uniform(1, 1, 4096).unwrap();
    let namespace = Arc::new(NamespaceInfo::new(Identity::default(), layout).unwrap());
    let bytes = namespace.layout.image_bytes();
    let arena = Arc::new(Arena::heap(bytes).unwrap());
    let (being_told, told) = channel();
    let (go_on, goes_on) = channel::<()>();
    plugin.submit(vec![Operation {
        namespace,
        hash: BlockHash::new(&[5; 16]).unwrap(),
        action: Action::Write(Durability::Memory),
        buffer: SlotGuard::new(arena, Arc::new(Nobody), 0, 0, bytes),
        completion: Box::new(move |_, outcome| {
            being_told.send(outcome).unwrap();
            let _ = goes_on.recv_timeout(PATIENCE);
        }),
    }]);
    told.recv_timeout(PATIENCE).unwrap().unwrap();
    let runtime = Runtime::system();
    let error = plugin
        .drain(runtime.deadline(Duration::from_millis(50)))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(plugin.statistics().queue_depth, 1);
    drop(go_on);
    plugin.drain(runtime.deadline(PATIENCE)).unwrap();
    assert_eq!(plugin.statistics().queue_depth, 0);
    plugin.shutdown();
}
