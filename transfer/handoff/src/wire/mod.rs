//! What consumers ask producers, and what those answer: questions and answers of the transfer engine, which vouches for who
//! asks. `docs/handoff.md` fixes every byte.

mod answer;
mod description;
mod question;

use kvstored_core::Result;
use kvstored_transfer::wire::fields::{Reader, malformed};

pub use answer::{Answer, Right, Status};
pub use description::DescriptionPage;
pub use question::{Item, Question};

/// Bytes at the beginning of every message: magic, version, kind, status, zero.
pub const HEADER_BYTES: usize = 8;
/// The first bytes of every message.
pub const MAGIC: [u8; 4] = *b"KVHO";
/// The version of all of this.
pub const VERSION: u8 = 2;
/// The largest message.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Most ranges in one question for grants.
pub const MAX_ITEMS: usize = 320;
/// Most bytes of what a grant is worth.
pub const MAX_WORTH_BYTES: usize = 72;
/// Most blocks in one question for runs.
pub const MAX_LOCATED: usize = 8192;

/// At the front of a message. Fails with `Corrupt` for more bytes than one has.
fn reader(message: &[u8]) -> Result<Reader<'_>> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(malformed(format!("a message of {} bytes", message.len())));
    }
    Ok(Reader::new(message))
}

#[cfg(test)]
mod tests;
