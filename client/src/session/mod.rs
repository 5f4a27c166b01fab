//! One connection to an engine: requests go out with a ticket, answers come back in any order.
//!
//! A session that somebody lost interest in is dropped as a whole: everything it held is given back.

mod embedded;
mod pool;
mod socket;
mod until;

use std::sync::Arc;
use std::time::Instant;

use kvstored_core::error::{Error, Result};
use kvstored_core::memory::Arena;
use kvstored_core::runtime::Runtime;
use kvstored_core::tier::NamespaceInfo;

use crate::wire::{Answer, Request};

pub(crate) use embedded::EmbeddedSession;
pub(crate) use pool::{Pool, PooledSession, Source};
pub(crate) use socket::SocketSession;
pub(crate) use until::{SLICE, Until};

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

    /// The clock that its waits go by.
    fn runtime(&self) -> &Runtime;

    /// The namespace's number in this session; opened when it's met for the first time.
    fn namespace(&mut self, info: &Arc<NamespaceInfo>, until: Until<'_>) -> Result<u32>;

    /// Sends a request, or puts it in line where the daemon doesn't read just now: never blocks. Several may be
    /// under way. Fails with `Unavailable` where the connection is gone or the line too long.
    fn begin(&mut self, request: Request<'_>) -> Result<Ticket>;

    /// Waits for an answer until `until`; `None` if it isn't there by then. Fails with what the daemon says is
    /// wrong with the request as a whole, or with `Unavailable`.
    fn finish(&mut self, ticket: Ticket, until: Instant) -> Result<Option<Answer>>;

    /// Sends a request that is never answered; never blocks. A connection that is gone needs none.
    fn tell(&mut self, request: Request<'_>);

    /// Waits for an answer. Fails as [`Session::finish`] does, and as `until` says.
    fn answer(&mut self, ticket: Ticket, until: Until<'_>) -> Result<Answer> {
        loop {
            let slice = until.slice(self.runtime());
            if let Some(answer) = self.finish(ticket, slice)? {
                return Ok(answer);
            }
            until.check(self.runtime())?;
        }
    }

    /// Sends a request and waits for its answer.
    fn call(&mut self, request: Request<'_>, until: Until<'_>) -> Result<Answer> {
        let ticket = self.begin(request)?;
        self.answer(ticket, until)
    }
}

/// An answer of another kind than the request calls for.
pub(crate) fn unexpected(answer: &Answer) -> Error {
    Error::internal(format!("answer kind {} doesn't fit the request", answer.kind()))
}
