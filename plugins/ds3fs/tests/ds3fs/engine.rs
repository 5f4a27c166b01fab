//! The engine by itself.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kvstored_backends::io::{Direction, IoEngine, IoPreference, IoRequest, IoSettings, open_io_engine};
use kvstored_core::{ErrorKind, Result, Runtime, SlotGuard};
use kvstored_ds3fs::engine::{RingSettings, UsrbioEngine};
use kvstored_ds3fs::usrbio::{Library3fs, Mount};

use crate::support::{Mounted, PATIENCE, directory, library, pattern, slot};

/// Small, so that places, queues and pieces run out.
pub fn rings() -> RingSettings {
    RingSettings {
        read_rings: 2,
        write_rings: 1,
        ring_entries: 4,
        bounce_bytes: 64 << 10,
        io_timeout: Duration::from_secs(20),
        queue_limit: 4096,
    }
}

pub fn open(mount: &Mounted, settings: &RingSettings) -> Result<UsrbioEngine> {
    let runtime = Runtime::system();
    let io = IoSettings {
        preference: IoPreference::Psync,
        ..IoSettings::default()
    };
    let library = Library3fs::load(&library()).unwrap();
    let found = Mount::around(&library, &mount.path()).unwrap();
    UsrbioEngine::open(
        settings,
        &found,
        &runtime,
        open_io_engine(&io, &runtime, "test").unwrap(),
    )
}

pub fn file(path: &Path) -> Arc<File> {
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .to_owned();
    Arc::new(options.open(path).unwrap())
}

pub type Outcomes = Receiver<(SlotGuard, Result<()>)>;

/// Starts requests of one direction in one batch: where in the file, and the buffer.
pub fn start(
    engine: &dyn IoEngine,
    direction: Direction,
    file: &Arc<File>,
    requests: Vec<(u64, SlotGuard)>,
) -> Outcomes {
    let (sender, outcomes) = channel();
    let batch = requests
        .into_iter()
        .map(|(file_offset, buffer)| {
            let sender = sender.clone();
            IoRequest {
                file: Arc::clone(file),
                direction,
                file_offset,
                length: buffer.length(),
                buffer,
                buffer_offset: 0,
                completion: Box::new(move |buffer, result| drop(sender.send((buffer, result)))),
            }
        })
        .collect();
    engine.submit(batch);
    outcomes
}

pub fn next(outcomes: &Outcomes) -> (SlotGuard, Result<()>) {
    outcomes.recv_timeout(PATIENCE).expect("a completion never came")
}

pub fn filled(seed: u64, bytes: usize) -> SlotGuard {
    let buffer = slot(bytes);
    buffer.arena().write(0, &pattern(seed, bytes)).unwrap();
    buffer
}

pub fn contents(buffer: &SlotGuard) -> Vec<u8> {
    let mut bytes = vec![0; buffer.length()];
    buffer.arena().read(buffer.offset(), &mut bytes).unwrap();
    bytes
}

/// Writes and reads blocks of several sizes, many at once, and compares.
pub fn round_trip(engine: &dyn IoEngine, mount: &Mounted) {
    let file = file(&mount.path().join("blocks"));
    let sizes = [4096usize, 64 << 10, (64 << 10) + 4096, 300 << 10];
    let mut offset = 0;
    let places: Vec<(u64, usize)> = (0..40)
        .map(|number| {
            let place = (offset, sizes[number % sizes.len()]);
            offset += place.1 as u64;
            place
        })
        .collect();
    let writes = places
        .iter()
        .map(|(offset, bytes)| (*offset, filled(*offset, *bytes)))
        .collect();
    let outcomes = start(engine, Direction::Write, &file, writes);
    for _ in &places {
        next(&outcomes).1.unwrap();
    }
    for (offset, bytes) in &places {
        let mut found = vec![0; *bytes];
        file.read_exact_at(&mut found, *offset).unwrap();
        assert_eq!(found, pattern(*offset, *bytes), "the file at {offset}");
    }
    let reads = places
        .iter()
        .map(|(offset, bytes)| (*offset, slot(*bytes)))
        .collect();
    let outcomes = start(engine, Direction::Read, &file, reads);
    let mut expected: Vec<Vec<u8>> = places
        .iter()
        .map(|(offset, bytes)| pattern(*offset, *bytes))
        .collect();
    for _ in &places {
        let (buffer, result) = next(&outcomes);
        result.unwrap();
        let bytes = contents(&buffer);
        let place = expected.iter().position(|wanted| *wanted == bytes);
        expected.swap_remove(place.expect("bytes that nobody wrote there"));
    }
    // a place is freed and a request counted off just before or after its completion is called
    let runtime = Runtime::system();
    let deadline = runtime.deadline(PATIENCE);
    while engine.queue_depth() > 0 {
        assert!(runtime.clock.now() < deadline, "requests are held");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn blocks_round_trip_through_rings() {
    let mount = Mounted::new();
    let engine = open(&mount, &rings()).unwrap();
    round_trip(&engine, &mount);
    let [direct, copied, elsewhere] = engine.ways();
    assert_eq!((direct, copied, elsewhere), (0, 80, 0));
    engine.shutdown();
    drop(engine);
    assert!(mount.links().is_empty(), "memory was left behind");
}

#[test]
fn one_place_is_enough() {
    let mount = Mounted::new();
    let settings = RingSettings {
        read_rings: 1,
        ring_entries: 1,
        ..rings()
    };
    round_trip(&open(&mount, &settings).unwrap(), &mount);
}

#[test]
fn an_end_of_file_is_a_short_read() {
    let mount = Mounted::new();
    let engine = open(&mount, &rings()).unwrap();
    let file = file(&mount.path().join("short"));
    file.write_all_at(&[7; 5000], 0).unwrap();
    let outcomes = start(
        &engine,
        Direction::Read,
        &file,
        vec![(0, slot(8192)), (0, slot(5000))],
    );
    let mut results: Vec<String> = (0..2)
        .map(|_| {
            next(&outcomes)
                .1
                .err()
                .map_or_else(String::new, |error| error.message().to_owned())
        })
        .collect();
    results.sort();
    assert_eq!(results, ["", "short read"]);
}

#[test]
fn files_elsewhere_are_read_and_written_without_rings() {
    let mount = Mounted::new();
    let engine = open(&mount, &rings()).unwrap();
    let elsewhere = directory();
    let file = file(&elsewhere.path().join("file"));
    let outcomes = start(&engine, Direction::Write, &file, vec![(0, filled(1, 8192))]);
    next(&outcomes).1.unwrap();
    let outcomes = start(&engine, Direction::Read, &file, vec![(0, slot(8192))]);
    let (buffer, result) = next(&outcomes);
    result.unwrap();
    assert_eq!(contents(&buffer), pattern(1, 8192));
    assert_eq!(engine.ways(), [0, 0, 2]);
}

#[test]
fn many_files_come_and_go() {
    let mount = Mounted::new();
    let engine = open(&mount, &rings()).unwrap();
    for number in 0..300 {
        let path = mount.path().join("one of many");
        let file = file(&path);
        let outcomes = start(&engine, Direction::Write, &file, vec![(0, filled(number, 4096))]);
        next(&outcomes).1.unwrap();
        let mut found = vec![0; 4096];
        file.read_exact_at(&mut found, 0).unwrap();
        // a descriptor's number is soon used again: it must not lead to the file before
        assert_eq!(found, pattern(number, 4096));
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(engine.ways()[2], 0);
}

#[test]
fn requests_after_shutdown_are_cancelled_and_wrong_ones_refused() {
    let mount = Mounted::new();
    let engine = open(&mount, &rings()).unwrap();
    let file = file(&mount.path().join("file"));
    let outcomes = start(&engine, Direction::Read, &file, vec![(u64::MAX - 10, slot(4096))]);
    assert_eq!(next(&outcomes).1.unwrap_err().kind(), ErrorKind::InvalidInput);
    engine.shutdown();
    let outcomes = start(&engine, Direction::Write, &file, vec![(0, slot(4096))]);
    assert_eq!(next(&outcomes).1.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn requests_under_way_at_shutdown_end() {
    let mount = Mounted::new();
    mount.set("LATENCY_US", 3000);
    let engine = open(&mount, &rings()).unwrap();
    let file = file(&mount.path().join("file"));
    let requests = (0..64)
        .map(|number| (number * 4096, filled(number, 4096)))
        .collect();
    let outcomes = start(&engine, Direction::Write, &file, requests);
    next(&outcomes).1.unwrap();
    engine.shutdown();
    let results: Vec<Result<()>> = (1..64).map(|_| next(&outcomes).1).collect();
    let mut cancelled = results.iter().filter_map(|result| result.as_ref().err());
    assert!(cancelled.all(|error| error.kind() == ErrorKind::Cancelled));
}

#[test]
fn a_full_queue_answers_busy() {
    let mount = Mounted::new();
    mount.set("LATENCY_US", 20_000);
    let settings = RingSettings {
        queue_limit: 8,
        ..rings()
    };
    let engine = open(&mount, &settings).unwrap();
    let file = file(&mount.path().join("file"));
    let requests = (0..100).map(|number| (number * 4096, slot(4096))).collect();
    let outcomes = start(&engine, Direction::Write, &file, requests);
    let kinds: Vec<_> = (0..100)
        .map(|_| next(&outcomes).1.map_err(|error| error.kind()))
        .collect();
    assert!(kinds.contains(&Err(ErrorKind::Busy)));
    assert!(
        kinds
            .iter()
            .all(|kind| matches!(kind, Ok(()) | Err(ErrorKind::Busy)))
    );
}
