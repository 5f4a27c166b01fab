//! The engine on a library that goes wrong.

use std::time::Duration;

use kvstored_backends::io::{Direction, IoEngine};
use kvstored_core::ErrorKind;
use kvstored_ds3fs::engine::RingSettings;

use crate::engine::{contents, file, filled, next, open, rings, round_trip, start};
use crate::support::{Mounted, pattern, slot};

/// What a library may do that costs nothing but time.
#[test]
fn bytes_are_right_whatever_the_order_and_pace() {
    let switches: [&[(&str, i64)]; 6] = [
        &[("EAGER", 1)],
        &[("REORDER", 1)],
        &[("SHORT_EVERY", 3)],
        &[("FULL_EVERY", 2)],
        &[("LATENCY_US", 500)],
        &[
            ("EAGER", 1),
            ("REORDER", 1),
            ("SHORT_EVERY", 2),
            ("FULL_EVERY", 5),
            ("LATENCY_US", 100),
        ],
    ];
    for chosen in switches {
        let mount = Mounted::new();
        for (switch, value) in chosen {
            mount.set(switch, *value);
        }
        let engine = open(&mount, &rings()).unwrap();
        round_trip(&engine, &mount);
        assert_eq!(engine.ways()[2], 0, "{chosen:?}");
    }
}

#[test]
fn an_error_ends_one_request_and_no_other() {
    let mount = Mounted::new();
    let engine = open(&mount, &rings()).unwrap();
    let file = file(&mount.path().join("file"));
    mount.set("FAIL_EVERY", 4);
    let requests = (0..16)
        .map(|number| (number * 4096, filled(number, 4096)))
        .collect();
    let outcomes = start(&engine, Direction::Write, &file, requests);
    let failed = (0..16)
        .filter_map(|_| next(&outcomes).1.err())
        .inspect(|error| assert_eq!(error.kind(), ErrorKind::Io))
        .count();
    assert_eq!(failed, 4);
    mount.set("FAIL_ERRNO", i64::from(libc::ENOSPC));
    mount.set("FAIL_EVERY", 1);
    let outcomes = start(&engine, Direction::Write, &file, vec![(0, slot(4096))]);
    assert_eq!(next(&outcomes).1.unwrap_err().kind(), ErrorKind::NoSpace);
    mount.set("FAIL_EVERY", 0);
    round_trip(&engine, &mount);
}

#[test]
fn io_that_never_ends_is_timed_out_and_the_mount_takes_over() {
    let mount = Mounted::new();
    let settings = RingSettings {
        read_rings: 1,
        io_timeout: Duration::from_millis(200),
        ..rings()
    };
    let engine = open(&mount, &settings).unwrap();
    let file = file(&mount.path().join("file"));
    let outcomes = start(&engine, Direction::Write, &file, vec![(0, filled(5, 4096))]);
    next(&outcomes).1.unwrap();
    mount.set("HANG_EVERY", 1);
    let outcomes = start(
        &engine,
        Direction::Read,
        &file,
        vec![(0, slot(4096)), (0, slot(4096))],
    );
    for _ in 0..2 {
        assert_eq!(next(&outcomes).1.unwrap_err().kind(), ErrorKind::TimedOut);
    }
    assert_eq!(engine.stuck_rings(), 1);
    // whatever comes meanwhile is read on the mount, more of it than the ring has places
    let reads = (0..20).map(|_| (0, slot(4096))).collect();
    let outcomes = start(&engine, Direction::Read, &file, reads);
    for _ in 0..20 {
        let (buffer, result) = next(&outcomes);
        result.unwrap();
        assert_eq!(contents(&buffer), pattern(5, 4096));
    }
    assert_eq!(engine.ways()[2], 20);
    // and the engine can be stopped all the same
    engine.shutdown();
}

#[test]
fn slow_io_is_late_and_the_ring_is_used_again() {
    let mount = Mounted::new();
    let settings = RingSettings {
        read_rings: 1,
        io_timeout: Duration::from_millis(50),
        ..rings()
    };
    let engine = open(&mount, &settings).unwrap();
    let file = file(&mount.path().join("file"));
    let outcomes = start(&engine, Direction::Write, &file, vec![(0, filled(6, 4096))]);
    next(&outcomes).1.unwrap();
    mount.set("LATENCY_US", 600_000);
    let late = slot(4096);
    let outcomes = start(&engine, Direction::Read, &file, vec![(0, late.clone())]);
    assert_eq!(next(&outcomes).1.unwrap_err().kind(), ErrorKind::TimedOut);
    mount.set("LATENCY_US", 0);
    // what comes late goes nowhere: the buffer is somebody else's by now
    late.arena().write(0, &[0x77; 4096]).unwrap();
    let runtime = kvstored_core::Runtime::system();
    let deadline = runtime.deadline(crate::support::PATIENCE);
    while engine.stuck_rings() > 0 {
        assert!(runtime.clock.now() < deadline, "the ring is never used again");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!(contents(&late), [0x77; 4096]);
    let before = engine.ways()[1];
    let outcomes = start(&engine, Direction::Read, &file, vec![(0, slot(4096))]);
    next(&outcomes).1.unwrap();
    assert_eq!(engine.ways()[1], before + 1);
}

#[test]
fn without_rings_the_engine_does_not_open_and_with_few_it_does() {
    let mount = Mounted::new();
    mount.set("RINGS", 1);
    assert!(open(&mount, &rings()).is_err(), "no ring for writing");
    mount.set("RINGS", 2);
    let settings = RingSettings {
        read_rings: 1,
        write_rings: 3,
        ..rings()
    };
    round_trip(&open(&mount, &settings).unwrap(), &mount);
}
