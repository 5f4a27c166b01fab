//! Questions.

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::wire::fields::{Reader, Writer, malformed};

use super::{MAGIC, MAX_ITEMS, VERSION};
use crate::limits::MAX_NAME_BYTES;

/// Heads of successive blocks of a request that lie in one run of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The piece, counted through all layers of the producer's rank.
    pub piece: u32,
    /// The first block, counted in the request.
    pub first: u32,
    /// Blocks.
    pub blocks: u32,
    /// The first head, counted in the piece.
    pub first_head: u16,
    /// Heads.
    pub heads: u16,
}

/// What a consumer asks a producer's rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What its memory looks like.
    Describe {
        /// The first layer to tell of.
        from: u32,
    },
    /// In which runs blocks of a request lie.
    Locate {
        /// The producer's engine.
        engine_id: String,
        /// The request there.
        request: String,
        /// The first block, counted in the request.
        first: u32,
        /// Blocks, at most [`super::MAX_LOCATED`].
        blocks: u32,
    },
    /// Grants.
    Grant {
        /// The producer's engine.
        engine_id: String,
        /// The request there.
        request: String,
        /// Whether checksums are wanted, too.
        sums: bool,
        /// What for, at most [`MAX_ITEMS`].
        items: Vec<Item>,
    },
    /// The checksums that were wanted with grants.
    Sums {
        /// The number that came with the grants.
        ticket: u64,
    },
    /// A consumer's rank wants nothing of a request any more.
    Done {
        /// The producer's engine.
        engine_id: String,
        /// The request there.
        request: String,
        /// The consumer's rank.
        rank: u32,
        /// How many ranks the consumer has.
        ranks: u32,
    },
    /// How far the computation of a request is.
    Progress {
        /// The producer's engine.
        engine_id: String,
        /// The request there.
        request: String,
    },
}

impl Question {
    /// The number of its kind, which its answer has, too.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Describe { .. } => 1,
            Self::Locate { .. } => 2,
            Self::Grant { .. } => 3,
            Self::Sums { .. } => 4,
            Self::Done { .. } => 5,
            Self::Progress { .. } => 6,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.raw(&MAGIC);
        writer.raw(&[VERSION, self.kind(), 0, 0]);
        match self {
            Self::Describe { from } => writer.u32(*from),
            Self::Locate {
                engine_id,
                request,
                first,
                blocks,
            } => {
                writer.counted(engine_id.as_bytes());
                writer.counted(request.as_bytes());
                writer.u32(*first);
                writer.u32(*blocks);
            }
            Self::Grant {
                engine_id,
                request,
                sums,
                items,
            } => {
                writer.counted(engine_id.as_bytes());
                writer.counted(request.as_bytes());
                writer.u32(u32::from(*sums));
                let items = items.get(..MAX_ITEMS).unwrap_or(items);
                writer.u32(items.len() as u32);
                for item in items {
                    writer.u32(item.piece);
                    writer.u32(item.first);
                    writer.u32(item.blocks);
                    writer.u16(item.first_head);
                    writer.u16(item.heads);
                }
            }
            Self::Sums { ticket } => writer.u64(*ticket),
            Self::Done {
                engine_id,
                request,
                rank,
                ranks,
            } => {
                writer.counted(engine_id.as_bytes());
                writer.counted(request.as_bytes());
                writer.u32(*rank);
                writer.u32(*ranks);
            }
            Self::Progress { engine_id, request } => {
                writer.counted(engine_id.as_bytes());
                writer.counted(request.as_bytes());
            }
        }
        writer.into_bytes()
    }

    /// Parses a question. Fails with `Corrupt`, or with `Unsupported` for a version or kind that isn't known here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = super::reader(bytes)?;
        let (kind, status) = header(&mut reader)?;
        if status != 0 {
            return Err(malformed("a question has a status"));
        }
        let question = match kind {
            1 => Self::Describe { from: reader.u32()? },
            2 => Self::Locate {
                engine_id: reader.text(MAX_NAME_BYTES)?,
                request: reader.text(MAX_NAME_BYTES)?,
                first: reader.u32()?,
                blocks: reader.u32()?,
            },
            3 => Self::Grant {
                engine_id: reader.text(MAX_NAME_BYTES)?,
                request: reader.text(MAX_NAME_BYTES)?,
                sums: match reader.u32()? {
                    0 => false,
                    1 => true,
                    other => return Err(malformed(format!("flags {other:#x}"))),
                },
                items: items(&mut reader)?,
            },
            4 => Self::Sums {
                ticket: reader.u64()?,
            },
            5 => Self::Done {
                engine_id: reader.text(MAX_NAME_BYTES)?,
                request: reader.text(MAX_NAME_BYTES)?,
                rank: reader.u32()?,
                ranks: reader.u32()?,
            },
            6 => Self::Progress {
                engine_id: reader.text(MAX_NAME_BYTES)?,
                request: reader.text(MAX_NAME_BYTES)?,
            },
            _ => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("a question of kind {kind}"),
                ));
            }
        };
        reader.end()?;
        Ok(question)
    }
}

fn items(reader: &mut Reader<'_>) -> Result<Vec<Item>> {
    let count = reader.count("ranges", MAX_ITEMS)?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(Item {
            piece: reader.u32()?,
            first: reader.u32()?,
            blocks: reader.u32()?,
            first_head: reader.u16()?,
            heads: reader.u16()?,
        });
    }
    Ok(items)
}

/// Takes a header off; its kind and status.
pub(super) fn header(reader: &mut Reader<'_>) -> Result<(u8, u8)> {
    if reader.array()? != MAGIC {
        return Err(malformed("these bytes are no message of a hand-off"));
    }
    let [version, kind, status, zero] = reader.array()?;
    if version != VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("a message of version {version}, not {VERSION}"),
        ));
    }
    if zero != 0 {
        return Err(malformed("a spare byte is set"));
    }
    Ok((kind, status))
}
