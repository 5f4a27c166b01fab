//! Links between two ends in this process.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind};
use kvstored_verbs::{Direction, LinkSettings};

use crate::rig::{
    BAD, GOOD, MIB, Results, Rig, Store, bytes, kind, part, patient, pattern, run, start, wait_for, whole,
};

pub fn sizes(rig: &Rig) {
    let store = Store::new(rig, 6 * MIB);
    let [link, _other] = rig.link_to(&store);
    let local = rig.buffer(6 * MIB);
    for (seed, length) in [
        (1, 1),
        (2, 4095),
        (3, 4096),
        (4, 4097),
        (5, MIB),
        (6, MIB + 1),
        (7, 5 * MIB + 3),
    ] {
        let bytes_sent = pattern(seed, length);
        local.write(7, &bytes_sent).unwrap();
        run(rig, &link, Direction::Write, part(&local, 7, length), GOOD, 100).unwrap();
        assert_eq!(store.bytes(100, length), bytes_sent, "{length} bytes written");
        assert_eq!(store.bytes(100 + length, 1), [0], "one byte too many");
        local.write(0, &vec![0; 6 * MIB as usize]).unwrap();
        run(rig, &link, Direction::Read, part(&local, 13, length), GOOD, 100).unwrap();
        assert_eq!(bytes(&local, 13, length), bytes_sent, "{length} bytes read");
        assert_eq!(
            (bytes(&local, 12, 1), bytes(&local, 13 + length, 1)),
            (vec![0], vec![0])
        );
        store.memory.write(0, &vec![0; 6 * MIB as usize]).unwrap();
    }
    store.wait_free();
}

pub fn batch(rig: &Rig) {
    const COUNT: u64 = 1000;
    let store = Store::new(rig, COUNT * 4096);
    store.fill(1);
    let [link, _other] = rig.link_to(&store);
    let local = rig.buffer(COUNT * 4096);
    let results = Results::new();
    for direction in [Direction::Read, Direction::Write] {
        // backwards, so that it shows where each goes
        let operations = (0..COUNT).map(|index| {
            let slice = part(&local, (COUNT - 1 - index) * 4096, 4096);
            results.operation(direction, slice, GOOD, index * 4096, rig.soon())
        });
        link.submit(operations.collect()).unwrap();
        for result in results.all(COUNT as usize) {
            result.unwrap();
        }
        let (here, there) = (bytes(&local, 0, COUNT * 4096), store.bytes(0, COUNT * 4096));
        for index in 0..COUNT as usize {
            let mirrored = COUNT as usize - 1 - index;
            assert_eq!(
                here[index * 4096..][..4096],
                there[mirrored * 4096..][..4096],
                "{direction:?} {index}"
            );
        }
        local.write(0, &pattern(2, COUNT * 4096)).unwrap();
    }
    assert_eq!(store.admitted.load(Ordering::SeqCst), 2 * COUNT);
}

pub fn both_ways(rig: &Rig) {
    const COUNT: u64 = 400;
    // as few receives as there may be, so that credits run out on both sides
    let settings = LinkSettings {
        receives: 8,
        window: 16,
        moves: 2,
        ..patient()
    };
    let stores = [Store::new(rig, COUNT * 512), Store::new(rig, COUNT * 512)];
    let links = rig.pair(&settings, stores.clone());
    let locals = [rig.buffer(COUNT * 512), rig.buffer(COUNT * 512)];
    for (seed, local) in (1..).zip(&locals) {
        local.write(0, &pattern(seed, COUNT * 512)).unwrap();
    }
    std::thread::scope(|scope| {
        for (link, local) in links.iter().zip(&locals) {
            scope.spawn(|| {
                let results = Results::new();
                for index in 0..COUNT {
                    let slice = part(local, index * 512, 512);
                    start(
                        link,
                        results.operation(Direction::Write, slice, GOOD, index * 512, rig.soon()),
                    );
                }
                for result in results.all(COUNT as usize) {
                    result.unwrap();
                }
            });
        }
    });
    // each end serves its own store, and so was written by the other
    assert_eq!(stores[0].bytes(0, COUNT * 512), pattern(2, COUNT * 512));
    assert_eq!(stores[1].bytes(0, COUNT * 512), pattern(1, COUNT * 512));
}

pub fn refused(rig: &Rig) {
    let store = Store::new(rig, 8192);
    store.fill(1);
    let [link, _other] = rig.link_to(&store);
    let local = rig.buffer(8192);
    for direction in [Direction::Read, Direction::Write] {
        let ask =
            |grant: &[u8], offset| kind(run(rig, &link, direction, part(&local, 0, 4096), grant, offset));
        assert_eq!(ask(BAD, 0), Some(ErrorKind::PermissionDenied));
        assert_eq!(ask(&[], 0), Some(ErrorKind::PermissionDenied));
        for offset in [4097, 8192, u64::MAX, u64::MAX - 4095] {
            assert_eq!(ask(GOOD, offset), Some(ErrorKind::InvalidInput), "at {offset}");
        }
    }
    assert_eq!(bytes(&local, 0, 8192), vec![0; 8192]);
    assert_eq!(store.bytes(0, 8192), pattern(1, 8192));
    run(rig, &link, Direction::Read, whole(&local), GOOD, 0).unwrap();
    assert_eq!(bytes(&local, 0, 8192), pattern(1, 8192));
    assert_eq!(
        kind(run(rig, &link, Direction::Read, part(&local, 0, 0), GOOD, 0)),
        Some(ErrorKind::InvalidInput)
    );
    assert_eq!(
        kind(run(rig, &link, Direction::Read, whole(&local), &[0; 193], 0)),
        Some(ErrorKind::InvalidInput)
    );
}

pub fn revoked(rig: &Rig) {
    let length = 8 * MIB;
    let settings = LinkSettings {
        chunk_bytes: 256 << 10,
        moves: 2,
        ..patient()
    };
    for direction in [Direction::Read, Direction::Write] {
        let store = Store::new(rig, length);
        let [link, _other] = rig.pair(&settings, [Store::new(rig, 4096), store.clone()]);
        let local = rig.buffer(length);
        local.write(0, &pattern(1, length)).unwrap();
        store.valid_for.store(5, Ordering::SeqCst);
        let result = run(rig, &link, direction, whole(&local), GOOD, 0);
        assert_eq!(kind(result), Some(ErrorKind::Fenced), "{direction:?}");
        store.wait_free();
        let (touched, kept) = (5 * (256 << 10), 3 * MIB);
        match direction {
            Direction::Write => {
                assert_eq!(store.bytes(0, touched), pattern(1, touched));
                assert_eq!(store.bytes(touched, kept), vec![0; kept as usize]);
            }
            Direction::Read => {
                let expected = &pattern(1, length)[touched as usize..];
                assert_eq!(bytes(&local, 0, touched), vec![0; touched as usize]);
                assert_eq!(bytes(&local, touched, length - touched), expected);
            }
        }
        // the link goes on
        run(rig, &link, direction, whole(&local), GOOD, 0).unwrap();
    }
}

pub fn released(rig: &Rig) {
    let length = 16 * MIB;
    let store = Store::new(rig, length);
    let [link, other] = rig.link_to(&store);
    let local = rig.buffer(length);
    let results = Results::new();
    for round in 0..8 {
        start(
            &link,
            results.operation(Direction::Read, whole(&local), GOOD, 0, rig.soon()),
        );
        wait_for("the request", || store.admitted.load(Ordering::SeqCst) > round);
        store.epoch.fetch_add(1, Ordering::SeqCst);
        other.sweep();
        store.wait_free();
        // it was faster than the release, or ended by it
        let result = kind(results.next().1);
        assert!(
            result.is_none() || result == Some(ErrorKind::Fenced),
            "{result:?}"
        );
        assert!(link.is_alive() && other.is_alive());
    }
}

pub fn unwanted(rig: &Rig) {
    let store = Store::new(rig, 16 * MIB);
    let [link, _other] = rig.link_to(&store);
    let local = rig.buffer(16 * MIB);
    let results = Results::new();
    start(
        &link,
        results.operation(Direction::Read, whole(&local), GOOD, 0, rig.soon()),
    );
    results.wanted.store(false, Ordering::SeqCst);
    link.sweep();
    let result = kind(results.next().1);
    assert!(
        result.is_none() || result == Some(ErrorKind::Fenced),
        "{result:?}"
    );
    assert!(link.is_alive());
    // a deadline that has passed before it's sent
    results.wanted.store(true, Ordering::SeqCst);
    start(
        &link,
        results.operation(Direction::Read, whole(&local), GOOD, 0, std::time::Instant::now()),
    );
    assert_eq!(kind(results.next().1), Some(ErrorKind::TimedOut));
}

pub fn cancelled(rig: &Rig) {
    let store = Store::new(rig, 8 * MIB);
    store.fill(1);
    let [link, _other] = rig.link_to(&store);
    let local = rig.buffer(8 * MIB);
    let mut ended = 0;
    for round in 0..10_u64 {
        let results = Results::new();
        let operations =
            (0..3).map(|_| results.operation(Direction::Read, whole(&local), GOOD, 0, rig.soon()));
        link.submit(operations.collect()).unwrap();
        std::thread::sleep(Duration::from_millis(2 * round));
        for tag in [0, 1] {
            link.cancel(tag, &Error::new(ErrorKind::Cancelled, "not needed"));
        }
        // all are over now, and nothing writes here any more
        let results: Vec<_> = results.already();
        assert_eq!(results.len(), 3);
        for (_, result) in results {
            let kind = kind(result);
            assert!(kind.is_none() || kind == Some(ErrorKind::Cancelled), "{kind:?}");
            ended += u64::from(kind.is_some());
        }
        local.write(0, &pattern(round + 2, 8 * MIB)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert!(
            bytes(&local, 0, 8 * MIB) == pattern(round + 2, 8 * MIB),
            "written after the end"
        );
        assert!(link.is_alive(), "{:?}", link.error());
    }
    println!("  {ended} of 30 ended by the cancel");
    assert!(ended > 0);
    run(rig, &link, Direction::Read, whole(&local), GOOD, 0).unwrap();
    assert!(bytes(&local, 0, 8 * MIB) == pattern(1, 8 * MIB));
}

pub fn busy(rig: &Rig) {
    let store = Store::new(rig, MIB);
    let settings = LinkSettings {
        queue_depth: 10,
        ..patient()
    };
    let [link, _other] = rig.pair(&settings, [Store::new(rig, 4096), store]);
    let local = rig.buffer(MIB);
    let results = Results::new();
    let make = |count: u64| {
        let one = |_| results.operation(Direction::Read, whole(&local), GOOD, 0, rig.soon());
        (0..count).map(one).collect::<Vec<_>>()
    };
    assert_eq!(link.submit(make(11)).unwrap_err().kind(), ErrorKind::Busy);
    assert!(results.is_empty());
    link.submit(make(10)).unwrap();
    assert!(results.all(10).iter().all(Result::is_ok));
}

pub fn nothing_left(rig: &Rig) {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let pinned = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmPin"))
            .unwrap_or("0");
        line.split_whitespace()
            .nth(1)
            .and_then(|number| number.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let before = (descriptors(), pinned());
    for _ in 0..20 {
        let store = Store::new(rig, MIB);
        let links = rig.link_to(&store);
        let local = rig.buffer(MIB);
        run(rig, &links[0], Direction::Read, whole(&local), GOOD, 0).unwrap();
    }
    // the driver may be about to let go of the last link
    wait_for("descriptors and pinned memory to be as before", || {
        (descriptors(), pinned()) == before
    });
    let store = Store::new(rig, MIB);
    let _links = rig.link_to(&store);
    let used = || {
        let usage = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<u64> = usage
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .filter_map(|field| field.parse().ok())
            .collect();
        fields.get(10).copied().unwrap_or(0) + fields.get(11).copied().unwrap_or(0)
    };
    let ticks = used();
    std::thread::sleep(Duration::from_secs(1));
    println!("  an idle second costs {} ticks of 10 ms", used() - ticks);
}
