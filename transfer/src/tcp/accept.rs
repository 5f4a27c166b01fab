//! Takes newcomers in.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvstored_core::{Error, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::channel::Channel;
use super::connection::Connection;
use super::gate::Gate;
use super::reactor::Reactor;
use crate::shared::Shared;

/// Newcomers that are taken in before others have their turn.
const AT_ONCE: usize = 64;
const BACKLOG: i32 = 1024;

/// A listening socket.
pub(crate) struct Listener {
    socket: OwnedFd,
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    reactors: Vec<Arc<Reactor>>,
    next: usize,
    /// Given up for a moment where there are no more descriptors, so that the newcomer can be turned away.
    spare: Option<OwnedFd>,
}

fn failed(what: &str, address: SocketAddr, errno: Errno) -> Error {
    Error::from_io(errno.into(), format!("{what} failed")).with("address", address)
}

/// A new socket for an address, which never blocks.
pub(super) fn socket_for(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None)
}

fn spare() -> Option<OwnedFd> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok()
}

impl Listener {
    /// Listens. Returns where, with the port that was taken.
    pub fn bind(address: SocketAddr, shared: &Arc<Shared>, gate: &Arc<Gate>) -> Result<(Self, SocketAddr)> {
        let socket = socket_for(address).map_err(|errno| failed("socket", address, errno))?;
        sockopt::set_socket_reuseaddr(&socket, true)
            .map_err(|errno| failed("SO_REUSEADDR", address, errno))?;
        rustix::net::bind(&socket, &address).map_err(|errno| failed("bind", address, errno))?;
        rustix::net::listen(&socket, BACKLOG).map_err(|errno| failed("listen", address, errno))?;
        let bound =
            rustix::net::getsockname(&socket).map_err(|errno| failed("getsockname", address, errno))?;
        let bound = SocketAddr::try_from(bound).map_err(|errno| failed("getsockname", address, errno))?;
        let listener = Self {
            socket,
            shared: shared.clone(),
            gate: gate.clone(),
            reactors: Vec::new(),
            next: 0,
            spare: spare(),
        };
        Ok((listener, bound))
    }

    /// Spreads newcomers over these.
    pub fn spread_over(&mut self, reactors: &[Arc<Reactor>]) {
        self.reactors = reactors.to_vec();
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes in who waits. Never fails: what's wrong with one newcomer is no other's business.
    pub fn accept(&mut self, now: u64) {
        for _ in 0..AT_ONCE {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    if let Err(error) = self.take_in(socket, now) {
                        tracing::debug!(%error, "a connection wasn't taken in");
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(Errno::MFILE | Errno::NFILE) => self.make_room(),
                Err(_) => return,
            }
        }
    }

    /// Too many descriptors are open: somebody in its handshake goes, or the newcomer itself.
    fn make_room(&mut self) {
        if self.gate.turn_out_oldest() && self.spare.is_some() {
            return;
        }
        if self.spare.take().is_some() {
            // closed at once, so that it doesn't stay in the queue and keep the listening socket ready
            drop(rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC));
        }
        self.spare = spare();
    }

    fn take_in(&mut self, socket: OwnedFd, now: u64) -> Result<()> {
        sockopt::set_tcp_nodelay(&socket, true)
            .map_err(|errno| Error::from_io(errno.into(), "TCP_NODELAY failed"))?;
        let tls = self.shared.tls.as_ref().map(super::Tls::accept).transpose()?;
        self.next = (self.next + 1) % self.reactors.len().max(1);
        let Some(reactor) = self.reactors.get(self.next) else {
            return Err(Error::internal("nobody serves connections"));
        };
        let channel = Channel::new(socket, tls);
        let connection = Connection::accepted(channel, &self.shared, reactor, &self.gate);
        self.gate.enter(&connection, now);
        reactor.adopt(&connection);
        Ok(())
    }
}
