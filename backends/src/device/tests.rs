#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::device::{CopyBatch, DeviceMemory, Direction, Event, HostRegistration, Stream};
use kvstored_core::memory::SlotOwner;
use kvstored_core::{Arena, Device, ErrorKind, Runtime, SlotGuard};
use parking_lot::Mutex;

use super::{HostDevice, HostDeviceSettings};

const SECOND: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(20);

fn device() -> Arc<dyn Device> {
    host()
}

fn host() -> Arc<HostDevice> {
    let settings = HostDeviceSettings {
        memory_bytes: 1 << 20,
        huge_pages: false,
    };
    HostDevice::new(settings, Runtime::system())
}

/// Knows which slots came back.
#[derive(Default)]
struct Owner(Mutex<Vec<u32>>);

impl SlotOwner for Owner {
    fn release(&self, slot: u32) {
        self.0.lock().push(slot);
    }
}

/// A slot of its own, filled with a byte.
fn slot(owner: &Arc<Owner>, number: u32, bytes: usize, fill: u8) -> SlotGuard {
    let arena = Arc::new(Arena::heap(bytes).unwrap());
    arena.write(0, &vec![fill; bytes]).unwrap();
    SlotGuard::new(arena, owner.clone(), number, 0, bytes)
}

fn content(slot: &SlotGuard, offset: usize, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    slot.arena().read(slot.offset() + offset, &mut content).unwrap();
    content
}

fn batch(
    direction: Direction,
    slot: &SlotGuard,
    memory: &Arc<DeviceMemory>,
    pieces: &[(usize, usize, usize)],
) -> CopyBatch {
    let mut batch = CopyBatch::new(direction);
    for (slot_offset, memory_offset, bytes) in pieces {
        batch
            .slot(slot, *slot_offset, memory, *memory_offset, *bytes)
            .unwrap();
    }
    batch
}

#[test]
fn a_batch_goes_there_and_back_in_one_call_each() {
    let (device, owner) = (device(), Arc::new(Owner::default()));
    let memory = DeviceMemory::allocate(&device, 64 << 10).unwrap();
    let stream = Stream::create(&device).unwrap();
    let (from, to) = (slot(&owner, 1, 8192, 7), slot(&owner, 2, 8192, 0));
    from.arena().write(4096, &[9; 4096]).unwrap();
    let pieces = [(0, 40_000, 4096), (4096, 512, 4096)];
    stream
        .copy(batch(Direction::HostToDevice, &from, &memory, &pieces))
        .unwrap();
    stream
        .copy(batch(Direction::DeviceToHost, &to, &memory, &pieces))
        .unwrap();
    stream.synchronize(SECOND).unwrap();
    assert_eq!(content(&to, 0, 4096), [7; 4096]);
    assert_eq!(content(&to, 4096, 4096), [9; 4096]);
    let counts = device.counts();
    assert_eq!((counts.batch_calls, counts.single_calls), (2, 0));
    assert_eq!((counts.copies, counts.copied_bytes), (4, 16_384));
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let device = device();
    let whole = DeviceMemory::allocate(&device, 1 << 20).unwrap();
    let refused = DeviceMemory::allocate(&device, 4096).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    assert_eq!(device.memory().unwrap().free_bytes, 0);
    drop(whole);
    assert_eq!(device.memory().unwrap().free_bytes, 1 << 20);
    assert!(DeviceMemory::allocate(&device, 0).is_err());
}

#[test]
fn ranges_outside_are_refused_before_anything_moves() {
    let (device, owner) = (device(), Arc::new(Owner::default()));
    let memory = DeviceMemory::allocate(&device, 4096).unwrap();
    let slot = slot(&owner, 1, 4096, 1);
    let mut batch = CopyBatch::new(Direction::HostToDevice);
    for (slot_offset, memory_offset, bytes) in [(0, 1, 4096), (1, 0, 4096), (usize::MAX, 0, 2), (0, 0, 0)] {
        let refused = batch.slot(&slot, slot_offset, &memory, memory_offset, bytes);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert!(batch.is_empty());
}

#[test]
fn a_stream_waits_for_what_the_engine_has_yet_to_do() {
    let host = host();
    let (device, owner): (Arc<dyn Device>, _) = (host.clone(), Arc::new(Owner::default()));
    let memory = DeviceMemory::allocate(&device, 4096).unwrap();
    let (first, second) = (Stream::create(&device).unwrap(), Stream::create(&device).unwrap());
    let (from, to) = (slot(&owner, 1, 4096, 7), slot(&owner, 2, 4096, 0));
    let (engine, written) = (host.engine_event().unwrap(), Event::create(&device).unwrap());
    // SAFETY: the event lives as long as the device
    unsafe { first.wait_raw(engine.raw()) }.unwrap();
    let pieces = [(0, 0, 4096)];
    first
        .copy(batch(Direction::HostToDevice, &from, &memory, &pieces))
        .unwrap();
    first.record(&written).unwrap();
    second.wait(&written).unwrap();
    second
        .copy(batch(Direction::DeviceToHost, &to, &memory, &pieces))
        .unwrap();
    let timed_out = |outcome: kvstored_core::Result<()>| {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TimedOut);
    };
    timed_out(second.synchronize(MOMENT));
    timed_out(written.synchronize(MOMENT));
    assert!(!written.is_reached().unwrap());
    assert_eq!(content(&to, 0, 4096), [0; 4096]);
    engine.reach();
    second.synchronize(SECOND).unwrap();
    assert!(written.is_reached().unwrap());
    written.synchronize(SECOND).unwrap();
    assert_eq!(content(&to, 0, 4096), [7; 4096]);
}

#[test]
fn memory_is_held_until_the_stream_has_passed_it() {
    let host = host();
    let (device, owner): (Arc<dyn Device>, _) = (host.clone(), Arc::new(Owner::default()));
    let memory = DeviceMemory::allocate(&device, 4096).unwrap();
    let stream = Stream::create(&device).unwrap();
    let engine = host.engine_event().unwrap();
    // SAFETY: the event lives as long as the device
    unsafe { stream.wait_raw(engine.raw()) }.unwrap();
    let lent = slot(&owner, 5, 4096, 1);
    stream
        .copy(batch(Direction::HostToDevice, &lent, &memory, &[(0, 0, 4096)]))
        .unwrap();
    drop(lent);
    drop(memory);
    assert!(stream.synchronize(MOMENT).is_err());
    assert!(owner.0.lock().is_empty());
    assert!(device.memory().unwrap().free_bytes < 1 << 20);
    engine.reach();
    stream.synchronize(SECOND).unwrap();
    assert_eq!(*owner.0.lock(), [5]);
    assert_eq!(device.memory().unwrap().free_bytes, 1 << 20);
}

#[test]
fn an_aborted_stream_drops_what_it_has_not_begun() {
    let host = host();
    let (device, owner): (Arc<dyn Device>, _) = (host.clone(), Arc::new(Owner::default()));
    let memory = DeviceMemory::allocate(&device, 4096).unwrap();
    let stream = Stream::create(&device).unwrap();
    let (engine, never) = (host.engine_event().unwrap(), Event::create(&device).unwrap());
    // SAFETY: the event lives as long as the device
    unsafe { stream.wait_raw(engine.raw()) }.unwrap();
    let target = slot(&owner, 1, 4096, 3);
    stream
        .copy(batch(Direction::DeviceToHost, &target, &memory, &[(0, 0, 4096)]))
        .unwrap();
    stream.record(&never).unwrap();
    assert!(stream.synchronize(MOMENT).is_err());
    stream.abort().unwrap();
    engine.reach();
    stream.synchronize(SECOND).unwrap();
    // nobody waits for ever for a record that was dropped
    never.synchronize(SECOND).unwrap();
    assert_eq!(content(&target, 0, 4096), [3; 4096]);
}

#[test]
fn what_is_not_recorded_is_not_waited_for_by_streams() {
    let device = device();
    let (stream, event) = (Stream::create(&device).unwrap(), Event::create(&device).unwrap());
    stream.wait(&event).unwrap();
    stream.synchronize(SECOND).unwrap();
    assert!(!event.is_reached().unwrap());
}

#[test]
fn an_arena_can_be_registered_and_nothing_can_be_shared() {
    let device = device();
    let arena = Arc::new(Arena::heap(8192).unwrap());
    drop(HostRegistration::of_arena(&device, &arena).unwrap());
    let memory = DeviceMemory::allocate(&device, 4096).unwrap();
    assert_eq!(memory.export().unwrap_err().kind(), ErrorKind::Unsupported);
}
