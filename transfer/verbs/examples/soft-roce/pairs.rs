//! The objects below links: windows, keys, queue pairs.

use std::time::{Duration, Instant};

use kvstored_core::{ErrorKind, Result};
use kvstored_verbs::{Buffer, Channel, Domain, Exposure, Finished, Remote, Route, Success, Window, Work};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::rig::{FAR, Rig, bytes, part, pattern, whole};

/// Two connected queue pairs.
pub fn connected(rig: &Rig) -> [Channel<u32>; 2] {
    let make = || Channel::new(rig.nic.domain(), rig.nic.number(), 16, 16).unwrap();
    let pair = [make(), make()];
    for (own, other) in [(0, 1), (1, 0)] {
        pair[own]
            .connect(&route(rig, pair[other].number(), 7, 7))
            .unwrap();
    }
    pair
}

pub fn route(rig: &Rig, number: u32, own_psn: u32, psn: u32) -> Route {
    Route {
        port: rig.nic.number(),
        own_gid: rig.nic.gid().map(|gid| gid.index),
        gid: rig.nic.gid().map_or([0; 16], |gid| gid.bytes),
        lid: rig.nic.port().lid,
        number,
        own_psn,
        psn,
        mtu: rig.nic.port().mtu,
        reads_in: 16,
        reads_out: 16,
        timeout: 12,
    }
}

/// Sleeps until the next completion.
pub fn next(channel: &mut Channel<u32>) -> (u32, Result<Success>) {
    let mut finished: Vec<Finished<u32>> = Vec::new();
    let deadline = Instant::now() + FAR;
    loop {
        channel.completions().take_events();
        channel.completions().arm().unwrap();
        channel.poll(&mut finished).unwrap();
        if let Some(first) = finished.pop() {
            assert!(finished.is_empty(), "one at a time");
            return (first.token, first.outcome);
        }
        assert!(Instant::now() < deadline, "a completion never came");
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        poll(
            &mut [PollFd::new(channel.completions(), PollFlags::IN)],
            Some(&second),
        )
        .unwrap();
    }
}

fn done(channel: &mut Channel<u32>, token: u32) {
    let (finished, outcome) = next(channel);
    outcome.unwrap_or_else(|error| panic!("request {token}: {error}"));
    assert_eq!(finished, token);
}

fn write(channel: &mut Channel<u32>, from: &Buffer, address: u64, key: u32, token: u32) {
    let work = Work::Write {
        from: part(from, 0, 4096),
        to: Remote { address, key },
    };
    channel.post(work, token).unwrap();
}

struct Bound {
    memory: Buffer,
    window: Window,
    key: u32,
}

/// The second end exposes the middle of 12 KiB.
fn expose(rig: &Rig, end: &mut Channel<u32>, exposure: Exposure) -> Bound {
    let memory = rig.buffer(3 * 4096);
    let mut window = Window::new(rig.nic.domain()).unwrap();
    let key = end
        .bind(&mut window, &part(&memory, 4096, 4096), exposure, 1)
        .unwrap();
    done(end, 1);
    Bound { memory, window, key }
}

pub fn windows(rig: &Rig) {
    let source = rig.buffer(4096);
    source.write(0, &pattern(1, 4096)).unwrap();
    // inside, it works, for one direction; and after the key was made worthless, no more
    let [mut left, mut right] = connected(rig);
    let bound = expose(rig, &mut right, Exposure::Writable);
    let middle = bound.memory.registration().address() + 4096;
    write(&mut left, &source, middle, bound.key, 2);
    done(&mut left, 2);
    assert_eq!(bytes(&bound.memory, 4096, 4096), pattern(1, 4096));
    right.post(Work::Invalidate { key: bound.key }, 3).unwrap();
    done(&mut right, 3);
    write(&mut left, &source, middle, bound.key, 4);
    assert_eq!(next(&mut left).1.unwrap_err().kind(), ErrorKind::PermissionDenied);
    drop((bound.window, left, right));
    // outside, it doesn't; soft-RoCE looks at the registration only
    let outside: &[u64] = if rig.nic.device().name().starts_with("rxe") {
        println!("  soft-RoCE doesn't keep to a window's range, which isn't checked");
        &[3 * 4096, 2 * 4096 + 1]
    } else {
        &[0, 4095, 4097, 8192, 3 * 4096]
    };
    for offset in outside {
        let [mut left, mut right] = connected(rig);
        let bound = expose(rig, &mut right, Exposure::Writable);
        let address = bound.memory.registration().address() + offset;
        write(&mut left, &source, address, bound.key, 2);
        let kind = next(&mut left).1.unwrap_err().kind();
        assert_eq!(kind, ErrorKind::PermissionDenied, "at {offset}");
        assert_eq!(bytes(&bound.memory, 0, 3 * 4096), vec![0; 3 * 4096]);
        // windows go before the queue pair that they are bound to
        drop(bound.window);
    }
    // and not in the other direction, nor through another queue pair
    let [mut left, mut right] = connected(rig);
    let bound = expose(rig, &mut right, Exposure::Readable);
    let [mut third, fourth] = connected(rig);
    write(
        &mut third,
        &source,
        bound.memory.registration().address() + 4096,
        bound.key,
        2,
    );
    assert!(next(&mut third).1.is_err());
    write(
        &mut left,
        &source,
        bound.memory.registration().address() + 4096,
        bound.key,
        2,
    );
    assert_eq!(next(&mut left).1.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(bytes(&bound.memory, 0, 3 * 4096), vec![0; 3 * 4096]);
    drop((bound.window, fourth));
}

pub fn wrong_key(rig: &Rig) {
    let source = rig.buffer(4096);
    let [mut left, mut right] = connected(rig);
    let bound = expose(rig, &mut right, Exposure::Writable);
    write(
        &mut left,
        &source,
        bound.memory.registration().address() + 4096,
        bound.key ^ 0x00ff_0000,
        2,
    );
    let error = next(&mut left).1.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    write(
        &mut left,
        &source,
        bound.memory.registration().address() + 4096,
        bound.key,
        3,
    );
    let error = next(&mut left).1.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "flushed, not {error}");
    drop(bound.window);
    drop((left, right));
    let [mut left, mut right] = connected(rig);
    let bound = expose(rig, &mut right, Exposure::Readable);
    bound.memory.write(4096, &pattern(2, 4096)).unwrap();
    let from = Remote {
        address: bound.memory.registration().address() + 4096,
        key: bound.key,
    };
    let into = rig.buffer(4096);
    left.post(
        Work::Read {
            into: whole(&into),
            from,
        },
        4,
    )
    .unwrap();
    done(&mut left, 4);
    assert_eq!(bytes(&into, 0, 4096), pattern(2, 4096));
    drop(bound.window);
}

pub fn refusals(rig: &Rig) {
    let [mut left, _right] = connected(rig);
    let elsewhere = Domain::new(rig.nic.device()).unwrap();
    let foreign = Buffer::new(&elsewhere, 4096).unwrap();
    let refused = left
        .post(
            Work::Send {
                from: whole(&foreign),
            },
            9,
        )
        .unwrap_err();
    assert_eq!((refused.error.kind(), refused.token), (ErrorKind::Internal, 9));
    let own = rig.buffer(4096);
    for token in 0..16 {
        left.post_receive(whole(&own), token).unwrap();
    }
    let refused = left.post_receive(whole(&own), 16).unwrap_err();
    assert_eq!((refused.error.kind(), refused.token), (ErrorKind::Busy, 16));
    // what is posted keeps the memory, and all of it comes back when the queue pair fails
    drop(own);
    left.fail().unwrap();
    let mut finished = Vec::new();
    let deadline = Instant::now() + FAR;
    while finished.len() < 16 && Instant::now() < deadline {
        left.poll(&mut finished).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let tokens: Vec<u32> = finished.iter().map(|one| one.token).collect();
    assert_eq!(tokens, (0..16).collect::<Vec<_>>());
    assert!(finished.iter().all(|one| one.outcome.is_err()));
}
