//! A socket, with TLS or without, that never blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kvstored_core::Result;
use parking_lot::Mutex;

use super::io::{Gather, discard, receive, send};
use super::tls::TlsState;
use crate::memory::Span;

/// The bytes of one connection, both ways.
pub(crate) struct Channel {
    socket: OwnedFd,
    tls: Option<Mutex<TlsState>>,
}

impl Channel {
    pub fn new(socket: OwnedFd, tls: Option<TlsState>) -> Self {
        Self {
            socket,
            tls: tls.map(Mutex::new),
        }
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether a call that moved fewer bytes than it could have found nothing more there.
    pub fn short_is_empty(&self) -> bool {
        self.tls.is_none()
    }

    /// What ties a handshake to this connection: nothing without TLS.
    pub fn binding(&self) -> Result<Vec<u8>> {
        match &self.tls {
            Some(tls) => Ok(tls.lock().binding()?.to_vec()),
            None => Ok(Vec::new()),
        }
    }

    /// Sends what goes at this moment. `None` if that's nothing.
    pub fn send(&self, gather: &Gather<'_>) -> io::Result<Option<usize>> {
        match &self.tls {
            Some(tls) => tls.lock().send(self.socket(), gather),
            None => send(self.socket(), gather),
        }
    }

    /// Sends what TLS holds back. Whether all of it went.
    pub fn flush(&self) -> io::Result<bool> {
        match &self.tls {
            Some(tls) => tls.lock().flush(self.socket()),
            None => Ok(true),
        }
    }

    /// Whether TLS holds something back.
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.lock().has_unsent())
    }

    /// Receives into guarded memory (span, where in it, bytes), and what's more into `rest`, which may stay empty. `None`
    /// if nothing is there, 0 at the end.
    pub fn receive(
        &self,
        memory: Option<(&Span, usize, usize)>,
        rest: &mut [u8],
    ) -> io::Result<Option<usize>> {
        match &self.tls {
            Some(tls) => tls.lock().receive(self.socket(), memory, rest),
            None => receive(self.socket(), memory, rest),
        }
    }

    /// Throws away up to `length` bytes. `None` if nothing is there, 0 at the end.
    pub fn discard(&self, length: usize) -> io::Result<Option<usize>> {
        match &self.tls {
            Some(tls) => tls.lock().discard(self.socket(), length),
            None => discard(self.socket(), length),
        }
    }

    /// Ends both directions, which wakes whoever polls it.
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}
