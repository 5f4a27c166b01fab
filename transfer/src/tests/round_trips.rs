//! Every byte arrives where it belongs, and no other changes.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{ErrorKind, Runtime};

use super::rig::{
    Rig, asking, contents, listening, over, over_each_transport_here, pattern, pause, shortly, soon,
};

use crate::{EngineSettings, Rights, TransferEntry, TransferKind, TransportKind};

over_each_transport_here! {
    all_sizes_go_both_ways,
    the_checksum_that_is_told_is_that_of_the_bytes,
    batches_of_odd_sizes_go_both_ways_over_any_number_of_streams,
    threads_that_wait_at_once_each_get_their_own_bytes,
    transfers_go_on_while_nobody_waits,
    cancel_leaves_local_memory_alone_and_the_connection_works_on,
    a_transfer_past_its_deadline_is_over,
    entries_outside_are_refused_before_anything_moves,
    too_many_operations_are_refused_as_busy,
    memory_of_the_callers_own_is_granted_by_address_where_that_is_allowed,
}

const MIB: u64 = 1 << 20;

fn all_sizes_go_both_ways(transport: TransportKind) {
    let rig = Rig::over(transport, 40 << 20);
    let sizes = [
        1,
        15,
        63,
        64,
        65,
        127,
        4095,
        4096,
        4097,
        32 << 10,
        65_535,
        65_536,
        65_537,
        MIB - 1,
        MIB,
        MIB + 1,
        3 * MIB + 7,
        16 * MIB,
        16 * MIB + 13,
    ];
    for (index, size) in sizes.into_iter().enumerate() {
        let at = index as u64 * 3 + 1;
        let bytes = pattern(size as usize, size);
        rig.remote.write(0, &vec![0xAA; size as usize + 256]).unwrap();
        rig.local.write(at, &bytes).unwrap();
        rig.run(TransferKind::Write, vec![rig.entry(at, at + 7, size)])
            .unwrap();
        let there = contents(&rig.remote, 0, size as usize + 256);
        let (from, to) = (at as usize + 7, at as usize + 7 + size as usize);
        assert!(there[from..to] == bytes[..], "write of {size}");
        assert!(
            there[..from].iter().chain(&there[to..]).all(|byte| *byte == 0xAA),
            "around a write of {size}"
        );

        rig.local.write(0, &vec![0xBB; size as usize + 256]).unwrap();
        rig.run(TransferKind::Read, vec![rig.entry(at + 3, at + 7, size)])
            .unwrap();
        let here = contents(&rig.local, 0, size as usize + 256);
        let (from, to) = (at as usize + 3, at as usize + 3 + size as usize);
        assert!(here[from..to] == bytes[..], "read of {size}");
        assert!(
            here[..from].iter().chain(&here[to..]).all(|byte| *byte == 0xBB),
            "around a read of {size}"
        );
    }
}

/// Entries of many sizes at places that don't overlap, as (local, remote, length).
fn scattered(count: u64, most: u64) -> Vec<(u64, u64, u64)> {
    let mut at = 0;
    (0..count)
        .map(|index| {
            let length = 1 + (index * 7919 + index * index * 31) % most;
            let here = at;
            at += length + index % 5;
            (here, here + 3, length)
        })
        .collect()
}

fn batches_of_odd_sizes_go_both_ways_over_any_number_of_streams(transport: TransportKind) {
    for streams in [1, 2, 5] {
        let settings = EngineSettings {
            streams_per_peer: streams,
            ..over(transport, asking())
        };
        let rig = Rig::with(
            64 << 20,
            EngineSettings {
                reactors: 2,
                ..over(transport, listening())
            },
            settings,
        );
        for (count, most) in [
            (1, 10),
            (2, 3 * MIB),
            (128, 4096),
            (128, 50_000),
            (500, 300),
            (33, MIB + 999),
        ] {
            let places = scattered(count, most);
            let entries = || -> Vec<TransferEntry> {
                places
                    .iter()
                    .map(|(here, there, length)| rig.entry(*here, *there, *length))
                    .collect()
            };
            let bytes = pattern(24 << 20, count * most);
            rig.local.write(0, &bytes).unwrap();
            rig.run(TransferKind::Write, entries()).unwrap();
            rig.local.write(0, &vec![0; 24 << 20]).unwrap();
            rig.run(TransferKind::Read, entries()).unwrap();
            let (here, there) = (
                contents(&rig.local, 0, 24 << 20),
                contents(&rig.remote, 0, 25 << 20),
            );
            for (local, remote, length) in &places {
                let expected = &bytes[*local as usize..(*local + *length) as usize];
                assert!(here[*local as usize..][..*length as usize] == *expected);
                assert!(there[*remote as usize..][..*length as usize] == *expected);
            }
        }
    }
}

fn threads_that_wait_at_once_each_get_their_own_bytes(transport: TransportKind) {
    let rig = Arc::new(Rig::over(transport, 8 << 20));
    let bytes = pattern(8 << 20, 5);
    rig.remote.write(0, &bytes).unwrap();
    let bytes = Arc::new(bytes);
    let threads: Vec<_> = (0..8u64)
        .map(|thread| {
            let (rig, bytes) = (rig.clone(), bytes.clone());
            let body = move || {
                for round in 0..200u64 {
                    let length = if round % 50 == 0 {
                        300_000
                    } else {
                        1 + (round * 97) % 9000
                    };
                    let from = (thread * 1_000_003 + round * 4_001) % ((8 << 20) - 300_000);
                    let to = thread * MIB;
                    rig.run(TransferKind::Read, vec![rig.entry(to, from, length)])
                        .unwrap();
                    let here = contents(&rig.local, to, length as usize);
                    assert!(
                        here == bytes[from as usize..][..length as usize],
                        "thread {thread} round {round}"
                    );
                }
            };
            Runtime::system().spawner.spawn("reader", Box::new(body)).unwrap()
        })
        .collect();
    threads
        .into_iter()
        .for_each(kvstored_core::runtime::ThreadHandle::join);
    let rows = rig.client.counters();
    assert_eq!(rows.iter().map(|row| row.reads).sum::<u64>(), 1600);
}

fn transfers_go_on_while_nobody_waits(transport: TransportKind) {
    let rig = Rig::over(transport, 32 << 20);
    rig.remote.write(0, &pattern(32 << 20, 1)).unwrap();
    let transfers: Vec<_> = (0..32)
        .map(|index| {
            rig.submit(TransferKind::Read, vec![rig.entry(index * MIB, index * MIB, MIB)])
                .unwrap()
        })
        .collect();
    for transfer in transfers.iter().rev() {
        transfer.wait(soon()).unwrap();
        transfer.wait(soon()).unwrap();
    }
    assert!(contents(&rig.local, 0, 32 << 20) == pattern(32 << 20, 1));
    // one that is only ever asked how far it is
    let transfer = rig
        .submit(TransferKind::Read, vec![rig.entry(0, MIB, 100)])
        .unwrap();
    super::rig::eventually("a polled transfer ends", || transfer.poll().is_some());
    transfer.poll().unwrap().unwrap();
    // and one whose handle is dropped
    rig.local.write(0, &vec![0x44; 4 << 20]).unwrap();
    drop(
        rig.submit(TransferKind::Write, vec![rig.entry(0, 0, 4 * MIB)])
            .unwrap(),
    );
    super::rig::eventually("a forgotten transfer ends", || {
        contents(&rig.remote, 4 * MIB - 1, 1) == [0x44]
    });
}

fn cancel_leaves_local_memory_alone_and_the_connection_works_on(transport: TransportKind) {
    let rig = Rig::over(transport, 24 << 20);
    rig.remote.write(0, &vec![0x11; 24 << 20]).unwrap();
    for kind in [TransferKind::Read, TransferKind::Write] {
        for round in 0..10 {
            let transfer = rig.submit(kind, vec![rig.entry(0, 0, 24 << 20)]).unwrap();
            pause(Duration::from_millis(round));
            transfer.cancel();
            let outcome = transfer.poll().expect("a cancelled transfer is over");
            rig.local.write(0, &vec![0x22; 24 << 20]).unwrap();
            if let Err(error) = outcome {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
            }
            pause(Duration::from_millis(20));
            assert!(contents(&rig.local, 0, 24 << 20).iter().all(|byte| *byte == 0x22));
        }
    }
    rig.check();
    rig.client.unregister(rig.local.id(), soon()).unwrap();
}

fn a_transfer_past_its_deadline_is_over(transport: TransportKind) {
    let rig = Rig::over(transport, 64 << 20);
    let entries = vec![rig.entry(0, 0, 64 << 20)];
    let transfer = rig
        .client
        .submit(&rig.peer, TransferKind::Read, entries, shortly())
        .unwrap();
    match transfer.wait(soon()) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut),
    }
    assert!(transfer.poll().is_some());
    rig.client.unregister(rig.local.id(), soon()).unwrap();
}

fn entries_outside_are_refused_before_anything_moves(transport: TransportKind) {
    let rig = Rig::over(transport, 8192);
    for (local, remote, length) in [
        (0, 0, 0),
        (0, 0, 8193),
        (8192, 0, 1),
        (0, 8192, 1),
        (1, u64::MAX, 1),
        (u64::MAX, 0, 1),
        (0, 1, u64::MAX),
        (1, 0, u64::MAX),
        (u64::MAX, u64::MAX, u64::MAX),
    ] {
        let error = rig
            .run(TransferKind::Read, vec![rig.entry(local, remote, length)])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{local} {remote} {length}");
    }
    rig.run(TransferKind::Read, Vec::new()).unwrap();
    rig.check();
}

fn too_many_operations_are_refused_as_busy(transport: TransportKind) {
    let settings = EngineSettings {
        queue_depth: 4,
        ..over(transport, asking())
    };
    let rig = Rig::with(8 << 20, over(transport, listening()), settings);
    let entries = vec![rig.entry(0, 0, 8 << 20)];
    assert_eq!(
        rig.run(TransferKind::Read, entries).unwrap_err().kind(),
        ErrorKind::Busy
    );
    rig.run(TransferKind::Read, vec![rig.entry(0, 0, 4 << 20)])
        .unwrap();
}

fn memory_of_the_callers_own_is_granted_by_address_where_that_is_allowed(transport: TransportKind) {
    let rig = Rig::over(transport, 4096);
    let mut theirs = vec![9u8; 100_000];
    let address = theirs.as_mut_ptr();
    // SAFETY: `theirs` outlives the registration and isn't touched while it lasts.
    #[allow(unsafe_code)]
    let region = unsafe { rig.server.register(address, 100_000) }.unwrap();
    let ask = |offset: u64, length| {
        rig.peer
            .grant_by_address(address as u64 + offset, length, Rights::ReadWrite, soon())
    };
    assert_eq!(ask(0, 10).unwrap_err().kind(), ErrorKind::PermissionDenied);
    rig.server.allow_registered(true);
    for (offset, length) in [
        (0, 100_001),
        (99_999, 2),
        (100_000, 1),
        (u64::MAX, 2),
        (0, u64::MAX),
    ] {
        let address = (address as u64).wrapping_add(offset);
        let wrong = rig.peer.grant_by_address(address, length, Rights::Read, soon());
        assert_eq!(
            wrong.unwrap_err().kind(),
            ErrorKind::NotFound,
            "{offset} {length}"
        );
    }
    let grant = ask(10, 1000).unwrap();
    rig.local.write(0, &[3; 500]).unwrap();
    rig.run(TransferKind::Write, vec![rig.entry_with(grant, 0, 100, 500)])
        .unwrap();
    rig.run(TransferKind::Read, vec![rig.entry_with(grant, 1000, 0, 1000)])
        .unwrap();
    let here = contents(&rig.local, 1000, 1000);
    assert!(here[100..600].iter().all(|byte| *byte == 3) && here[600..].iter().all(|byte| *byte == 9));
    assert_eq!(
        rig.peer.first_registered(soon()).unwrap(),
        (rig.remote.address() as u64, 4096)
    );
    rig.server.unregister(region.id(), soon()).unwrap();
    assert!(theirs[110..610].iter().all(|byte| *byte == 3));
    assert_eq!(rig.refusal(TransferKind::Read, grant), ErrorKind::Fenced);
    assert_eq!(ask(10, 1000).unwrap_err().kind(), ErrorKind::NotFound);
}

fn the_checksum_that_is_told_is_that_of_the_bytes(transport: TransportKind) {
    let rig = Rig::over(transport, 8 << 20);
    let bytes = pattern(8 << 20, 4);
    rig.remote.write(0, &bytes).unwrap();
    // done at once, by one thread, and by several in turn
    for lengths in [&[1, 4096, 70_001][..], &[3 * MIB + 7, 5, 2 * MIB][..]] {
        for kind in [TransferKind::Read, TransferKind::Write] {
            let mut at = 0;
            let mut moved = Vec::new();
            let mut entries = Vec::new();
            for length in lengths {
                entries.push(rig.entry(at, at + 3, *length));
                let from = at as usize + if kind == TransferKind::Read { 3 } else { 0 };
                let source = if kind == TransferKind::Read {
                    bytes.clone()
                } else {
                    contents(&rig.local, 0, 8 << 20)
                };
                moved.extend_from_slice(&source[from..from + *length as usize]);
                at += length + 11;
            }
            let asked = rig.client.submit_summed(&rig.peer, kind, &entries, soon());
            let transfer = asked.unwrap();
            assert_eq!(transfer.tells_checksum(), transport == TransportKind::Shm);
            transfer.wait(soon()).unwrap();
            let expected =
                (transport == TransportKind::Shm).then(|| kvstored_core::checksum::checksum(&moved));
            assert_eq!(transfer.checksum(), expected, "{kind:?} of {lengths:?}");
            let plain = rig.submit(kind, entries).unwrap();
            plain.wait(soon()).unwrap();
            assert_eq!(plain.checksum(), None);
            rig.remote.write(0, &bytes).unwrap();
        }
    }
}
