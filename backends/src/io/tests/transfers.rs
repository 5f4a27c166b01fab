//! Moving bytes: what both engines promise.

use std::io::Write as _;

use kvstored_core::ErrorKind;

use super::super::files::open_direct;
use super::*;

for_each_engine!(
    reads_back_what_was_written,
    many_threads_many_requests,
    reading_past_the_end_fails,
    writing_a_read_only_file_fails,
    a_range_outside_the_slot_is_refused,
    nothing_to_move_succeeds,
    short_transfers_are_continued,
);

fn reads_back_what_was_written(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let directory = directory();
    let releases = Arc::default();
    let (file, _) = open_direct(&path(&directory), true).unwrap();
    let file = Arc::new(file);
    // file offset, place in the slot, length
    let cases = [
        (0, 0, 4096),
        (4096, 8192, 4096),
        (1 << 20, 4096, 12288),
        (8 << 20, 0, 3 << 20),
        (4096, 4096, 1 << 20),
    ];
    for (number, (file_offset, at, length)) in cases.into_iter().enumerate() {
        let expected = bytes(length, number as u64);
        let written = slot(4 << 20, &releases);
        written.arena().write(at, &expected).unwrap();
        transfer(
            &*engine,
            Direction::Write,
            &file,
            file_offset,
            &written,
            (at, length),
        )
        .unwrap();
        let read = slot(4 << 20, &releases);
        transfer(&*engine, Direction::Read, &file, file_offset, &read, (at, length)).unwrap();
        assert_eq!(contents(&read, at, length), expected, "case {number}");
        assert_eq!(
            contents(&read, at + length, 4096),
            vec![0; 4096],
            "bytes behind case {number}"
        );
    }
    drop(engine);
    assert_eq!(releases.count(), 2 * cases.len());
}

fn many_threads_many_requests(settings: &IoSettings) {
    const THREADS: u64 = 4;
    const BLOCKS: u64 = 32;
    const BLOCK: usize = 16384;
    let Some(engine) = engine(settings) else { return };
    let directory = directory();
    let (file, _) = open_direct(&path(&directory), true).unwrap();
    let file = Arc::new(file);
    let releases: Arc<Releases> = Arc::default();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (engine, file, releases) = (&engine, &file, &releases);
            scope.spawn(move || {
                let whole = slot(BLOCK * BLOCKS as usize, releases);
                let expected = bytes(whole.length(), thread);
                whole.arena().write(0, &expected).unwrap();
                let back = slot(whole.length(), releases);
                for (direction, guard) in [(Direction::Write, &whole), (Direction::Read, &back)] {
                    let (sender, receiver) = channel();
                    let batch = (0..BLOCKS).map(|block| {
                        let place = (block * THREADS + thread) * BLOCK as u64;
                        request(
                            direction,
                            file,
                            place,
                            guard,
                            (block as usize * BLOCK, BLOCK),
                            &sender,
                        )
                    });
                    engine.submit(batch.collect());
                    for _ in 0..BLOCKS {
                        next(&receiver).1.unwrap();
                    }
                }
                assert_eq!(contents(&back, 0, back.length()), expected);
            });
        }
    });
    assert_eq!(engine.queue_depth(), 0);
}

fn reading_past_the_end_fails(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let directory = directory();
    let (file, _) = open_direct(&path(&directory), true).unwrap();
    let file = Arc::new(file);
    let buffer = slot(32768, &Arc::default());
    transfer(&*engine, Direction::Write, &file, 0, &buffer, (0, 8192)).unwrap();
    for (file_offset, length) in [(1 << 20, 4096), (4096, 8192), (0, 32768)] {
        let error = transfer(
            &*engine,
            Direction::Read,
            &file,
            file_offset,
            &buffer,
            (0, length),
        )
        .unwrap_err();
        assert_eq!(
            (error.kind(), error.message()),
            (ErrorKind::Io, "short read"),
            "{file_offset}+{length}"
        );
    }
    // A file that ends in the middle of a sector.
    file.set_len(5000).unwrap();
    let error = transfer(&*engine, Direction::Read, &file, 0, &buffer, (0, 8192)).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Io, "short read"));
}

fn writing_a_read_only_file_fails(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let directory = directory();
    let path = path(&directory);
    std::fs::write(&path, [7; 4096]).unwrap();
    let (file, _) = open_direct(&path, false).unwrap();
    let file = Arc::new(file);
    let buffer = slot(4096, &Arc::default());
    let error = transfer(&*engine, Direction::Write, &file, 0, &buffer, (0, 4096)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    transfer(&*engine, Direction::Read, &file, 0, &buffer, (0, 4096)).unwrap();
    assert_eq!(contents(&buffer, 0, 4096), vec![7; 4096]);
}

fn a_range_outside_the_slot_is_refused(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let file = Arc::new(tempfile::tempfile().unwrap());
    let buffer = slot(8192, &Arc::default());
    for (file_offset, range) in [
        (0, (4096, 8192)),
        (0, (usize::MAX, 2)),
        (u64::MAX, (0, 4096)),
        (i64::MAX as u64, (0, 4096)),
    ] {
        let error = transfer(&*engine, Direction::Read, &file, file_offset, &buffer, range).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    // A guard whose slot isn't in its arena.
    let outside = SlotGuard::new(
        Arc::clone(buffer.arena()),
        Arc::<Releases>::default(),
        0,
        4096,
        8192,
    );
    let error = transfer(&*engine, Direction::Read, &file, 0, &outside, (0, 8192)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(engine.queue_depth(), 0);
}

fn nothing_to_move_succeeds(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let file = Arc::new(tempfile::tempfile().unwrap());
    let buffer = slot(4096, &Arc::default());
    transfer(&*engine, Direction::Read, &file, 0, &buffer, (4096, 0)).unwrap();
    transfer(&*engine, Direction::Write, &file, 0, &buffer, (0, 0)).unwrap();
}

fn short_transfers_are_continued(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    if engine.name() != "io_uring" {
        return; // no file that psync can use gives bytes piecemeal on demand
    }
    let Stalled { mut writer, file } = Stalled::new();
    let buffer = slot(8192, &Arc::default());
    let (sender, receiver) = channel();
    engine.submit(vec![request(
        Direction::Read,
        &file,
        0,
        &buffer,
        (100, 8000),
        &sender,
    )]);
    let expected = bytes(8000, 5);
    for piece in expected.chunks(1234) {
        assert!(receiver.try_recv().is_err());
        writer.write_all(piece).unwrap();
    }
    next(&receiver).1.unwrap();
    assert_eq!(contents(&buffer, 100, 8000), expected);
    // The other end goes away before all the bytes came.
    engine.submit(vec![request(
        Direction::Read,
        &file,
        0,
        &buffer,
        (0, 8000),
        &sender,
    )]);
    writer.write_all(&expected[..10]).unwrap();
    drop(writer);
    let error = next(&receiver).1.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Io, "short read"));
}
