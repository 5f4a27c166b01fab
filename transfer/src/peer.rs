//! An open peer.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use crate::grant::{Grant, Rights};
use crate::identity::EngineId;
use crate::link::Link;
use crate::settings::TransportKind;
use crate::tcp::TcpLink;
use crate::wire::{Kind, MAX_BODY_BYTES, Range, Wanted};

pub(crate) struct PeerState {
    pub address: String,
    /// Always there: it carries what moves no bytes, and shows whether the peer lives.
    pub control: Arc<TcpLink>,
    /// What moves bytes.
    pub data: Arc<dyn Link>,
}

/// A peer with which the handshake is done. Clones are handles to the same connections, which last until
/// [`crate::TransferEngine::close_peer`], or until the peer goes.
#[derive(Clone)]
pub struct Peer {
    pub(crate) state: Arc<PeerState>,
}

impl Peer {
    /// The peer's engine. Another start of the same process is another engine.
    pub fn id(&self) -> EngineId {
        self.state.control.peer()
    }

    /// The address it was opened with.
    pub fn address(&self) -> &str {
        &self.state.address
    }

    /// The transport that moves bytes.
    pub fn transport(&self) -> TransportKind {
        self.state.data.transport()
    }

    /// Whether it can be reached, as far as is known.
    pub fn is_alive(&self) -> bool {
        self.state.control.is_alive()
    }

    /// Asks for a grant on registered memory by its address in the peer's process. The grant lasts as long as the memory
    /// stays registered.
    ///
    /// Fails with `PermissionDenied` unless the peer allows that (`allow_registered`), and with `NotFound` where no
    /// region holds all of the addresses.
    pub fn grant_by_address(
        &self,
        address: u64,
        length: u64,
        rights: Rights,
        deadline: Instant,
    ) -> Result<Grant> {
        let wanted = Wanted {
            address,
            length,
            rights,
        };
        Grant::decode(
            &self
                .state
                .control
                .ask(Kind::Want, wanted.encode().to_vec(), deadline)?,
        )
    }

    /// The address and length of the region that the peer registered first. Fails as
    /// [`Peer::grant_by_address`] does.
    pub fn first_registered(&self, deadline: Instant) -> Result<(u64, u64)> {
        let range = Range::decode(&self.state.control.ask(Kind::First, Vec::new(), deadline)?)?;
        Ok((range.address, range.length))
    }

    /// Takes what the peer's engine foretold of a grant ([`TransferEngine::foretell`](crate::TransferEngine::foretell)),
    /// which spares a question when the grant is used. Bytes that make no sense are ignored.
    pub fn foretold(&self, grant: &Grant, worth: &[u8]) {
        self.state.data.foretold(grant, worth);
    }

    /// Asks the peer's own code a question of at most 64 KiB, and returns its answer. A question whose answer didn't come
    /// may have been answered all the same.
    ///
    /// Fails as the peer's responder does, with `Unsupported` where there is none, with `TooLarge`, and with `Unavailable`
    /// or `TimedOut` when no answer comes.
    pub fn ask(&self, question: &[u8], deadline: Instant) -> Result<Vec<u8>> {
        if question.len() > MAX_BODY_BYTES as usize {
            let message = format!("a question of {} bytes", question.len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        self.state.control.ask(Kind::Ask, question.to_vec(), deadline)
    }

    /// Asks for a sign of life. Fails with `Unavailable` or `TimedOut` without one.
    pub fn ping(&self, deadline: Instant) -> Result<()> {
        self.state.control.ask(Kind::Ping, Vec::new(), deadline).map(drop)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Peer")
            .field("id", &self.id())
            .field("address", &self.state.address)
            .field("transport", &self.transport().name())
            .finish_non_exhaustive()
    }
}
