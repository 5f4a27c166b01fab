//! Answers.

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::wire::fields::{Writer, malformed};
use kvstored_transfer::{GRANT_BYTES, Grant};

use super::description::DescriptionPage;
use super::question::header;
use super::{MAGIC, MAX_ITEMS, MAX_LOCATED, MAX_WORTH_BYTES, VERSION};
use crate::limits::MAX_LAYERS;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// There may be one later.
    NotYet,
    /// There never will be: the request was released, or the engine is another.
    Gone,
}

/// A grant, and what it's worth to a process that shares the producer's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// The grant.
    pub grant: Grant,
    /// What the producer's engine foretells of it, at most [`MAX_WORTH_BYTES`]; empty where it foretells nothing.
    pub worth: Vec<u8>,
}

/// What a producer's rank answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Refused {
        /// The kind of the question.
        kind: u8,
        /// Why.
        status: Status,
    },
    /// Some layers.
    Described(Box<DescriptionPage>),
    /// In which runs the blocks lie: blocks of each, in order.
    Located(Vec<u32>),
    /// Grants, in the order of the items.
    Granted {
        /// What to ask for checksums with; 0 where none were wanted.
        ticket: u64,
        /// One for each item.
        rights: Vec<Right>,
    },
    /// Checksums, in the order of the items.
    Sums(Vec<u64>),
    /// It was heard.
    Noted,
    /// How far the request's computation is.
    Progress {
        /// Whether it's over, and every block good.
        complete: bool,
        /// Blocks whose place is known.
        blocks: u32,
        /// How many of them are good, from the first on, for each layer of the rank.
        ready: Vec<u32>,
    },
}

const NOT_YET: u8 = 1;
const GONE: u8 = 2;

impl Answer {
    /// The number of its kind.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Described(_) => 1,
            Self::Located(_) => 2,
            Self::Granted { .. } => 3,
            Self::Sums(_) => 4,
            Self::Noted => 5,
            Self::Progress { .. } => 6,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        let status = match self {
            Self::Refused {
                status: Status::NotYet,
                ..
            } => NOT_YET,
            Self::Refused {
                status: Status::Gone, ..
            } => GONE,
            _ => 0,
        };
        writer.raw(&MAGIC);
        writer.raw(&[VERSION, self.kind(), status, 0]);
        match self {
            Self::Refused { .. } | Self::Noted => {}
            Self::Described(page) => page.encode(&mut writer),
            Self::Located(runs) => {
                let runs = runs.get(..MAX_LOCATED).unwrap_or(runs);
                writer.u32(runs.len() as u32);
                for run in runs {
                    writer.u32(*run);
                }
            }
            Self::Granted { ticket, rights } => {
                let rights = rights.get(..MAX_ITEMS).unwrap_or(rights);
                writer.u64(*ticket);
                writer.u32(rights.len() as u32);
                for right in rights {
                    writer.raw(&right.grant.encode());
                    // what is too long is worth nothing: the consumer asks then
                    let fits = right.worth.len() <= MAX_WORTH_BYTES;
                    writer.counted(if fits { &right.worth } else { &[] });
                }
            }
            Self::Sums(sums) => {
                let sums = sums.get(..MAX_ITEMS).unwrap_or(sums);
                writer.u32(sums.len() as u32);
                for sum in sums {
                    writer.u64(*sum);
                }
            }
            Self::Progress {
                complete,
                blocks,
                ready,
            } => {
                let ready = ready.get(..MAX_LAYERS).unwrap_or(ready);
                writer.u32(u32::from(*complete));
                writer.u32(*blocks);
                writer.u32(ready.len() as u32);
                for blocks in ready {
                    writer.u32(*blocks);
                }
            }
        }
        writer.into_bytes()
    }

    /// Parses the answer to a question of that kind. Fails with `Corrupt`, and with `Unsupported` for a version that isn't
    /// known here.
    pub fn decode(bytes: &[u8], kind: u8) -> Result<Self> {
        let mut reader = super::reader(bytes)?;
        let (found, status) = header(&mut reader)?;
        if found != kind {
            return Err(malformed(format!(
                "an answer of kind {found} to a question of kind {kind}"
            )));
        }
        let refused = |status| Self::Refused { kind, status };
        let answer = match (status, kind) {
            (NOT_YET, 1..=6) => refused(Status::NotYet),
            (GONE, 1..=6) => refused(Status::Gone),
            (0, 1) => Self::Described(Box::new(DescriptionPage::decode(&mut reader)?)),
            (0, 2) => {
                let count = reader.count("runs", MAX_LOCATED)?;
                Self::Located((0..count).map(|_| reader.u32()).collect::<Result<_>>()?)
            }
            (0, 3) => Self::Granted {
                ticket: reader.u64()?,
                rights: {
                    let count = reader.count("grants", MAX_ITEMS)?;
                    (0..count)
                        .map(|_| {
                            Ok(Right {
                                grant: Grant::decode(reader.bytes(GRANT_BYTES)?)?,
                                worth: reader.counted(MAX_WORTH_BYTES)?.to_vec(),
                            })
                        })
                        .collect::<Result<_>>()?
                },
            },
            (0, 4) => {
                let count = reader.count("checksums", MAX_ITEMS)?;
                Self::Sums((0..count).map(|_| reader.u64()).collect::<Result<_>>()?)
            }
            (0, 5) => Self::Noted,
            (0, 6) => Self::Progress {
                complete: match reader.u32()? {
                    0 => false,
                    1 => true,
                    other => return Err(malformed(format!("flags {other:#x}"))),
                },
                blocks: reader.u32()?,
                ready: {
                    let count = reader.count("layers", MAX_LAYERS)?;
                    (0..count).map(|_| reader.u32()).collect::<Result<_>>()?
                },
            },
            _ => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("an answer of kind {kind} with status {status}"),
                ));
            }
        };
        reader.end()?;
        Ok(answer)
    }
}
