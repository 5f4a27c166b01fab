//! Device memory that another process maps.
#![allow(unsafe_code)]

use std::process::Command;

use kvstored_core::Result;
use kvstored_core::device::{
    CopyBatch, DeviceAddress, DeviceMemory, Direction, HostRegistration, ImportedMemory, IpcKey, Stream,
};

use crate::devices::{Emulator, PAGE, expect_pages, pages, slot};
use crate::support::PATIENCE;

const KEY: &str = "KVSTORED_TEST_DEVICE_KEY";

#[test]
fn another_process_imports_memory() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    let from = slot(4, 7);
    let registration = HostRegistration::of_arena(&device, from.arena()).unwrap();
    let memory = DeviceMemory::allocate(&device, 4 * PAGE).unwrap();
    let stream = Stream::create(&device).unwrap();
    stream
        .copy(pages(Direction::HostToDevice, &from, &memory))
        .unwrap();
    stream.synchronize(PATIENCE).unwrap();
    let key = String::from_utf8(memory.export().unwrap().as_bytes().to_vec()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sharing::an_importing_process", "--nocapture"])
        .env(KEY, key)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("imported"), "{said}");
    drop(stream);
    drop(registration);
}

/// Does nothing unless [`another_process_imports_memory`] has started it.
#[test]
fn an_importing_process() {
    let Ok(key) = std::env::var(KEY) else { return };
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    let key = IpcKey::new(key.as_bytes()).unwrap();
    let imported = ImportedMemory::import(&device, &key, 4 * PAGE).unwrap();
    let own = DeviceMemory::allocate(&device, 4 * PAGE).unwrap();
    let stream = Stream::create(&device).unwrap();
    let mut batch = CopyBatch::new(Direction::DeviceToDevice);
    let whole = |address: Result<DeviceAddress>| address.unwrap();
    // SAFETY: both ranges are valid, and held
    unsafe {
        batch.within_device(
            whole(own.address(0, 4 * PAGE)),
            whole(imported.address(0, 4 * PAGE)),
            4 * PAGE,
        )
    }
    .unwrap();
    batch.hold(own.clone());
    batch.hold(imported.clone());
    stream.copy(batch).unwrap();
    let target = slot(4, 99);
    stream
        .copy(pages(Direction::DeviceToHost, &target, &own))
        .unwrap();
    stream.synchronize(PATIENCE).unwrap();
    expect_pages(&target, 7);
    drop(stream);
    drop(imported);
    assert!(ImportedMemory::import(&device, &IpcKey::new(b"/nowhere").unwrap(), PAGE).is_err());
    println!("imported");
}
