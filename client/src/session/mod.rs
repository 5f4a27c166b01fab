//! One connection to an engine: requests go out with a ticket, answers come back in any order.
//!
//! A session that somebody lost interest in is dropped as a whole: everything it held is given back.

mod embedded;
mod pool;
mod socket;

use std::sync::Arc;
use std::time::Instant;

use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::memory::Arena;
use kvstored_core::tier::NamespaceInfo;

use crate::wire::{Answer, Request};

pub(crate) use embedded::EmbeddedSession;
pub(crate) use pool::{Pool, PooledSession, Source};
pub(crate) use socket::SocketSession;

/// What an answer is picked up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(pub(crate) u32);

/// One connection; for one thread at a time.
pub(crate) trait Session: Send {
    /// The memory that slots lie in.
    fn arena(&self) -> &Arc<Arena>;

    /// Names of the tiers, fast to durable.
    fn tier_names(&self) -> &[String];

    /// Whether the other side is still there, as far as can be told at once.
    fn is_alive(&mut self) -> bool;

    /// Whether somebody else can go on with it: it works, and no answer is under way.
    fn is_reusable(&self) -> bool;

    /// The namespace's number in this session; opened when it's met for the first time.
    fn namespace(&mut self, info: &Arc<NamespaceInfo>, deadline: Instant) -> Result<u32>;

    /// Sends a request. Several may be under way.
    fn begin(&mut self, request: Request<'_>, deadline: Instant) -> Result<Ticket>;

    /// Waits for an answer until `until`; `None` if it isn't there by then. Fails with what the daemon says is
    /// wrong with the request as a whole, or with `Unavailable`.
    fn finish(&mut self, ticket: Ticket, until: Instant) -> Result<Option<Answer>>;

    /// Sends a request that is never answered. A connection that is gone needs none.
    fn tell(&mut self, request: Request<'_>);

    /// Sends a request and waits for its answer; `TimedOut` at the deadline.
    fn call(&mut self, request: Request<'_>, deadline: Instant) -> Result<Answer> {
        let ticket = self.begin(request, deadline)?;
        let late = || {
            Error::new(
                ErrorKind::TimedOut,
                "no answer from the engine until the deadline",
            )
        };
        self.finish(ticket, deadline)?.ok_or_else(late)
    }
}

/// An answer of another kind than the request calls for.
pub(crate) fn unexpected(answer: &Answer) -> Error {
    Error::internal(format!("answer kind {} doesn't fit the request", answer.kind()))
}
