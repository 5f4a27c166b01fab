//! The CUDA plugin, over the emulator of the driver's library.

use kvstored_core::ErrorKind;
use kvstored_core::device::{
    DeviceMemory, Direction, Event, HostRegistration, ImportedMemory, IpcKey, Stream,
};

use crate::devices::{Emulator, MOMENT, PAGE, pages, round_trip, slot};
use crate::support::PATIENCE;

#[test]
fn a_batch_is_one_call_of_the_cuda_driver() {
    let emulator = Emulator::cuda();
    let device = emulator.open(1).unwrap();
    round_trip(&device, 188);
    assert_eq!(emulator.counts(), [2, 0, 376]);
    emulator.set("NO_BATCH", 1);
    round_trip(&device, 5);
    assert_eq!(emulator.counts(), [2, 10, 386]);
    let counts = device.counts();
    assert_eq!(
        (counts.batch_calls, counts.single_calls, counts.copies),
        (2, 10, 386)
    );
    std::thread::scope(|scope| drop(scope.spawn(|| round_trip(&device, 3))));
    let error = emulator.open(2).err().unwrap();
    assert!(
        error.to_string().contains("device = 2, and there are 2"),
        "{error}"
    );
    emulator.set("MEMORY_MIB", 4);
    let error = DeviceMemory::allocate(&device, 8 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
}

#[test]
fn a_stream_of_the_cuda_driver_is_waited_for_with_a_deadline() {
    let emulator = Emulator::cuda();
    let device = emulator.open(0).unwrap();
    let from = slot(2, 7);
    let registration = HostRegistration::of_arena(&device, from.arena()).unwrap();
    let memory = DeviceMemory::allocate(&device, 2 * PAGE).unwrap();
    let (stream, event) = (Stream::create(&device).unwrap(), Event::create(&device).unwrap());
    emulator.set("STALL_MS", 300);
    stream
        .copy(pages(Direction::HostToDevice, &from, &memory))
        .unwrap();
    stream.record(&event).unwrap();
    assert_eq!(
        stream.synchronize(MOMENT).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    assert_eq!(event.synchronize(MOMENT).unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(!event.is_reached().unwrap());
    stream.synchronize(PATIENCE).unwrap();
    event.synchronize(PATIENCE).unwrap();
    assert!(event.is_reached().unwrap());
    assert_eq!(stream.abort().unwrap_err().kind(), ErrorKind::Unsupported);
    drop(stream);
    drop(registration);
}

#[test]
fn memory_of_the_cuda_driver_is_shared() {
    let emulator = Emulator::cuda();
    let device = emulator.open(0).unwrap();
    let memory = DeviceMemory::allocate(&device, 4 * PAGE).unwrap();
    let key = memory.export().unwrap();
    assert_eq!(key.as_bytes().len(), 64);
    drop(ImportedMemory::import(&device, &key, 4 * PAGE).unwrap());
    let wrong = IpcKey::new(b"short").unwrap();
    let error = ImportedMemory::import(&device, &wrong, PAGE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
