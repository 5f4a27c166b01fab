//! Takes connections.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::runtime::Clock;
use kvstored_core::{Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, bind, listen};

use super::address::{ensure_private, is_abandoned};
use super::channel::new_socket;
use super::{Channel, SocketAddress};
use crate::time::{os, ready};

/// Connections that wait to be taken.
const BACKLOG: i32 = 128;

/// A socket that takes connections. Readable, for an event loop (`AsFd`), when one waits.
pub struct Listener {
    socket: OwnedFd,
    address: SocketAddress,
    clock: Arc<dyn Clock>,
}

impl Listener {
    /// Listens. The directory of a socket in the file system is made if it isn't there, and must be this
    /// user's alone; a socket that a process left there which has gone is replaced.
    ///
    /// Fails with `AlreadyExists` where somebody listens, with `PermissionDenied` for a directory that others
    /// may enter, and with `InvalidInput` for a name that is empty or too long.
    pub fn bind(address: SocketAddress, clock: Arc<dyn Clock>) -> Result<Self> {
        let encoded = address.encode()?;
        let socket = new_socket()?;
        if let SocketAddress::File(path) = &address {
            ensure_private(path.parent().unwrap_or(Path::new("/")))?;
            if is_abandoned(path)? {
                std::fs::remove_file(path)
                    .map_err(|error| Error::from_io(error, "an abandoned socket can't be removed"))?;
            }
        }
        bind(&socket, &encoded).map_err(|errno| match errno {
            Errno::ADDRINUSE => {
                Error::new(ErrorKind::AlreadyExists, "somebody listens there").with("address", &address)
            }
            errno => os(errno, "bind").with("address", &address),
        })?;
        // made before `listen`, so that a socket which can't listen is removed from the file system
        let listener = Self {
            socket,
            address,
            clock,
        };
        listen(&listener.socket, BACKLOG).map_err(|errno| os(errno, "listen"))?;
        Ok(listener)
    }

    /// Where it listens, to be told to peers.
    pub fn address(&self) -> &SocketAddress {
        &self.address
    }

    /// A connection if one waits.
    ///
    /// Fails with `PermissionDenied` for a connection of another user, which is closed, and with `Busy` when
    /// this process is out of descriptors: the connection still waits then. The listener goes on in both
    /// cases.
    pub fn try_accept(&self) -> Result<Option<Channel>> {
        loop {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Channel::new(socket, self.clock.clone()).map(Some),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(os(errno, "accept")),
            }
        }
    }

    /// The next connection. Fails with `TimedOut`, and as [`Listener::try_accept`] does.
    pub fn accept(&self, deadline: Instant) -> Result<Channel> {
        loop {
            if let Some(channel) = self.try_accept()? {
                return Ok(channel);
            }
            if !ready(&self.socket, PollFlags::IN, &*self.clock, deadline)? {
                return Err(Error::new(ErrorKind::TimedOut, "nobody connected"));
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let SocketAddress::File(path) = &self.address {
            // somebody may have removed it already
            let _ = std::fs::remove_file(path);
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Listener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
