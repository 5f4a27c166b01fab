//! What a pool's clients ask its storage nodes, and what those answer: questions and answers of the transfer engine,
//! which vouches for who asks.
//!
//! A question is one byte that says what is asked, and its body; an answer is a body alone. All numbers are little-endian,
//! every length is capped, and a *counted* field is two bytes with its length and the bytes.
//!
//! | first byte | question's body | answer |
//! | ---: | --- | --- |
//! | 1 open | items | answers |
//! | 2 seal | items | answers |
//! | 3 read | items | answers |
//! | 4 abandon | items | answers |
//! | 5 changes | position (8) | lost (1), next (8), number (2), for each change: stored (1), key (counted) |
//! | 6 listing | offset (8) | next (8), number (2), for each object: key (counted) |
//!
//! Items are a number (2), and for each: put (8), offset (8), length (8), checksum (8), key (counted), token (counted).
//! Answers are a number (2), and for each either 0 (1), grant (counted), what it's worth over shared memory
//! (counted), checksum (8), epoch of the master (8), or 1 (1), the kind of an error (1), its text (counted).

mod changes;
mod messages;

pub use changes::{Change, Changes, Listing, Since};
pub use kvstored_master::MAX_KEY_BYTES;
pub(crate) use kvstored_transfer::wire::fields::{Reader, Writer};
pub use messages::{Answer, Answers, Item, Request, Verb};

/// The largest body of a question or an answer.
pub const MAX_BODY_BYTES: usize = (64 << 10) - 1;
/// Most items in one question.
pub const MAX_ITEMS: usize = 256;
/// Most keys in one answer about changes or a listing.
pub const MAX_KEYS: usize = 1024;

#[cfg(test)]
mod tests;
