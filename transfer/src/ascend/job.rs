//! One frame of moves at the serving side.

use std::sync::Arc;
use std::time::Instant;

use kvstored_core::transport::{Move, MoveDirection};
use kvstored_core::{Error, ErrorKind, Result};

use super::batch::pieces;
use crate::counters::Tally;
use crate::memory::{RegionState, Span};
use crate::tcp::Reply;
use crate::transfer::TransferKind;

/// Moves that were checked, and their memory, counted in until nothing touches it any more.
pub(super) struct Job {
    pub kind: TransferKind,
    pub moves: Vec<Move>,
    pub spans: Vec<Span>,
    pub regions: Vec<Arc<RegionState>>,
    pub deadline: Instant,
    /// The asker's registrations that it needs.
    pub generation: u64,
    pub reply: Reply,
    /// Why it's ended before its time.
    pub why: Option<ErrorKind>,
}

impl Job {
    /// Whether its memory is being released or unregistered.
    pub fn is_closed(&self) -> bool {
        self.spans.iter().any(Span::is_closed)
    }

    /// A read of the asker's goes into its memory.
    pub fn direction(&self) -> MoveDirection {
        match self.kind {
            TransferKind::Read => MoveDirection::ToPeer,
            TransferKind::Write => MoveDirection::FromPeer,
        }
    }

    /// Lets go of the memory and answers.
    pub fn finish(self, tally: &Tally, result: Result<()>) {
        drop(self.spans);
        let result = match self.why {
            Some(kind) => Err(Error::new(kind, "it was ended before its time")),
            None => result.map_err(told),
        };
        for bytes in self.moves.iter().flat_map(|one| pieces(one.bytes)) {
            match (&result, self.kind) {
                (Err(_), _) => tally.failed(),
                (Ok(()), TransferKind::Read) => tally.read(bytes),
                (Ok(()), TransferKind::Write) => tally.written(bytes),
            }
        }
        (self.reply)(result.map(|()| Vec::new()));
    }
}

/// What the transport failed with, as the asker is told: it isn't the asker's fault, and another way may do.
fn told(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Fenced | ErrorKind::TimedOut | ErrorKind::PermissionDenied => error,
        _ => Error::new(ErrorKind::Unavailable, "the transport failed").with("because", error),
    }
}
