//! Messages and descriptors.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;

use kvstored_core::ErrorKind;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::child::{clock, command, late, listener, soon};
use crate::socket::{MAX_DESCRIPTORS, MAX_MESSAGE_BYTES};
use crate::{Channel, Listener, SharedMemory, Sharing, SocketAddress};

fn pair() -> (Channel, Channel) {
    let listener = listener();
    let one = Channel::connect(listener.address(), clock(), late()).unwrap();
    (one, listener.accept(late()).unwrap())
}

#[test]
fn messages_keep_their_bounds_and_descriptors_their_order() {
    let (one, other) = pair();
    assert_eq!(one.peer().pid as u32, std::process::id());
    assert_eq!(other.peer(), one.peer());
    assert!(other.try_receive().unwrap().is_none());
    let memories: Vec<_> = (0..MAX_DESCRIPTORS)
        .map(|index| SharedMemory::new("test", (index + 1) * 4096, Sharing::ReadWrite).unwrap())
        .collect();
    let descriptors: Vec<_> = memories.iter().map(SharedMemory::descriptor).collect();
    let most = vec![5; MAX_MESSAGE_BYTES];
    one.send(b"first", &[], late()).unwrap();
    one.send(&most, &descriptors, late()).unwrap();
    one.send(b"last", &descriptors[3..4], late()).unwrap();
    assert_eq!(other.receive(late()).unwrap().bytes, b"first");
    let message = other.receive(late()).unwrap();
    assert!(message.bytes == most);
    let lengths = message
        .descriptors
        .iter()
        .map(|file| rustix::fs::fstat(file).unwrap().st_size);
    assert!(lengths.eq((1..=MAX_DESCRIPTORS as i64).map(|pages| pages * 4096)));
    let flags = rustix::io::fcntl_getfd(&message.descriptors[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    assert_eq!(other.receive(late()).unwrap().descriptors.len(), 1);
    assert_eq!(other.receive(soon()).unwrap_err().kind(), ErrorKind::TimedOut);
    drop(one);
    assert_eq!(other.receive(late()).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(
        other.send(b"x", &[], late()).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[test]
fn messages_past_the_limits_are_refused_on_both_sides() {
    let (one, other) = pair();
    let memory = SharedMemory::new("test", 4096, Sharing::ReadWrite).unwrap();
    let many = [memory.descriptor(); MAX_DESCRIPTORS + 1];
    let kind = |bytes: &[u8], descriptors: &[BorrowedFd<'_>]| {
        one.send(bytes, descriptors, late()).unwrap_err().kind()
    };
    assert_eq!(kind(b"", &[]), ErrorKind::InvalidInput);
    assert_eq!(kind(&[1; MAX_MESSAGE_BYTES + 1], &[]), ErrorKind::TooLarge);
    assert_eq!(kind(b"x", &many), ErrorKind::TooLarge);
    // a peer that doesn't keep to them
    let send = |bytes: &[u8], descriptors: &[BorrowedFd<'_>]| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(
            one.as_fd(),
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .unwrap();
    };
    send(b"x", &[memory.descriptor(); 64]);
    send(&[1; 3 * MAX_MESSAGE_BYTES], &many[..2]);
    send(b"fine", &many[..1]);
    for _ in 0..2 {
        assert_eq!(other.receive(late()).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(other.receive(late()).unwrap().bytes, b"fine");
}

#[test]
fn a_peer_that_does_not_read_or_accept_is_timed_out() {
    let (one, other) = pair();
    let error = (0..100_000)
        .find_map(|_| one.send(&[1; MAX_MESSAGE_BYTES], &[], soon()).err())
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(other.receive(late()).unwrap().bytes.len(), MAX_MESSAGE_BYTES);
    let listener = listener();
    assert_eq!(listener.accept(soon()).unwrap_err().kind(), ErrorKind::TimedOut);
    let mut waiting = Vec::new();
    let error = loop {
        match Channel::connect(listener.address(), clock(), soon()) {
            Ok(channel) => waiting.push(channel),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(waiting.len() >= 64);
    let address = listener.address().clone();
    drop(listener);
    let error = Channel::connect(&address, clock(), late()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn a_socket_in_the_file_system_is_private_and_replaced_once_abandoned() {
    let parent = tempfile::tempdir().unwrap();
    let address = SocketAddress::File(parent.path().join("sockets/one"));
    let listener = Listener::bind(address.clone(), clock()).unwrap();
    let error = Listener::bind(address.clone(), clock()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let one = Channel::connect(&address, clock(), late()).unwrap();
    one.send(b"x", &[], late()).unwrap();
    // the attempt to bind looked whether somebody listens
    let first = listener.accept(late()).unwrap();
    assert_eq!(first.receive(late()).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(
        listener.accept(late()).unwrap().receive(late()).unwrap().bytes,
        b"x"
    );
    let SocketAddress::File(path) = &address else {
        unreachable!()
    };
    drop(listener);
    assert!(!path.exists());
    // what a killed process leaves behind
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(address.clone(), clock()).unwrap();
    drop(listener);
    // something else of the user's stays
    std::fs::write(path, b"mine").unwrap();
    let error = Listener::bind(address.clone(), clock()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(path.exists());
}

#[test]
fn another_users_process_is_refused_and_the_listener_goes_on() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can start another user's process");
        return;
    }
    let listener = listener();
    let Ok(mut stranger) = command(listener.address()).uid(65_534).gid(65_534).spawn() else {
        eprintln!("SKIPPED: another user can't run this program");
        return;
    };
    let refused = listener.accept(late());
    let _ = stranger.kill();
    let _ = stranger.wait();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
    let own = Channel::connect(listener.address(), clock(), late()).unwrap();
    own.send(b"x", &[], late()).unwrap();
    assert_eq!(
        listener.accept(late()).unwrap().receive(late()).unwrap().bytes,
        b"x"
    );
}
