//! Opens connections to a peer, in the caller's thread.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::accept::socket_for;
use super::channel::Channel;
use super::failed;
use super::io::Gather;
use crate::handshake::{Agreed, Opener};
use crate::shared::Shared;
use crate::wire::{HANDSHAKE_BYTES, HandshakeFrame};

/// Splits `host:port`, resolves it, and refuses what needs more protection than there is.
pub(crate) fn resolve(address: &str, shared: &Shared) -> Result<(String, Vec<SocketAddr>)> {
    let (host, _) = address
        .rsplit_once(':')
        .ok_or_else(|| Error::invalid(format!("\"{address}\" is not host:port")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let found: Vec<_> = address
        .to_socket_addrs()
        .map_err(|error| {
            Error::from_io(error, "the peer's address can't be resolved").with("address", address)
        })?
        .collect();
    if found.is_empty() {
        return Err(
            Error::new(ErrorKind::NotFound, "the peer's address means nothing").with("address", address),
        );
    }
    let mut allowed = Vec::new();
    let mut refused = None;
    for each in found {
        match shared.settings.check_exposure(each) {
            Ok(()) => allowed.push(each),
            Err(error) => refused = Some(error),
        }
    }
    match (allowed.is_empty(), refused) {
        (true, Some(error)) => Err(error),
        _ => Ok((host, allowed)),
    }
}

/// A connection whose handshake is over.
pub(crate) struct Opened {
    pub channel: Channel,
    pub agreed: Agreed,
}

/// Opens a connection to the first of the addresses that answers.
pub(super) fn open(
    shared: &Shared,
    host: &str,
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<Opened> {
    let mut last = Error::new(ErrorKind::NotFound, "no address");
    for address in addresses {
        match open_one(shared, host, *address, deadline) {
            Ok(opened) => return Ok(opened),
            Err(error) => last = error.with("address", address),
        }
    }
    Err(last)
}

fn open_one(shared: &Shared, host: &str, address: SocketAddr, deadline: Instant) -> Result<Opened> {
    let wrong = |errno: Errno| Error::from_io(errno.into(), "can't connect to the peer");
    let socket = socket_for(address).map_err(wrong)?;
    sockopt::set_tcp_nodelay(&socket, true).map_err(wrong)?;
    let waiting = Waiting { shared, deadline };
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => {
            waiting.until(&socket, PollFlags::OUT)?;
            sockopt::socket_error(&socket).map_err(wrong)?.map_err(wrong)?;
        }
        Err(errno) => return Err(wrong(errno)),
    }
    let tls = shared.tls.as_ref().map(|tls| tls.open(host)).transpose()?;
    let channel = Channel::new(socket, tls);
    let (opener, hello) = Opener::new(&shared.identity)?;
    waiting.send(&channel, &hello)?;
    let answer = waiting.receive(&channel)?;
    let (proven, proof) = opener.prove(answer, &channel.binding()?)?;
    waiting.send(&channel, &proof)?;
    let agreed = proven.finish(waiting.receive(&channel)?)?;
    Ok(Opened { channel, agreed })
}

struct Waiting<'a> {
    shared: &'a Shared,
    deadline: Instant,
}

impl Waiting<'_> {
    fn until(&self, socket: &impl AsFd, flags: PollFlags) -> Result<()> {
        loop {
            let left = self
                .deadline
                .saturating_duration_since(self.shared.runtime.clock.now());
            let timeout = Timespec::try_from(left).ok();
            let mut descriptors = [PollFd::new(socket, flags)];
            match poll(&mut descriptors, timeout.as_ref()) {
                Ok(0) => {
                    return Err(Error::new(
                        ErrorKind::TimedOut,
                        "the peer doesn't answer the handshake",
                    ));
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::from_io(errno.into(), "poll failed")),
            }
        }
    }

    fn send(&self, channel: &Channel, frame: &HandshakeFrame) -> Result<()> {
        let bytes = frame.encode();
        let mut sent = 0;
        while sent < bytes.len() || channel.has_unsent() {
            let rest = bytes.get(sent..).unwrap_or_default();
            let mut gather = Gather::new();
            gather.push_bytes(rest);
            let moved = if rest.is_empty() {
                channel.flush().map_err(failed)?.then_some(0)
            } else {
                channel.send(&gather).map_err(failed)?
            };
            match moved {
                Some(moved) => sent += moved,
                None => self.until(&channel.socket(), PollFlags::OUT)?,
            }
        }
        Ok(())
    }

    fn receive(&self, channel: &Channel) -> Result<HandshakeFrame> {
        let mut bytes = [0; HANDSHAKE_BYTES];
        let mut received = 0;
        while received < bytes.len() {
            let rest = bytes.get_mut(received..).unwrap_or_default();
            match channel.receive(None, rest).map_err(failed)? {
                Some(0) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the peer closed the connection in the handshake",
                    ));
                }
                Some(moved) => received += moved,
                None => self.until(&channel.socket(), PollFlags::IN)?,
            }
        }
        HandshakeFrame::decode(&bytes)
    }
}

/// The addresses that were resolved, for opening more connections of the same kind.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub host: String,
    pub addresses: Vec<SocketAddr>,
}

impl Destination {
    pub fn resolve(address: &str, shared: &Arc<Shared>) -> Result<Self> {
        let (host, addresses) = resolve(address, shared)?;
        Ok(Self { host, addresses })
    }
}
