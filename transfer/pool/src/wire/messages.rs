//! What a client asks of a node, and what the node answers.

use std::collections::VecDeque;

use kvstored_core::{Error, ErrorKind, Result};

use super::{MAX_BODY_BYTES, MAX_ITEMS, MAX_KEY_BYTES, Reader, Writer};

/// The longest grant or token on the wire.
const MAX_GRANT_BYTES: usize = 192;
/// The longest word on what a grant is worth.
const MAX_WORTH_BYTES: usize = 96;
/// The longest text of an error; so that an answer of errors is no larger than one of grants.
const MAX_MESSAGE_BYTES: usize = 192;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The right to write a range that a master gave to a put.
    Open,
    /// The put is complete: the node checks nothing but keeps the descriptor.
    Seal,
    /// The right to read an object.
    Read,
    /// The put is given up.
    Abandon,
}

impl Verb {
    const ALL: [Verb; 4] = [Self::Open, Self::Seal, Self::Read, Self::Abandon];

    /// The question's first byte.
    pub fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Seal => 2,
            Self::Read => 3,
            Self::Abandon => 4,
        }
    }

    /// The verb with that first byte. Fails with `Unsupported`.
    pub fn of_code(code: u8) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|verb| verb.code() == code);
        known.ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("a question of sort {code}")))
    }
}

/// One object of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The put that writes it or wrote it.
    pub put: u64,
    /// Where its range begins in the segment.
    pub offset: u64,
    /// Bytes of the range.
    pub length: u64,
    /// CRC-64/NVME of the bytes; only `Seal` means it.
    pub checksum: u64,
    /// The object's whole key.
    pub key: Box<[u8]>,
    /// The master's token of the put; only `Open` means it.
    pub token: Box<[u8]>,
}

/// A batch of one verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The objects.
    pub items: Vec<Item>,
}

impl Item {
    /// Bytes that it takes in a question.
    pub fn encoded_bytes(&self) -> usize {
        4 * 8 + 2 + self.key.len() + 2 + self.token.len()
    }
}

impl Request {
    /// Takes the first items off, as many as one question and its answer hold.
    pub fn next_part(items: &mut VecDeque<Item>) -> Self {
        let mut bytes = 2;
        let fits = |item: &&Item| {
            bytes += item.encoded_bytes();
            bytes <= MAX_BODY_BYTES
        };
        let count = items.iter().take(MAX_ITEMS).take_while(fits).count();
        // an item alone always fits
        let count = count.max(1).min(items.len());
        Self {
            items: items.drain(..count).collect(),
        }
    }

    /// The payload. Fails with `InvalidInput` when there are too many items or a key is too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.items.len() > MAX_ITEMS {
            return Err(Error::invalid(format!(
                "{} items in a request; at most {MAX_ITEMS} are accepted",
                self.items.len()
            )));
        }
        let mut writer = Writer::default();
        writer.u16(self.items.len() as u16);
        for item in &self.items {
            if item.key.len() > MAX_KEY_BYTES || item.token.len() > MAX_GRANT_BYTES {
                let message = format!(
                    "a key of {} bytes; at most {MAX_KEY_BYTES} are accepted",
                    item.key.len()
                );
                return Err(Error::invalid(message));
            }
            writer.u64(item.put);
            writer.u64(item.offset);
            writer.u64(item.length);
            writer.u64(item.checksum);
            writer.counted(&item.key);
            writer.counted(&item.token);
        }
        Ok(writer.into_bytes())
    }

    /// Parses a payload. Fails with `Corrupt`.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let count = usize::from(reader.u16()?);
        if count > MAX_ITEMS {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{count} items in a request"),
            ));
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(Item {
                put: reader.u64()?,
                offset: reader.u64()?,
                length: reader.u64()?,
                checksum: reader.u64()?,
                key: reader.counted(MAX_KEY_BYTES)?.into(),
                token: reader.counted(MAX_GRANT_BYTES)?.into(),
            });
        }
        reader.end()?;
        Ok(Self { items })
    }
}

/// What a node answers for one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For `Open` and `Read`: the grant, in the engine's encoding.
    pub grant: Box<[u8]>,
    /// For `Open` and `Read` between processes that share memory: what the engine foretells of the grant. Else empty.
    pub worth: Box<[u8]>,
    /// For `Read`: CRC-64/NVME of the object's bytes.
    pub checksum: u64,
    /// For `Seal`: the fencing epoch of the master that the node obeys.
    pub master_epoch: u64,
}

/// The answers to a request, in its order.
#[derive(Debug)]
pub struct Answers {
    /// One for each item.
    pub items: Vec<Result<Answer>>,
}

impl Answers {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u16(self.items.len().min(MAX_ITEMS) as u16);
        for item in self.items.iter().take(MAX_ITEMS) {
            match item {
                Ok(answer) => {
                    writer.u8(0);
                    writer.counted(&answer.grant);
                    writer.counted(&answer.worth);
                    writer.u64(answer.checksum);
                    writer.u64(answer.master_epoch);
                }
                Err(error) => {
                    writer.u8(1);
                    writer.u8(error.kind().code());
                    let text = error.message().as_bytes();
                    writer.counted(text.get(..MAX_MESSAGE_BYTES).unwrap_or(text));
                }
            }
        }
        writer.into_bytes()
    }

    /// Parses a payload with as many answers as there were items. Fails with `Corrupt`.
    pub fn decode(payload: &[u8], expected: usize) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let count = usize::from(reader.u16()?);
        if count != expected {
            let message = format!("{count} answers to {expected} questions");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(match reader.u8()? {
                0 => Ok(Answer {
                    grant: reader.counted(MAX_GRANT_BYTES)?.into(),
                    worth: reader.counted(MAX_WORTH_BYTES)?.into(),
                    checksum: reader.u64()?,
                    master_epoch: reader.u64()?,
                }),
                1 => {
                    let kind = ErrorKind::from_code(reader.u8()?);
                    let text = reader.counted(MAX_MESSAGE_BYTES)?;
                    Err(Error::new(kind, String::from_utf8_lossy(text)))
                }
                other => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("an answer of sort {other}"),
                    ));
                }
            });
        }
        reader.end()?;
        Ok(Self { items })
    }
}
