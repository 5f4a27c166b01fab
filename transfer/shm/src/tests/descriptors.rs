//! Descriptors and mappings don't pile up.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::child::{Child, clock, late, listener};
use crate::{Channel, ControlPage, LivenessWatch, PeerControl, PeerMemory, SharedMemory, Sharing, StartTime};

const ROUNDS: usize = 100;

fn counts() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared = maps.lines().filter(|line| line.contains("/memfd:")).count();
    (descriptors, shared)
}

/// In a process without other tests: everything that connections do, many times over.
pub fn run() -> String {
    let page = ControlPage::new(100, clock()).unwrap();
    let watch = LivenessWatch::new().unwrap();
    let listener = listener();
    let mut after_first = None;
    for _ in 0..ROUNDS {
        let peer = Channel::connect(listener.address(), clock(), late()).unwrap();
        let served = listener.accept(late()).unwrap();
        let process = Arc::new(served.process(Some(StartTime::own().unwrap())).unwrap());
        watch.add(1, &process).unwrap();
        let attached = page.attach(process).unwrap();
        let memory = SharedMemory::new("test", 8192, Sharing::ReadOnly).unwrap();
        let files = [page.descriptor(), attached.counts.as_fd(), memory.descriptor()];
        served.send(b"x", &files, late()).unwrap();
        // a message that nobody reads, with what is in it
        served.send(b"y", &files, late()).unwrap();
        drop(attached.counts);
        let mut descriptors = peer.receive(late()).unwrap().descriptors.into_iter();
        let mut next = || descriptors.next().unwrap();
        let control = PeerControl::map(next(), next(), 100).unwrap();
        let mapped = PeerMemory::map(next(), 8192, Sharing::ReadOnly).unwrap();
        assert!(
            PeerMemory::map(
                memory.descriptor().try_clone_to_owned().unwrap(),
                1 << 40,
                Sharing::ReadOnly
            )
            .is_err()
        );
        drop(control.enter(5, 0).unwrap());
        drop((control, mapped));
        assert_eq!(page.reap(), 1);
        drop((peer, served, memory));
        after_first.get_or_insert_with(counts);
    }
    let (first, last) = (after_first.unwrap(), counts());
    if first == last {
        "flat".to_owned()
    } else {
        format!("{first:?} became {last:?}")
    }
}

#[test]
fn descriptors_and_mappings_stay_flat() {
    assert_eq!(Child::start().ask("descriptors"), "flat");
}
