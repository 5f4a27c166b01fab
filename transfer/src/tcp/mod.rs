//! Sockets: several connections to each peer, watched by a few threads, without a copy beyond the kernel's.

mod accept;
mod channel;
mod connection;
mod ending;
mod gate;
mod io;
mod lead;
mod link;
mod open;
mod outgoing;
mod reactor;
mod receiving;
mod requests;
mod serving;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result};

use accept::Listener;
use gate::Gate;
use reactor::Reactor;

use crate::shared::Shared;

pub(crate) use link::TcpLink;
pub(crate) use open::Destination;
pub(crate) use requests::{Late, ended_by};
pub(crate) use serving::Reply;
pub(crate) use tls::Tls;

/// Nanoseconds, or the end of numbers.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A socket's error.
fn failed(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        return Error::new(ErrorKind::PermissionDenied, format!("TLS: {error}"));
    }
    Error::from_io(error, "the connection to the peer failed")
}

/// All sockets of an engine.
pub(crate) struct Tcp {
    shared: Arc<Shared>,
    reactors: Vec<Arc<Reactor>>,
    gate: Arc<Gate>,
    address: Option<SocketAddr>,
}

impl Tcp {
    /// Listens, if that's configured, and starts the threads.
    pub fn start(shared: &Arc<Shared>) -> Result<(Self, Vec<ThreadHandle>)> {
        let gate = Gate::new(&shared.settings);
        let mut reactors = Vec::new();
        for _ in 0..shared.settings.reactors {
            reactors.push(Reactor::new(shared)?);
        }
        let mut listener = None;
        let mut address = None;
        if let Some(listen) = shared.settings.listen {
            let (mut bound, at) = Listener::bind(listen, shared, &gate)?;
            bound.spread_over(&reactors);
            listener = Some(bound);
            address = Some(at);
        }
        let tcp = Self {
            shared: shared.clone(),
            reactors,
            gate,
            address,
        };
        let mut threads = Vec::new();
        for (index, reactor) in tcp.reactors.iter().enumerate() {
            let (body, gate, listener) = (reactor.clone(), tcp.gate.clone(), listener.take());
            let body = Box::new(move || body.run(listener, &gate));
            match shared
                .runtime
                .spawner
                .spawn(&format!("transfer-tcp-{index}"), body)
            {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    tcp.stop();
                    threads.into_iter().for_each(ThreadHandle::join);
                    return Err(error);
                }
            }
        }
        Ok((tcp, threads))
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Opens the connections to a peer.
    pub fn open(&self, destination: &Destination, deadline: Instant) -> Result<Arc<TcpLink>> {
        TcpLink::open(&self.shared, &self.reactors, &self.gate, destination, deadline)
    }

    /// Ends every operation that touches memory which is being closed.
    pub fn sweep(&self) {
        for reactor in &self.reactors {
            for connection in reactor.connections() {
                connection.end(&ending::Doomed::Closed);
            }
        }
    }

    /// Ends the threads.
    pub fn stop(&self) {
        for reactor in &self.reactors {
            reactor.stop();
        }
    }
}
