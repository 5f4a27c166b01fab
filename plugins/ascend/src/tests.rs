//! Older versions of the library: without what we take where it's there.

use kvstored_plugin::{Copy, Device, DeviceStatistics, Direction, Kind};

use crate::batches::Copier;
use crate::device::AscendDevice;
use crate::library;
use crate::symbols::Functions;

const PAGE: usize = 4096;
const LONG_MS: u64 = 20_000;

/// A device over the emulator, without some of its functions.
fn device(change: impl FnOnce(&mut Functions)) -> AscendDevice {
    let path = std::env::current_exe()
        .unwrap()
        .with_file_name("libkvstored_emulated_ascendcl.so");
    let mut functions = library::load(path.to_str()).unwrap();
    change(&mut functions);
    let device = AscendDevice {
        functions,
        number: 0,
        copier: Copier::default(),
    };
    device.bind_thread().unwrap();
    device
}

/// Pages of the host's, aligned as registration wants them.
fn pages(count: usize, fill: u8) -> (Vec<u8>, usize) {
    let memory = vec![fill; (count + 1) * PAGE];
    let begin = memory.as_ptr().align_offset(PAGE);
    (memory, begin)
}

/// There and back over one stream, with an event.
fn round_trip(device: &AscendDevice) {
    let (from, from_begin) = pages(3, 7);
    let (mut to, to_begin) = pages(3, 0);
    let target = to.as_mut_ptr().wrapping_add(to_begin);
    let source = from.as_ptr().wrapping_add(from_begin);
    let address = device.allocate(3 * PAGE as u64).unwrap();
    let copies = |destination: u64, source: u64| {
        let copy = |page: u64| Copy {
            destination: destination + page * PAGE as u64,
            source: source + page * PAGE as u64,
            bytes: PAGE as u64,
        };
        [0, 1, 2].map(copy)
    };
    // SAFETY: handles and memory live until the stream is synchronized
    unsafe {
        device.register_host(target, 3 * PAGE as u64).unwrap();
        let (stream, event) = (device.create_stream().unwrap(), device.create_event().unwrap());
        let there = copies(address, source as u64);
        device.copy(stream, Direction::HostToDevice, &there).unwrap();
        let back = copies(target as u64, address);
        device.copy(stream, Direction::DeviceToHost, &back).unwrap();
        device.record_event(stream, event).unwrap();
        device.synchronize_event(event, LONG_MS).unwrap();
        assert!(device.query_event(event).unwrap());
        device.synchronize_stream(stream, LONG_MS).unwrap();
        device.destroy_event(event).unwrap();
        device.destroy_stream(stream).unwrap();
        device.unregister_host(target).unwrap();
        device.release(address).unwrap();
    }
    assert!(to[to_begin..to_begin + 3 * PAGE].iter().all(|byte| *byte == 7));
}

fn counts(device: &AscendDevice) -> (u64, u64) {
    let mut statistics = DeviceStatistics::default();
    device.statistics(&mut statistics);
    (statistics.batch_calls, statistics.single_calls)
}

#[test]
fn with_everything_there() {
    let device = device(|_| {});
    round_trip(&device);
    assert_eq!(counts(&device), (2, 0));
}

#[test]
fn without_what_came_later() {
    let device = device(|functions| {
        functions.copy_batch_async = None;
        functions.create_stream_with_config = None;
        functions.create_event_ex = None;
        functions.synchronize_event = None;
        functions.host_register_v2 = None;
        functions.abort_stream = None;
        functions.export_key = None;
        functions.import_key = None;
        functions.recent_error = None;
    });
    round_trip(&device);
    assert_eq!(counts(&device), (0, 6));
    let stream = device.create_stream().unwrap();
    let event = device.create_event().unwrap();
    // SAFETY: the handles are the device's
    unsafe {
        // never recorded, so never reached
        let late = device.synchronize_event(event, 20).unwrap_err();
        assert_eq!(late.kind(), Kind::TimedOut);
        let aborted = device.abort_stream(stream).unwrap_err();
        assert_eq!(aborted.kind(), Kind::Unsupported);
        assert!(aborted.message().contains("aclrtStreamAbort"));
        let exported = device.export_memory(1, 1).unwrap_err();
        assert_eq!(exported.kind(), Kind::Unsupported);
        device.destroy_event(event).unwrap();
        device.destroy_stream(stream).unwrap();
    }
    assert_eq!(
        device.import_memory(b"key").unwrap_err().kind(),
        Kind::Unsupported
    );
    assert_eq!(
        device.allocate(1 << 50).unwrap_err().message(),
        "aclrtMalloc gave 207001"
    );
}

#[test]
fn without_any_registration_copies_are_right_all_the_same() {
    let device = device(|functions| {
        functions.host_register_v2 = None;
        functions.host_register = None;
    });
    let (mut memory, begin) = pages(1, 7);
    let target = memory.as_mut_ptr().wrapping_add(begin);
    // SAFETY: it's refused
    let refused = unsafe { device.register_host(target, PAGE as u64) }.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsupported);
    let address = device.allocate(PAGE as u64).unwrap();
    let copy = |destination, source| Copy {
        destination,
        source,
        bytes: PAGE as u64,
    };
    // SAFETY: handles and memory live until the stream is synchronized
    unsafe {
        let stream = device.create_stream().unwrap();
        let there = [copy(address, target as u64)];
        device.copy(stream, Direction::HostToDevice, &there).unwrap();
        device.synchronize_stream(stream, LONG_MS).unwrap();
        target.write_bytes(0, PAGE);
        device
            .copy(stream, Direction::DeviceToHost, &[copy(target as u64, address)])
            .unwrap();
        device.synchronize_stream(stream, LONG_MS).unwrap();
        device.destroy_stream(stream).unwrap();
        device.release(address).unwrap();
    }
    assert!(memory[begin..begin + PAGE].iter().all(|byte| *byte == 7));
}
