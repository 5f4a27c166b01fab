//! Queues, buffers and shutdown: what both engines promise.

use std::io::{Read as _, Write as _};
use std::sync::Barrier;

use kvstored_core::ErrorKind;

use super::*;

for_each_engine!(
    the_buffer_is_kept_until_the_completion,
    memory_that_nobody_uses_is_let_go,
    a_full_queue_is_busy,
    shutdown_awaits_what_is_in_flight_and_cancels_the_rest,
    a_completion_may_submit_and_shut_down,
    a_panicking_completion_hurts_nobody,
);

/// Keeps all threads of the engine busy, with completions that wait until the returned function is called.
fn stall(engine: &dyn IoEngine, settings: &IoSettings) -> impl FnOnce() + use<> {
    let places = if engine.name() == "psync" {
        settings.psync_threads
    } else {
        1
    };
    let gate = Arc::new(Barrier::new(places + 1));
    let file = Arc::new(tempfile::tempfile().unwrap());
    file.set_len(4096).unwrap();
    for _ in 0..places {
        let (sender, _receiver) = channel();
        let (enter, entered) = channel();
        let gate = Arc::clone(&gate);
        let mut blocking = request(
            Direction::Read,
            &file,
            0,
            &slot(4096, &Arc::default()),
            (0, 4096),
            &sender,
        );
        blocking.completion = Box::new(move |_, _| {
            enter.send(()).unwrap();
            gate.wait();
        });
        engine.submit(vec![blocking]);
        entered.recv_timeout(PATIENCE).unwrap();
    }
    move || {
        gate.wait();
    }
}

fn the_buffer_is_kept_until_the_completion(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let releases: Arc<Releases> = Arc::default();
    let (sender, receiver) = channel();
    let buffer = slot(4096, &releases);
    if engine.name() == "io_uring" {
        let Stalled { mut writer, file } = Stalled::new();
        engine.submit(vec![request(
            Direction::Read,
            &file,
            0,
            &buffer,
            (0, 4096),
            &sender,
        )]);
        drop((buffer, file));
        writer.write_all(&[1; 4000]).unwrap();
        assert_eq!((releases.count(), engine.queue_depth()), (0, 1));
        writer.write_all(&[2; 96]).unwrap();
    } else {
        let open_gate = stall(&*engine, settings);
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(4096).unwrap();
        engine.submit(vec![request(
            Direction::Read,
            &file,
            0,
            &buffer,
            (0, 4096),
            &sender,
        )]);
        drop((buffer, file));
        assert_eq!((releases.count(), engine.queue_depth()), (0, 1));
        open_gate();
    }
    drop(sender);
    let (guard, result) = next(&receiver);
    result.unwrap();
    assert_eq!(releases.count(), 0);
    drop(guard);
    assert_eq!(releases.count(), 1);
}

fn memory_that_nobody_uses_is_let_go(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let file = Arc::new(tempfile::tempfile().unwrap());
    let mut previous = std::sync::Weak::new();
    for number in 0..4 {
        let buffer = slot(3 << 20, &Arc::default());
        transfer(&*engine, Direction::Write, &file, 0, &buffer, (0, 4096)).unwrap();
        transfer(&*engine, Direction::Write, &file, 0, &buffer, (2 << 20, 4096)).unwrap();
        assert!(previous.upgrade().is_none(), "arena before {number}");
        previous = Arc::downgrade(buffer.arena());
    }
    drop(engine);
    assert!(previous.upgrade().is_none());
}

fn a_full_queue_is_busy(settings: &IoSettings) {
    let settings = &IoSettings {
        queue_limit: 3,
        ..settings.clone()
    };
    let Some(engine) = engine(settings) else { return };
    let open_gate = stall(&*engine, settings);
    let file = Arc::new(tempfile::tempfile().unwrap());
    let releases: Arc<Releases> = Arc::default();
    let (sender, receiver) = channel();
    let batch = (0..8).map(|_| {
        request(
            Direction::Write,
            &file,
            0,
            &slot(4096, &releases),
            (0, 4096),
            &sender,
        )
    });
    engine.submit(batch.collect());
    let refused: Vec<Outcome> = receiver.try_iter().collect();
    assert_eq!(refused.len(), 5);
    assert!(
        refused
            .iter()
            .all(|(_, result)| result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Busy))
    );
    assert_eq!(engine.queue_depth(), 3);
    open_gate();
    for _ in 0..3 {
        next(&receiver).1.unwrap();
    }
    drop(refused);
    assert_eq!((engine.queue_depth(), releases.count()), (0, 8));
}

fn shutdown_awaits_what_is_in_flight_and_cancels_the_rest(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let open_gate = stall(&*engine, settings);
    let file = Arc::new(tempfile::tempfile().unwrap());
    let releases: Arc<Releases> = Arc::default();
    let (sender, receiver) = channel();
    engine.submit(vec![request(
        Direction::Write,
        &file,
        0,
        &slot(4096, &releases),
        (0, 4096),
        &sender,
    )]);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| engine.shutdown());
        assert_eq!(next(&receiver).1.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(!stopping.is_finished());
        open_gate();
    });
    engine.submit(vec![request(
        Direction::Write,
        &file,
        0,
        &slot(4096, &releases),
        (0, 4096),
        &sender,
    )]);
    assert_eq!(next(&receiver).1.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!((engine.queue_depth(), releases.count()), (0, 2));
    engine.shutdown();
}

fn a_completion_may_submit_and_shut_down(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let file = Arc::new(tempfile::tempfile().unwrap());
    let (sender, receiver) = channel();
    let second = request(
        Direction::Write,
        &file,
        4096,
        &slot(4096, &Arc::default()),
        (0, 4096),
        &sender,
    );
    let mut first = request(
        Direction::Write,
        &file,
        0,
        &slot(4096, &Arc::default()),
        (0, 4096),
        &sender,
    );
    let again = Arc::clone(&engine);
    first.completion = Box::new(move |_, _| again.submit(vec![second]));
    engine.submit(vec![first]);
    next(&receiver).1.unwrap();

    let mut last = request(
        Direction::Write,
        &file,
        0,
        &slot(4096, &Arc::default()),
        (0, 4096),
        &sender,
    );
    let again = Arc::clone(&engine);
    let (done, finished) = channel();
    last.completion = Box::new(move |_, _| {
        again.shutdown();
        drop(again); // possibly the last one, on the engine's own thread
        done.send(()).unwrap();
    });
    engine.submit(vec![last]);
    drop(engine);
    finished.recv_timeout(PATIENCE).unwrap();
}

fn a_panicking_completion_hurts_nobody(settings: &IoSettings) {
    let Some(engine) = engine(settings) else { return };
    let file = Arc::new(tempfile::tempfile().unwrap());
    let buffer = slot(4096, &Arc::default());
    for _ in 0..2 * settings.psync_threads {
        let (sender, receiver) = channel::<Outcome>();
        let mut request = request(Direction::Write, &file, 0, &buffer, (0, 4096), &sender);
        request.completion = Box::new(move |_, _| {
            let _gone_with_the_panic = sender;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        engine.submit(vec![request]);
        receiver.recv_timeout(PATIENCE).unwrap_err();
    }
    transfer(&*engine, Direction::Write, &file, 0, &buffer, (0, 4096)).unwrap();
    let mut written = Vec::new();
    (&*file).read_to_end(&mut written).unwrap();
    assert_eq!(written, vec![0; 4096]);
}
