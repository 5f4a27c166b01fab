//! Shared memory in two processes.

use std::os::fd::{AsFd, AsRawFd};

use kvstored_core::ErrorKind;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::child::Child;
use crate::{PeerMemory, SharedMemory, Sharing};

#[test]
fn both_sides_see_the_same_bytes() {
    let child = Child::start();
    let memory = SharedMemory::new("test", 10_000, Sharing::ReadWrite).unwrap();
    assert_eq!(memory.length(), 12_288);
    memory.prefault(5000, 7288).unwrap();
    memory.write(9998, b"ab").unwrap();
    assert_eq!(child.ask_with("memory 10000 write", &[memory.descriptor()]), "ok");
    assert_eq!(child.ask("read 9997 3"), "[0, 97, 98]");
    assert_eq!(child.ask("write 4095 xy"), "ok");
    let mut bytes = [0; 2];
    memory.read(4095, &mut bytes).unwrap();
    assert_eq!(&bytes, b"xy");
    for (offset, length) in [
        (12_288, 1),
        (12_287, 2),
        (u64::MAX, 1),
        (1, usize::MAX),
        (0, 12_289),
    ] {
        assert_eq!(
            memory.address(offset, length).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        assert!(memory.prefault(offset, length).is_err());
    }
    assert!(memory.address(12_288, 0).is_ok());
}

#[test]
fn memory_shared_for_reading_cannot_be_written_however_it_is_come_by() {
    let child = Child::start();
    let memory = SharedMemory::new("test", 8192, Sharing::ReadOnly).unwrap();
    memory.write(0, b"ab").unwrap();
    let descriptor = memory.descriptor();
    assert_eq!(
        child.ask_with("memory 8192 write", &[descriptor]),
        "permission_denied"
    );
    assert_eq!(child.ask_with("memory 8192 read", &[descriptor]), "ok");
    assert_eq!(child.ask("read 0 3"), "[97, 98, 0]");
    // the owner goes on writing
    memory.write(0, b"c").unwrap();
    assert_eq!(child.ask("read 0 3"), "[99, 98, 0]");
    // another way to the same file
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let again = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let error = PeerMemory::map(again.try_clone().unwrap().into(), 8192, Sharing::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(std::os::unix::fs::FileExt::write_at(&again, b"x", 0).is_err());
    let mapped = PeerMemory::map(again.into(), 8192, Sharing::ReadOnly).unwrap();
    assert_eq!(mapped.write(0, b"x").unwrap_err().kind(), ErrorKind::InvalidInput);
    mapped.prefault(0, 8192).unwrap();
}

#[test]
fn files_that_could_be_shrunk_or_are_too_short_are_refused() {
    let memory = SharedMemory::new("test", 8192, Sharing::ReadWrite).unwrap();
    assert!(ftruncate(memory.descriptor(), 4096).is_err());
    assert!(ftruncate(memory.descriptor(), 1 << 20).is_err());
    let kind = |length: u64| {
        let file = memory.descriptor().try_clone_to_owned().unwrap();
        PeerMemory::map(file, length, Sharing::ReadWrite)
            .unwrap_err()
            .kind()
    };
    for length in [0, 8193, u64::MAX, 1 << 63] {
        assert_eq!(kind(length), ErrorKind::InvalidInput);
    }
    let unsealed = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(unsealed.as_fd(), 8192).unwrap();
    let error = PeerMemory::map(unsealed, 8192, Sharing::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    for length in [0, usize::MAX, usize::MAX - 4095] {
        let error = SharedMemory::new("test", length, Sharing::ReadWrite).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
