//! Devices behind the interface, over the emulators of their vendors' libraries.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::device::{CopyBatch, DeviceMemory, Direction, Event, HostRegistration, RawEvent, Stream};
use kvstored_core::memory::SlotOwner;
use kvstored_core::{Arena, Device, ErrorKind, Result, SlotGuard};
use libloading::Library;
use parking_lot::{Mutex, MutexGuard};

use crate::support::{Directory, PATIENCE, beside};

pub const MOMENT: Duration = Duration::from_millis(20);
pub const PAGE: usize = 4096;

/// One library for all of a process, so one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A vendor's library that isn't one.
pub struct Emulator {
    plugin: &'static str,
    library: Library,
    path: PathBuf,
    begin: [u64; 3],
    _turn: MutexGuard<'static, ()>,
}

impl Emulator {
    pub fn ascendcl() -> Self {
        Self::load("ascend", "libkvstored_emulated_ascendcl.so")
    }

    pub fn cuda() -> Self {
        Self::load("cuda", "libkvstored_emulated_cuda.so")
    }

    fn load(plugin: &'static str, file: &str) -> Self {
        let turn = TURN.lock();
        let path = beside(file);
        // SAFETY: a library of our own
        let library = unsafe { Library::new(&path) }.unwrap();
        let mut emulator = Self {
            plugin,
            library,
            path,
            begin: [0; 3],
            _turn: turn,
        };
        emulator.begin = emulator.counts();
        emulator
    }

    /// Sets a fault switch.
    pub fn set(&self, name: &str, value: u64) {
        type Set = unsafe extern "C" fn(*const std::ffi::c_char, u64) -> i32;
        let name = CString::new(name).unwrap();
        // SAFETY: the emulator's function
        unsafe {
            let set = self.library.get::<Set>(b"kvstored_emulator_set\0").unwrap();
            assert_eq!(set(name.as_ptr(), value), 0);
        }
    }

    /// Batch calls, single calls and copies that came.
    pub fn counts(&self) -> [u64; 3] {
        // SAFETY: the emulator's function
        let count = unsafe {
            self.library
                .get::<unsafe extern "C" fn(u32) -> u64>(b"kvstored_emulator_count\0")
                .unwrap()
        };
        // SAFETY: takes a number
        [0, 1, 2].map(|which| unsafe { count(which as u32) } - self.begin[which])
    }

    /// Opens the plugin's device over this library.
    pub fn open(&self, number: u32) -> Result<Arc<dyn Device>> {
        let directory = Directory::new();
        directory.copy_built(&format!("libkvstored_plugin_{}.so", self.plugin), self.plugin);
        directory.list();
        let (number, path) = (number.to_string(), self.path.to_str().unwrap());
        let device = directory.open_device(self.plugin, &[("device", &number), ("library", path)])?;
        Ok(device)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for (name, value) in [
            ("NO_BATCH", 0),
            ("FAIL_EVERY", 0),
            ("STALL_MS", 0),
            ("MEMORY_MIB", 1024),
        ] {
            self.set(name, value);
        }
    }
}

struct Loose;

impl SlotOwner for Loose {
    fn release(&self, _slot: u32) {}
}

/// A slot over a whole arena.
pub fn slot(pages: usize, fill: u8) -> SlotGuard {
    let arena = Arc::new(Arena::heap(pages * PAGE).unwrap());
    for page in 0..pages {
        arena
            .write(page * PAGE, &[fill.wrapping_add(page as u8); PAGE])
            .unwrap();
    }
    SlotGuard::new(arena, Arc::new(Loose), 0, 0, pages * PAGE)
}

/// A copy for each page.
pub fn pages(direction: Direction, slot: &SlotGuard, memory: &Arc<DeviceMemory>) -> CopyBatch {
    let mut batch = CopyBatch::new(direction);
    for offset in (0..slot.length()).step_by(PAGE) {
        batch.slot(slot, offset, memory, offset, PAGE).unwrap();
    }
    batch
}

pub fn expect_pages(slot: &SlotGuard, fill: u8) {
    for page in 0..slot.length() / PAGE {
        let mut content = [0; PAGE];
        slot.arena().read(page * PAGE, &mut content).unwrap();
        assert_eq!(content, [fill.wrapping_add(page as u8); PAGE], "page {page}");
    }
}

/// There and back, over two streams with an event between them.
pub fn round_trip(device: &Arc<dyn Device>, page_count: usize) {
    let (from, to) = (slot(page_count, 7), slot(page_count, 99));
    let registrations = [
        HostRegistration::of_arena(device, from.arena()).unwrap(),
        HostRegistration::of_arena(device, to.arena()).unwrap(),
    ];
    let memory = DeviceMemory::allocate(device, page_count * PAGE).unwrap();
    let (first, second) = (Stream::create(device).unwrap(), Stream::create(device).unwrap());
    let written = Event::create(device).unwrap();
    first
        .copy(pages(Direction::HostToDevice, &from, &memory))
        .unwrap();
    first.record(&written).unwrap();
    second.wait(&written).unwrap();
    second.copy(pages(Direction::DeviceToHost, &to, &memory)).unwrap();
    second.synchronize(PATIENCE).unwrap();
    assert!(written.is_reached().unwrap());
    written.synchronize(PATIENCE).unwrap();
    expect_pages(&to, 7);
    first.synchronize(PATIENCE).unwrap();
    drop((first, second));
    drop(registrations);
}

#[test]
fn a_batch_is_one_call_of_the_vendors_library() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(1).unwrap();
    let total = device.memory().unwrap().total_bytes;
    round_trip(&device, 188);
    assert_eq!(emulator.counts(), [2, 0, 376]);
    let counts = device.counts();
    assert_eq!((counts.batch_calls, counts.single_calls), (2, 0));
    assert_eq!((counts.copies, counts.copied_bytes), (376, 376 * PAGE as u64));
    assert_eq!(device.memory().unwrap().free_bytes, total);
    assert_eq!(device.name(), "Plugin(ascend)");
}

#[test]
fn batches_are_cut_to_what_the_library_takes() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    round_trip(&device, 4097);
    assert_eq!(emulator.counts(), [4, 0, 2 * 4097]);
}

#[test]
fn a_library_without_batches_gets_single_copies() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    emulator.set("NO_BATCH", 1);
    round_trip(&device, 10);
    assert_eq!(emulator.counts(), [0, 20, 20]);
    let counts = device.counts();
    assert_eq!(
        (counts.batch_calls, counts.single_calls, counts.copies),
        (0, 20, 20)
    );
    // it isn't asked again
    emulator.set("NO_BATCH", 0);
    round_trip(&device, 10);
    assert_eq!(emulator.counts(), [0, 40, 40]);
}

#[test]
fn memory_and_devices_that_are_not_there_are_refused_by_name() {
    let emulator = Emulator::ascendcl();
    let error = emulator.open(7).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(
        error.to_string().contains("device = 7, and there are 2"),
        "{error}"
    );
    let device = emulator.open(0).unwrap();
    emulator.set("MEMORY_MIB", 4);
    let error = DeviceMemory::allocate(&device, 8 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(
        error.to_string().contains("207001: said by the emulator"),
        "{error}"
    );
    let directory = Directory::new();
    directory.copy_built("libkvstored_plugin_ascend.so", "ascend");
    directory.list();
    let error = directory
        .open_device("ascend", &[("library", "libnowhere.so")])
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("libnowhere.so"), "{error}");
    let error = directory.open_device("ascend", &[("devise", "0")]).err().unwrap();
    assert!(error.to_string().contains("devise is unknown"), "{error}");
}

#[test]
fn copies_wait_for_the_engines_event() {
    type Create = unsafe extern "C" fn(*mut *mut std::ffi::c_void, u32) -> i32;
    type Record = unsafe extern "C" fn(*mut std::ffi::c_void, *mut std::ffi::c_void) -> i32;
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    let (computed, target) = (slot(4, 7), slot(4, 99));
    let registrations = [
        HostRegistration::of_arena(&device, computed.arena()).unwrap(),
        HostRegistration::of_arena(&device, target.arena()).unwrap(),
    ];
    let memory = DeviceMemory::allocate(&device, 4 * PAGE).unwrap();
    let (engine, ours) = (Stream::create(&device).unwrap(), Stream::create(&device).unwrap());
    // the engine computes for a while, and records an event of its own with the vendor's library
    emulator.set("STALL_MS", 300);
    engine
        .copy(pages(Direction::HostToDevice, &computed, &memory))
        .unwrap();
    let mut event = std::ptr::null_mut();
    // SAFETY: the emulator's functions, with handles of its own
    unsafe {
        let library = &emulator.library;
        let create = library.get::<Create>(b"aclrtCreateEventExWithFlag\0").unwrap();
        let record = library.get::<Record>(b"aclrtRecordEvent\0").unwrap();
        device.bind_thread().unwrap();
        assert_eq!(create(&raw mut event, 1), 0);
        assert_eq!(record(event, engine.raw().0 as *mut _), 0);
        ours.wait_raw(RawEvent(event as u64)).unwrap();
    }
    ours.copy(pages(Direction::DeviceToHost, &target, &memory))
        .unwrap();
    assert_eq!(ours.synchronize(MOMENT).unwrap_err().kind(), ErrorKind::TimedOut);
    expect_pages(&target, 99);
    emulator.set("STALL_MS", 0);
    ours.synchronize(PATIENCE).unwrap();
    expect_pages(&target, 7);
    engine.synchronize(PATIENCE).unwrap();
    drop((engine, ours));
    drop(registrations);
}

#[test]
fn a_copy_that_fails_is_told_at_the_next_synchronization() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    let from = slot(2, 7);
    let registration = HostRegistration::of_arena(&device, from.arena()).unwrap();
    let memory = DeviceMemory::allocate(&device, 2 * PAGE).unwrap();
    let stream = Stream::create(&device).unwrap();
    emulator.set("FAIL_EVERY", 1);
    stream
        .copy(pages(Direction::HostToDevice, &from, &memory))
        .unwrap();
    assert_eq!(stream.synchronize(PATIENCE).unwrap_err().kind(), ErrorKind::Io);
    emulator.set("FAIL_EVERY", 0);
    stream.synchronize(PATIENCE).unwrap();
    drop(stream);
    drop(registration);
    round_trip(&device, 2);
}

#[test]
fn what_takes_too_long_is_aborted() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    let from = slot(1, 7);
    let registration = HostRegistration::of_arena(&device, from.arena()).unwrap();
    let memory = DeviceMemory::allocate(&device, PAGE).unwrap();
    let stream = Stream::create(&device).unwrap();
    emulator.set("STALL_MS", 200);
    for _ in 0..100 {
        stream
            .copy(pages(Direction::HostToDevice, &from, &memory))
            .unwrap();
    }
    assert_eq!(
        stream.synchronize(MOMENT).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    stream.abort().unwrap();
    // only what had begun goes on: the rest would take longer than anybody waits
    stream.synchronize(Duration::from_secs(15)).unwrap();
    drop(stream);
    drop(registration);
}

#[test]
fn threads_that_the_library_does_not_know_are_bound() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(1).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| round_trip(&device, 3));
        }
    });
    assert_eq!(emulator.counts(), [8, 0, 24]);
}

#[test]
fn the_host_cannot_touch_device_memory() {
    let emulator = Emulator::ascendcl();
    let device = emulator.open(0).unwrap();
    let memory = DeviceMemory::allocate(&device, PAGE).unwrap();
    let address = memory.address(0, PAGE).unwrap().0;
    let (_reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the kernel reads the range, or says that it can't
    let told = unsafe { rustix::io::write(&writer, std::slice::from_raw_parts(address as *const u8, 8)) };
    assert_eq!(told, Err(rustix::io::Errno::FAULT));
}
