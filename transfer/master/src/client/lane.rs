//! The fast lane's side of the client: see [`crate::wire::lane`]. The calling thread talks to the master by itself, over one
//! of its connections that nobody uses at the moment.
//!
//! Whatever goes wrong here is found again, and dealt with, by the call over gRPC that follows.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kvstored_core::{Result, Runtime};
use parking_lot::Mutex;

use crate::wire::lane::{HEAD_BYTES, Quick, append, hello, read_answer, read_head};

/// How long a master that doesn't answer here is asked by gRPC alone.
const REST: Duration = Duration::from_millis(100);
/// Connections that are kept for the next calls.
const MAX_IDLE: usize = 64;
/// Room that a connection keeps between questions.
const KEPT_BYTES: usize = 64 << 10;

/// What came of asking by the fast lane.
pub(super) enum Asked<A> {
    /// The master said so.
    Told(Result<A>),
    /// gRPC is to be asked.
    Elsewhere,
    /// The master didn't answer in time.
    Late,
}

/// A connection that nobody uses at the moment.
struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    /// For questions and answers.
    bytes: Vec<u8>,
}

/// See the module's page.
pub(super) struct Lane {
    hello: Vec<u8>,
    idle: Mutex<Vec<Connection>>,
    resting_until: Mutex<Option<Instant>>,
    runtime: Runtime,
}

impl Lane {
    /// Fails with `InvalidInput` for too long a token.
    pub fn new(token: Option<&[u8]>, runtime: Runtime) -> Result<Self> {
        Ok(Self {
            hello: hello(token)?,
            idle: Mutex::default(),
            resting_until: Mutex::new(None),
            runtime,
        })
    }

    /// Asks a master. One on another machine is asked by gRPC: it has no lane, and looking its name up could take long.
    pub fn call<M: Quick>(&self, address: &str, message: &M, limit: Duration) -> Asked<M::Answer> {
        let Some(socket) = loopback(address) else {
            return Asked::Elsewhere;
        };
        let now = self.runtime.clock.now();
        if self.resting_until.lock().is_some_and(|until| now < until) {
            return Asked::Elsewhere;
        }
        let deadline = now + limit;
        // a kept connection may have ended with its master, a new one tells
        let mut outcome = Err(io::ErrorKind::NotConnected.into());
        if let Some(connection) = self.take(socket) {
            outcome = self.ask(connection, message, deadline);
        }
        if outcome.as_ref().is_err_and(|error| !is_late(error)) {
            outcome = self
                .connect(socket, deadline)
                .and_then(|connection| self.ask(connection, message, deadline));
        }
        let error = match outcome {
            Ok(Some(told)) => return Asked::Told(told),
            Ok(None) => return Asked::Elsewhere,
            Err(error) => error,
        };
        self.idle.lock().clear();
        *self.resting_until.lock() = Some(self.runtime.deadline(REST));
        if is_late(&error) {
            Asked::Late
        } else {
            Asked::Elsewhere
        }
    }

    fn take(&self, address: SocketAddr) -> Option<Connection> {
        let mut idle = self.idle.lock();
        // a leader that was left leaves its connections behind
        while let Some(connection) = idle.pop() {
            if connection.address == address {
                return Some(connection);
            }
        }
        None
    }

    fn connect(&self, address: SocketAddr, deadline: Instant) -> io::Result<Connection> {
        let left = deadline.saturating_duration_since(self.runtime.clock.now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let stream = TcpStream::connect_timeout(&address, left)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(left))?;
        (&stream).write_all(&self.hello)?;
        Ok(Connection {
            address,
            stream,
            bytes: Vec::new(),
        })
    }

    fn ask<M: Quick>(
        &self,
        mut connection: Connection,
        message: &M,
        deadline: Instant,
    ) -> io::Result<Option<Result<M::Answer>>> {
        let bytes = &mut connection.bytes;
        bytes.clear();
        append(bytes, M::VERB, message).map_err(io::Error::other)?;
        self.allow(&connection.stream, deadline, TcpStream::set_write_timeout)?;
        connection.stream.write_all(bytes)?;
        let mut head = [0; HEAD_BYTES];
        self.read(&mut connection.stream, &mut head, deadline)?;
        let (outcome, length) = read_head(head).map_err(io::Error::other)?;
        bytes.resize(length, 0);
        self.read(&mut connection.stream, bytes, deadline)?;
        let answer = read_answer::<M>(outcome, bytes).map_err(io::Error::other)?;
        bytes.shrink_to(KEPT_BYTES);
        let mut idle = self.idle.lock();
        if answer.is_some() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
        Ok(answer)
    }

    fn read(&self, stream: &mut TcpStream, mut into: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !into.is_empty() {
            self.allow(stream, deadline, TcpStream::set_read_timeout)?;
            match stream.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => into = into.get_mut(read..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives a connection what is left of the time.
    fn allow(
        &self,
        stream: &TcpStream,
        deadline: Instant,
        set: impl Fn(&TcpStream, Option<Duration>) -> io::Result<()>,
    ) -> io::Result<()> {
        let left = deadline.saturating_duration_since(self.runtime.clock.now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set(stream, Some(left))
    }
}

/// A loopback address, without asking anybody what a name means.
fn loopback(address: &str) -> Option<SocketAddr> {
    if let Some(port) = address.strip_prefix("localhost:") {
        return Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into());
    }
    let address: SocketAddr = address.parse().ok()?;
    address.ip().to_canonical().is_loopback().then_some(address)
}

/// Whether the master didn't answer in time.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_asked_by_the_lane() {
        for address in ["127.0.0.1:5", "[::1]:5", "localhost:5", "127.8.0.1:5"] {
            assert_eq!(
                loopback(address).map(|address| address.port()),
                Some(5),
                "{address}"
            );
        }
        for address in [
            "10.0.0.1:5",
            "master:5",
            "localhost",
            "localhost:x",
            "[2001:db8::1]:5",
        ] {
            assert_eq!(loopback(address), None, "{address}");
        }
    }
}
