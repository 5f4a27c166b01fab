//! What the daemon answers.

mod read;

use kvstored_core::block::BlockKey;
use kvstored_core::engine::VerifyReport;
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::events::{EventKind, Events};
use kvstored_core::tier::Durability;

use super::buffer::{Reader, Writer};
use super::namespace::durability_code;
use super::{MAX_JSON_BYTES, MAX_TEXT_BYTES};
use read::read;

/// An error as it travels: its kind and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// For people; may be cut or empty.
    pub message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        // misses are common and say nothing that their kind doesn't say
        if kind == ErrorKind::NotFound && error.message().is_empty() {
            return Self {
                kind,
                message: String::new(),
            };
        }
        let whole = error.to_string();
        let message = whole
            .strip_prefix(kind.name())
            .and_then(|rest| rest.strip_prefix(": "));
        Self {
            kind,
            message: message.unwrap_or(&whole).to_owned(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::new(failure.kind, failure.message)
    }
}

/// A block that is pinned for this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What to give back.
    pub lease: u64,
    /// Where the block's image begins in the arena.
    pub offset: u64,
    /// Index in the pipeline of the tier that had it.
    pub tier: u8,
}

/// What became of one block of a reserve request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Granted {
    /// A slot to fill.
    Slot {
        /// What to commit or abort.
        reservation: u64,
        /// Where the block's image begins in the arena.
        offset: u64,
    },
    /// Some tier has the block, or somebody is dumping it.
    Present,
    /// Not taken.
    Refused(Failure),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a hello; the arena's file descriptor comes with it.
    Welcome {
        /// The daemon's protocol version.
        protocol: u16,
        /// Bytes of the arena.
        arena_bytes: u64,
        /// Names of the tiers, fast to durable.
        tier_names: Vec<String>,
    },
    /// To a ping.
    Pong,
    /// The number of an opened namespace.
    Opened {
        /// Holds within this connection.
        namespace: u32,
    },
    /// One flag per block that was looked up.
    Present(Vec<bool>),
    /// A number: blocks at the start of a run, blocks dropped, …
    Count(u64),
    /// One outcome per block of an acquire.
    Acquired(Vec<Result<Held, Failure>>),
    /// One outcome per block of a reserve.
    Reserved(Vec<Granted>),
    /// One outcome per block of a commit.
    Committed(Vec<Result<Durability, Failure>>),
    /// For people's tools.
    Json(Vec<u8>),
    /// Keys of blocks.
    Keys(Vec<BlockKey>),
    /// What a scrub found.
    Verified {
        /// The counts.
        report: VerifyReport,
        /// Go on behind this one; at the end without.
        after: Option<BlockKey>,
    },
    /// For each present block at the start of a run, the index in the pipeline of the fastest tier that has it.
    Located(Vec<u8>),
    /// Which blocks became visible in a tier and which left it.
    Events(Events),
    /// Nothing to add.
    Done,
    /// The request as a whole failed.
    Error(Failure),
}

impl Answer {
    /// The kind in the frame's header.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Welcome { .. } => 128,
            Self::Pong => 129,
            Self::Opened { .. } => 130,
            Self::Present(_) => 131,
            Self::Count(_) => 132,
            Self::Acquired(_) => 133,
            Self::Reserved(_) => 134,
            Self::Committed(_) => 135,
            Self::Json(_) => 136,
            Self::Keys(_) => 137,
            Self::Verified { .. } => 138,
            Self::Done => 139,
            Self::Error(_) => 140,
            Self::Located(_) => 141,
            Self::Events(_) => 142,
        }
    }

    /// The answer that says what went wrong.
    pub fn error(error: Error) -> Self {
        Self::Error(error.into())
    }

    /// Reads an answer's body. Fails with `Unsupported` for an unknown kind and `InvalidInput` for anything
    /// else that is wrong.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        let answer = read(kind, &mut reader)?;
        reader.finish()?;
        Ok(answer)
    }

    pub(super) fn write(&self, writer: &mut Writer) -> Result<()> {
        match self {
            Self::Welcome {
                protocol,
                arena_bytes,
                tier_names,
            } => {
                writer.u16(*protocol);
                writer.u64(*arena_bytes);
                writer.count("tiers", tier_names.len())?;
                for name in tier_names {
                    writer.text("a tier's name", name)?;
                }
            }
            Self::Pong | Self::Done => {}
            Self::Opened { namespace } => writer.u32(*namespace),
            Self::Present(present) => {
                writer.count("blocks", present.len())?;
                for eight in present.chunks(8) {
                    writer.u8(eight
                        .iter()
                        .enumerate()
                        .fold(0, |byte, (bit, found)| byte | u8::from(*found) << bit));
                }
            }
            Self::Count(count) => writer.u64(*count),
            Self::Acquired(blocks) => {
                writer.count("blocks", blocks.len())?;
                for block in blocks {
                    match block {
                        Ok(held) => {
                            writer.u8(0);
                            writer.u64(held.lease);
                            writer.u64(held.offset);
                            writer.u8(held.tier);
                        }
                        Err(failure) => write_failure(writer, failure, message_limit(blocks.len()))?,
                    }
                }
            }
            Self::Reserved(blocks) => {
                writer.count("blocks", blocks.len())?;
                for block in blocks {
                    match block {
                        Granted::Slot { reservation, offset } => {
                            writer.u8(0);
                            writer.u64(*reservation);
                            writer.u64(*offset);
                        }
                        Granted::Present => writer.u8(PRESENT),
                        Granted::Refused(failure) => {
                            write_failure(writer, failure, message_limit(blocks.len()))?;
                        }
                    }
                }
            }
            Self::Committed(blocks) => {
                writer.count("blocks", blocks.len())?;
                for block in blocks {
                    match block {
                        Ok(durability) => {
                            writer.u8(0);
                            writer.u8(durability_code(*durability));
                        }
                        Err(failure) => write_failure(writer, failure, message_limit(blocks.len()))?,
                    }
                }
            }
            Self::Json(bytes) => writer.blob("a report", bytes, MAX_JSON_BYTES)?,
            Self::Keys(keys) => {
                writer.count("keys", keys.len())?;
                for key in keys {
                    writer.optional_key(Some(key));
                }
            }
            Self::Verified { report, after } => {
                writer.u64(report.checked_blocks);
                writer.u64(report.corrupt_blocks);
                writer.u64(report.vanished_blocks);
                writer.u64(report.unread_blocks);
                writer.optional_key(after.as_ref());
            }
            Self::Error(failure) => write_failure(writer, failure, MAX_TEXT_BYTES)?,
            Self::Located(tiers) => {
                writer.count("blocks", tiers.len())?;
                writer.raw(tiers);
            }
            Self::Events(events) => {
                writer.u64(events.first);
                writer.u64(events.next);
                writer.u8(u8::from(events.lost));
                writer.count("events", events.events.len())?;
                for event in &events.events {
                    writer.u8(match event.kind {
                        EventKind::Stored => STORED,
                        EventKind::Removed => REMOVED,
                    });
                    writer.u8(event.tier);
                    writer.raw(&event.key.namespace.0);
                    writer.optional_hash(Some(&event.key.hash));
                }
            }
        }
        Ok(())
    }
}

/// Kinds of events.
const STORED: u8 = 0;
const REMOVED: u8 = 1;

/// Status of a block that is there already, apart from all error kinds.
const PRESENT: u8 = 255;

/// Messages of many failed blocks together stay far below the bound of a frame.
fn message_limit(blocks: usize) -> usize {
    ((4 << 20) / blocks.max(1)).min(1024)
}

/// The status byte is the kind's number plus one: 0 is success.
fn write_failure(writer: &mut Writer, failure: &Failure, limit: usize) -> Result<()> {
    writer.u8(failure.kind.code() + 1);
    let mut length = failure.message.len().min(limit);
    while !failure.message.is_char_boundary(length) {
        length -= 1;
    }
    writer.text("a message", failure.message.get(..length).unwrap_or_default())
}
