//! Transports behind the interface: one in C, and what's wrong with it.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use kvstored_core::transport::{Exposure, Move, MoveDirection, RawConnection};
use kvstored_core::{ErrorKind, MemoryTransport, Result};
use kvstored_plugin_host::PluginTransport;

use crate::support::{Directory, PATIENCE, plugins};

fn open(flags: &[&str]) -> Result<Arc<PluginTransport>> {
    let directory = Directory::new();
    let source = plugins().join("abi/tests/plugin/transport.c");
    directory.compile(&source, "here", flags);
    directory.list();
    directory.open_transport("here", &[])
}

/// Moves 64 bytes within this process.
fn submit(
    transport: &PluginTransport,
    connection: RawConnection,
    direction: MoveDirection,
    local: &mut [u8; 64],
    remote: &mut [u8; 64],
) -> Receiver<Result<()>> {
    let (sender, heard) = channel();
    let moves = [0, 32].map(|at| Move {
        local: local.as_mut_ptr().expose_provenance() as u64 + at,
        remote: remote.as_mut_ptr().expose_provenance() as u64 + at,
        bytes: 32,
    });
    let done = Box::new(move |result| sender.send(result).unwrap());
    // SAFETY: the memory is there until the answer; this transport needs no registration.
    unsafe { transport.submit(connection, direction, &moves, done) };
    heard
}

#[test]
fn a_transport_in_c_moves_both_ways() {
    let transport = open(&[]).unwrap();
    assert_eq!(
        (transport.name(), transport.address().unwrap()),
        ("here", b"here".to_vec())
    );
    assert!(transport.facts().is_transport);
    let error = transport.connect(b"away", PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("said in C"), "{error}");
    let (mut local, mut remote) = ([1; 64], [2; 64]);
    let base = local.as_mut_ptr().expose_provenance();
    // SAFETY: it's unregistered before the memory goes.
    let memory = unsafe { transport.register(base, 64, Exposure::Own) }.unwrap();
    let connection = transport.connect(b"here", PATIENCE).unwrap();
    let heard = submit(
        &transport,
        connection,
        MoveDirection::FromPeer,
        &mut local,
        &mut remote,
    );
    heard.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(local, [2; 64]);
    local = [3; 64];
    let heard = submit(
        &transport,
        connection,
        MoveDirection::ToPeer,
        &mut local,
        &mut remote,
    );
    heard.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(remote, [3; 64]);
    // SAFETY: both are there.
    unsafe {
        transport.unregister(memory).unwrap();
        transport.disconnect(connection).unwrap();
    }
}

#[test]
fn what_fails_or_is_short_is_told_and_goes_on() {
    for (flag, kind) in [
        ("-DFAULT_FAILS", ErrorKind::Io),
        ("-DFAULT_SHORT", ErrorKind::Io),
        ("-DFAULT_REFUSES", ErrorKind::Busy),
    ] {
        let transport = open(&[flag]).unwrap();
        let connection = transport.connect(b"here", PATIENCE).unwrap();
        for _ in 0..2 {
            let (mut local, mut remote) = ([1; 64], [2; 64]);
            let heard = submit(
                &transport,
                connection,
                MoveDirection::ToPeer,
                &mut local,
                &mut remote,
            );
            let error = heard.recv_timeout(PATIENCE).unwrap().unwrap_err();
            assert_eq!(error.kind(), kind, "{flag}");
        }
        // SAFETY: it's there.
        unsafe { transport.disconnect(connection) }.unwrap();
    }
}

#[test]
fn a_transport_that_breaks_the_contract_is_asked_nothing_more() {
    for flag in ["-DFAULT_STATUS", "-DFAULT_MORE", "-DFAULT_TWICE"] {
        let transport = open(&[flag]).unwrap();
        let connection = transport.connect(b"here", PATIENCE).unwrap();
        let (mut local, mut remote) = ([1; 64], [2; 64]);
        let heard = submit(
            &transport,
            connection,
            MoveDirection::ToPeer,
            &mut local,
            &mut remote,
        );
        // nobody is told that the memory is free
        assert_eq!(heard.try_recv().is_ok(), flag == "-DFAULT_TWICE", "{flag}");
        assert!(transport.connect(b"here", PATIENCE).is_err(), "{flag}");
        // SAFETY: it's there.
        assert!(unsafe { transport.disconnect(connection) }.is_err(), "{flag}");
        let heard = submit(
            &transport,
            connection,
            MoveDirection::ToPeer,
            &mut local,
            &mut remote,
        );
        let error = heard.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{flag}");
    }
}

#[test]
fn a_connection_that_ends_and_leaves_batches_is_a_breach() {
    let transport = open(&["-DFAULT_LEAVES"]).unwrap();
    let connection = transport.connect(b"here", PATIENCE).unwrap();
    let (mut local, mut remote) = ([1; 64], [2; 64]);
    let heard = submit(
        &transport,
        connection,
        MoveDirection::ToPeer,
        &mut local,
        &mut remote,
    );
    // SAFETY: it's there.
    assert!(unsafe { transport.disconnect(connection) }.is_err());
    assert!(heard.try_recv().is_err());
    assert!(transport.connect(b"here", PATIENCE).is_err());
}

#[test]
fn a_table_or_an_answer_that_cannot_be_is_refused() {
    let error = open(&["-DFAULT_LACKS"]).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(open(&["-DFAULT_ADDRESS"]).unwrap().address().is_err());
    assert!(
        open(&["-DFAULT_HANDLE"])
            .unwrap()
            .connect(b"here", PATIENCE)
            .is_err()
    );
    let directory = Directory::new();
    directory.copy_memory();
    directory.list();
    let error = directory.open_transport("memory", &[]).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
