//! A connection that carries messages and descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::runtime::Clock;
use kvstored_core::{Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

use super::{Credentials, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, SocketAddress};
use crate::process::{PeerProcess, StartTime};
use crate::time::{left, os, ready};

/// A message that came.
#[derive(Debug, Default)]
pub struct Message {
    /// Its bytes: at least one.
    pub bytes: Vec<u8>,
    /// Its descriptors, in the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
}

/// A connection to a process of the same user. Readable, for an event loop (`AsFd`), when a message waits or
/// the peer has gone. Methods may be called from any thread.
pub struct Channel {
    socket: OwnedFd,
    peer: Credentials,
    clock: Arc<dyn Clock>,
}

pub(super) fn new_socket() -> Result<OwnedFd> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|errno| os(errno, "socket"))
}

impl Channel {
    /// Connects to a listener.
    ///
    /// Fails with `NotFound` or `Unavailable` where nobody listens, with `PermissionDenied` where it's
    /// another user who does, and with `TimedOut` when the listener doesn't keep up.
    pub fn connect(address: &SocketAddress, clock: Arc<dyn Clock>, deadline: Instant) -> Result<Self> {
        let encoded = address.encode()?;
        let socket = new_socket()?;
        // a full queue of a Unix listener can't be polled for, so this waits in the call itself
        rustix::io::ioctl_fionbio(&socket, false).map_err(|errno| os(errno, "connect"))?;
        loop {
            // zero would mean for ever
            let timeout = left(&*clock, deadline).max(Duration::from_millis(1));
            set_socket_timeout(&socket, Timeout::Send, Some(timeout))
                .map_err(|errno| os(errno, "connect"))?;
            match connect(&socket, &encoded) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Error::new(ErrorKind::TimedOut, "connect")),
                Err(errno) => return Err(os(errno, "connect").with("address", address)),
            }
            if left(&*clock, deadline).is_zero() {
                return Err(Error::new(ErrorKind::TimedOut, "connect"));
            }
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(|errno| os(errno, "connect"))?;
        Self::new(socket, clock)
    }

    /// Fails with `PermissionDenied` for another user's process.
    pub(super) fn new(socket: OwnedFd, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self {
            peer: Credentials::of(&socket)?,
            socket,
            clock,
        })
    }

    /// Who is at the other end: the process that connected, or that listens.
    pub fn peer(&self) -> Credentials {
        self.peer
    }

    /// A handle to the process at the other end. `told` is the start time that it sent, if it has.
    ///
    /// Fails with `Unavailable` where it has exited, or isn't the one that started then, and with
    /// `Unsupported` where it isn't seen from this process's PID namespace.
    pub fn process(&self, told: Option<StartTime>) -> Result<PeerProcess> {
        self.peer.process(&self.socket, told)
    }

    /// Sends a message, whole or not at all. The descriptors stay the caller's too.
    ///
    /// Fails with `InvalidInput` for no bytes, with `TooLarge` past the limits, with `Unavailable` where the
    /// peer has gone, and with `TimedOut` where it doesn't read.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>], deadline: Instant) -> Result<()> {
        if bytes.is_empty() {
            return Err(Error::invalid("a message without bytes"));
        }
        if bytes.len() > MAX_MESSAGE_BYTES || descriptors.len() > MAX_DESCRIPTORS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a message of {} bytes and {} descriptors",
                    bytes.len(),
                    descriptors.len()
                ),
            ));
        }
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(Error::internal("no room for descriptors in a message"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(Error::internal("a message was sent in part")),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !ready(&self.socket, PollFlags::OUT, &*self.clock, deadline)? {
                        return Err(Error::new(ErrorKind::TimedOut, "the peer doesn't read messages"));
                    }
                }
                // too many descriptors of this user are in flight
                Err(Errno::TOOMANYREFS) => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        "too many descriptors are on their way",
                    ));
                }
                Err(errno) => return Err(os(errno, "message not sent")),
            }
        }
    }

    /// The next message.
    ///
    /// Fails with `Unavailable` once the peer has gone, with `InvalidInput` for a message past the limits,
    /// and with `TimedOut`.
    pub fn receive(&self, deadline: Instant) -> Result<Message> {
        loop {
            if let Some(message) = self.try_receive()? {
                return Ok(message);
            }
            if !ready(&self.socket, PollFlags::IN, &*self.clock, deadline)? {
                return Err(Error::new(ErrorKind::TimedOut, "no message came"));
            }
        }
    }

    /// The next message if there is one; otherwise as [`Channel::receive`].
    pub fn try_receive(&self) -> Result<Option<Message>> {
        let mut bytes = [0_u8; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = loop {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, &mut slices, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(os(errno, "message not received")),
            }
        };
        // collected first: whatever is wrong with the message, they are closed
        let mut message = Message::default();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                message.descriptors.extend(descriptors);
            }
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(Error::invalid(
                "a peer's message is past the limits, or out of descriptors",
            ));
        }
        if received.bytes == 0 {
            return Err(Error::new(ErrorKind::Unavailable, "the peer has gone"));
        }
        message.bytes = bytes.get(..received.bytes).unwrap_or_default().to_vec();
        Ok(Some(message))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Channel")
            .field("socket", &self.socket)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
