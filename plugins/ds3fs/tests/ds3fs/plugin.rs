//! The plugin as kvstored loads it.

use std::sync::Arc;
use std::time::Duration;

use kvstored_backends::cache::{CacheSettings, CacheTier, map_linkable};
use kvstored_conformance::{Options, Subject, run};
use kvstored_core::{
    Action, Arena, Durability, ErrorKind, Layout, MemoryTier, NamespaceInfo, Result, Runtime, SlotGuard, Tier,
};

use crate::same_format::{image, namespace, one, write_blocks};
use crate::support::{Mounted, PATIENCE, Plugins, directory, settings, slot, slot_in};

/// The plugin on an emulated mount.
struct Plugged {
    plugins: Plugins,
    settings: Vec<(&'static str, String)>,
}

impl Plugged {
    fn on(mount: &Mounted) -> Self {
        Self {
            plugins: Plugins::new(),
            settings: settings(&mount.path().join("blocks")),
        }
    }
}

impl Subject for Plugged {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        let tier = self.plugins.open(&self.settings)?;
        Ok(tier)
    }

    fn survives_restart(&self) -> bool {
        true
    }

    fn memory(&mut self) -> Result<Option<Arc<dyn MemoryTier>>> {
        let settings = CacheSettings {
            capacity_bytes: 8 << 20,
            linkable: true,
            ..CacheSettings::default()
        };
        Ok(Some(CacheTier::open(settings, None)?))
    }
}

#[test]
fn the_contract_is_kept() {
    let mount = Mounted::new();
    let report = run(&mut Plugged::on(&mount), &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn the_contract_is_kept_on_a_library_that_is_slow_short_and_out_of_order() {
    let mount = Mounted::new();
    let switches = [
        ("EAGER", 1),
        ("REORDER", 1),
        ("SHORT_EVERY", 5),
        ("FULL_EVERY", 3),
        ("LATENCY_US", 50),
    ];
    for (switch, value) in switches {
        mount.set(switch, value);
    }
    let report = run(&mut Plugged::on(&mount), &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
}

#[test]
fn the_contract_is_kept_without_the_library() {
    let mount = Mounted::new();
    let mut subject = Plugged::on(&mount);
    subject.settings.retain(|(key, _)| *key != "library");
    subject
        .settings
        .push(("library", "/nowhere/libhf3fs_api_shared.so".into()));
    let report = run(&mut subject, &Options::default(), &Runtime::system());
    assert!(report.passed(), "{report}");
    assert!(mount.links().is_empty());
}

/// Outside of any mount, and where no ring can be had, blocks are kept all the same.
#[test]
fn what_usrbio_cannot_do_the_mount_does() {
    let elsewhere = directory();
    let mount = Mounted::new();
    mount.set("RINGS", 0);
    let plugins = Plugins::new();
    for place in [elsewhere.path().to_owned(), mount.path().join("blocks")] {
        let tier = plugins.open(&settings(&place)).unwrap();
        let namespace = namespace("fallback");
        write_blocks(&*tier, &namespace, 0..4);
        for number in 0..4 {
            one(&*tier, &namespace, number, Action::Verify, slot_for(&namespace))
                .1
                .unwrap();
        }
        tier.shutdown();
    }
    assert!(mount.links().is_empty());
}

fn slot_for(namespace: &NamespaceInfo) -> SlotGuard {
    slot(namespace.layout.image_bytes())
}

/// Buffers that lie in memory that can be linked.
fn arena(bytes: usize) -> Arc<Arena> {
    map_linkable(bytes, false).unwrap().arena
}

#[test]
fn blocks_move_without_a_copy_from_and_to_memory_that_can_be_linked() {
    let mount = Mounted::new();
    let plugins = Plugins::new();
    let tier = plugins.open(&settings(&mount.path().join("blocks"))).unwrap();
    let namespace = namespace("direct");
    tier.open_namespace(&namespace).unwrap();
    let bytes = namespace.layout.image_bytes();
    let arena = arena(bytes * 8);
    let place = |number: u64| slot_in(&arena, bytes * number as usize, bytes);
    let write = Action::Write(Durability::Tier);
    // the first blocks have 3FS told of the memory, and are copied meanwhile
    let runtime = Runtime::system();
    let deadline = runtime.deadline(PATIENCE);
    let mut number = 0;
    while !mount.links().iter().any(|link| link.contains('-')) {
        assert!(runtime.clock.now() < deadline, "the memory is never linked");
        let buffer = place(0);
        image(&namespace, number, &buffer);
        one(&*tier, &namespace, number, write, buffer).1.unwrap();
        number += 1;
    }
    for offset in 0..8 {
        let buffer = place(offset);
        image(&namespace, 1000 + offset, &buffer);
        one(&*tier, &namespace, 1000 + offset, write, buffer).1.unwrap();
    }
    for offset in 0..8 {
        let buffer = place(7 - offset);
        one(&*tier, &namespace, 1000 + offset, Action::Verify, buffer)
            .1
            .unwrap();
    }
    // memory for copies is made when it's needed first: the ring for writing may have needed some, those for reading didn't
    let links = mount.links();
    assert!(
        links.iter().filter(|link| !link.contains('-')).count() <= 1,
        "{links:?}"
    );
    // once it works nobody needs the name, which would keep the memory should we die
    let own = format!("kvstored-iov-{}-", std::process::id());
    let names = std::fs::read_dir("/dev/shm").unwrap().flatten();
    let left: Vec<_> = names
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&own))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    tier.shutdown();
    assert!(mount.links().is_empty(), "{:?}", mount.links());
}

#[test]
fn memory_that_3fs_does_not_take_is_copied() {
    let mount = Mounted::new();
    let tier = Plugins::new()
        .open(&settings(&mount.path().join("blocks")))
        .unwrap();
    let namespace = namespace("refused");
    tier.open_namespace(&namespace).unwrap();
    let bytes = namespace.layout.image_bytes();
    let arena = arena(bytes);
    let write = Action::Write(Durability::Tier);
    let buffer = slot_in(&arena, 0, bytes);
    image(&namespace, 1, &buffer);
    one(&*tier, &namespace, 1, write, buffer).1.unwrap();
    let runtime = Runtime::system();
    let deadline = runtime.deadline(PATIENCE);
    let link = loop {
        assert!(runtime.clock.now() < deadline, "the memory is never linked");
        if let Some(link) = mount.links().into_iter().find(|link| link.contains('-')) {
            break link;
        }
    };
    std::fs::remove_file(mount.path().join("3fs-virt/iovs").join(link)).unwrap();
    for number in 2..6 {
        let buffer = slot_in(&arena, 0, bytes);
        image(&namespace, number, &buffer);
        one(&*tier, &namespace, number, write, buffer).1.unwrap();
    }
    for number in 1..6 {
        one(
            &*tier,
            &namespace,
            number,
            Action::Verify,
            slot_in(&arena, 0, bytes),
        )
        .1
        .unwrap();
    }
    tier.shutdown();
}

#[test]
fn where_no_memory_can_be_had_the_mount_is_used() {
    let mount = Mounted::new();
    let tier = Plugins::new()
        .open(&settings(&mount.path().join("blocks")))
        .unwrap();
    std::fs::remove_dir(mount.path().join("3fs-virt/iovs")).unwrap();
    let namespace = namespace("memoryless");
    write_blocks(&*tier, &namespace, 0..4);
    for number in 0..4 {
        one(&*tier, &namespace, number, Action::Verify, slot_for(&namespace))
            .1
            .unwrap();
    }
    tier.shutdown();
}

#[test]
fn a_block_whose_read_never_ends_is_a_miss_and_the_tier_goes_on() {
    let mount = Mounted::new();
    let plugins = Plugins::new();
    let mut settings = settings(&mount.path().join("blocks"));
    settings.extend([
        ("read_rings", "1".to_owned()),
        ("io_timeout_ms", "200".to_owned()),
    ]);
    let tier = plugins.open(&settings).unwrap();
    let namespace = namespace("hung");
    write_blocks(&*tier, &namespace, 0..8);
    mount.set("HANG_EVERY", 1);
    let (_, outcome) = one(&*tier, &namespace, 0, Action::Read, slot_for(&namespace));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TimedOut);
    for number in 1..8 {
        one(&*tier, &namespace, number, Action::Verify, slot_for(&namespace))
            .1
            .unwrap();
    }
    assert!(!tier.statistics().degraded);
    mount.set("HANG_EVERY", 0);
    tier.shutdown();
}

#[test]
fn errors_of_3fs_are_misses_and_heal() {
    let mount = Mounted::new();
    let plugins = Plugins::new();
    let tier = plugins.open(&settings(&mount.path().join("blocks"))).unwrap();
    let namespace = namespace("errors");
    write_blocks(&*tier, &namespace, 0..6);
    mount.set("FAIL_EVERY", 2);
    let mut failed = 0;
    for number in 0..6 {
        failed += u32::from(
            one(&*tier, &namespace, number, Action::Read, slot_for(&namespace))
                .1
                .is_err(),
        );
    }
    assert_eq!(failed, 3);
    let buffer = slot_for(&namespace);
    image(&namespace, 100, &buffer);
    mount.set("FAIL_EVERY", 1);
    let write = Action::Write(Durability::Tier);
    assert!(one(&*tier, &namespace, 100, write, buffer).1.is_err());
    mount.set("FAIL_EVERY", 0);
    // a log whose write failed takes none for a moment
    let runtime = Runtime::system();
    let deadline = runtime.deadline(PATIENCE);
    loop {
        let buffer = slot_for(&namespace);
        image(&namespace, 100, &buffer);
        if one(&*tier, &namespace, 100, write, buffer).1.is_ok() {
            break;
        }
        assert!(runtime.clock.now() < deadline, "the tier never heals");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    one(&*tier, &namespace, 100, Action::Verify, slot_for(&namespace))
        .1
        .unwrap();
    tier.shutdown();
}

#[test]
fn wrong_settings_are_named() {
    let mount = Mounted::new();
    let plugins = Plugins::new();
    let base = settings(&mount.path().join("blocks"));
    for (key, value, expected) in [
        ("directory", "/a", "directory is unknown"),
        ("read_rings", "0", "read_rings is 0"),
        ("bounce_bytes", "many", "bounce_bytes = \"many\""),
        ("io_engine", "magic", "io_engine = \"magic\""),
        ("high_watermark", "7", "high_watermark"),
    ] {
        let mut settings = base.clone();
        settings.push((key, value.to_owned()));
        let Err(error) = plugins.open(&settings) else {
            panic!("{key} = {value} was taken")
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
    let Err(error) = plugins.open(&[]) else {
        panic!("opened")
    };
    assert!(error.to_string().contains("directories is empty"), "{error}");
}

/// Blocks of another layout than the namespace's never get in.
#[test]
fn a_namespace_is_what_its_digest_says() {
    let mount = Mounted::new();
    let tier = Plugins::new()
        .open(&settings(&mount.path().join("blocks")))
        .unwrap();
    let honest = namespace("honest");
    let mut forged = NamespaceInfo::clone(&honest);
    forged.layout = Layout::uniform(1, 1, 8192).unwrap();
    let error = tier.open_namespace(&Arc::new(forged)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    tier.open_namespace(&honest).unwrap();
    tier.shutdown();
}
