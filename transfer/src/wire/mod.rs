//! The frames on a connection, byte for byte as in `docs/wire.md`. Nothing that reads frames allocates, and every length is checked
//! before anybody believes it. [`fields`] is for the questions and answers that travel inside.

pub mod fields;
mod frame;
mod handshake;
mod messages;
mod moves;
mod sharing;
mod worth;

pub use frame::{HEADER_BYTES, Header, Kind, TRAILER_BYTES, Trailer};
pub use handshake::{HANDSHAKE_BYTES, HandshakeFrame, Hello, Proof, VERSION};
pub use messages::{MAX_MESSAGE_BYTES, RANGE_BYTES, Range, WANTED_BYTES, Wanted};
pub use moves::{Attach, MOST_MOVES, MoveEntry, Moves};
pub use sharing::{Introduction, MOST_ASKED, Offer, Question, TICKET_BYTES, Welcome};
pub use worth::{Worth, Worths};

use kvstored_core::ErrorKind;

/// The most bytes that one read or write moves.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 20;
/// The most bytes that follow a header as its body.
pub const MAX_BODY_BYTES: u32 = 64 << 10;

/// An outcome on the wire: 0, or the kind of error plus 1.
pub(crate) fn status_of(error: Option<ErrorKind>) -> u8 {
    error.map_or(0, |kind| kind.code() + 1)
}

/// What a status says; numbers of newer peers become `Internal`.
pub(crate) fn error_of(status: u8) -> Option<ErrorKind> {
    status.checked_sub(1).map(ErrorKind::from_code)
}
