//! Answers.

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::wire::fields::{Writer, malformed};
use kvstored_transfer::{GRANT_BYTES, Grant};

use super::description::DescriptionPage;
use super::question::header;
use super::{MAGIC, MAX_ITEMS, MAX_LOCATED, VERSION};

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// There may be one later.
    NotYet,
    /// There never will be: the request was released, or the engine is another.
    Gone,
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
        grants: Vec<Grant>,
    },
    /// Checksums, in the order of the items.
    Sums(Vec<u64>),
    /// It was heard.
    Noted,
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
            Self::Granted { ticket, grants } => {
                let grants = grants.get(..MAX_ITEMS).unwrap_or(grants);
                writer.u64(*ticket);
                writer.u32(grants.len() as u32);
                for grant in grants {
                    writer.raw(&grant.encode());
                }
            }
            Self::Sums(sums) => {
                let sums = sums.get(..MAX_ITEMS).unwrap_or(sums);
                writer.u32(sums.len() as u32);
                for sum in sums {
                    writer.u64(*sum);
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
            (NOT_YET, 1..=5) => refused(Status::NotYet),
            (GONE, 1..=5) => refused(Status::Gone),
            (0, 1) => Self::Described(Box::new(DescriptionPage::decode(&mut reader)?)),
            (0, 2) => {
                let count = reader.count("runs", MAX_LOCATED)?;
                Self::Located((0..count).map(|_| reader.u32()).collect::<Result<_>>()?)
            }
            (0, 3) => Self::Granted {
                ticket: reader.u64()?,
                grants: {
                    let count = reader.count("grants", MAX_ITEMS)?;
                    (0..count)
                        .map(|_| Grant::decode(reader.bytes(GRANT_BYTES)?))
                        .collect::<Result<_>>()?
                },
            },
            (0, 4) => {
                let count = reader.count("checksums", MAX_ITEMS)?;
                Self::Sums((0..count).map(|_| reader.u64()).collect::<Result<_>>()?)
            }
            (0, 5) => Self::Noted,
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
