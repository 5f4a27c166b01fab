//! What a node tells those who keep an index of the pool.

use kvstored_core::{Error, ErrorKind, Result};

use super::{MAX_KEY_BYTES, MAX_KEYS, Reader, Writer};

/// A position to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// The number of a change, or an offset in a segment.
    pub position: u64,
}

impl Since {
    /// The kind of a question about changes.
    pub const CHANGES: u8 = 5;
    /// The kind of a question about what is there.
    pub const LISTING: u8 = 6;

    /// The payload.
    pub fn encode(self) -> Vec<u8> {
        self.position.to_le_bytes().to_vec()
    }

    /// Parses a payload. Fails with `Corrupt`.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let position = reader.u64()?;
        reader.end()?;
        Ok(Self { position })
    }
}

/// An object came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whether it came.
    pub stored: bool,
    /// Its whole key.
    pub key: Box<[u8]>,
}

/// A run of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Changes between the position asked for and the first told here are lost: list what is there, then go on from
    /// `next`.
    pub lost: bool,
    /// Where to go on.
    pub next: u64,
    /// The changes.
    pub changes: Vec<Change>,
}

impl Changes {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u8(u8::from(self.lost));
        writer.u64(self.next);
        writer.u16(self.changes.len().min(MAX_KEYS) as u16);
        for change in self.changes.iter().take(MAX_KEYS) {
            writer.u8(u8::from(change.stored));
            writer.counted(&change.key);
        }
        writer.into_bytes()
    }

    /// Parses a payload. Fails with `Corrupt`.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let lost = flag(reader.u8()?)?;
        let next = reader.u64()?;
        let count = count(&mut reader)?;
        let mut changes = Vec::with_capacity(count);
        for _ in 0..count {
            changes.push(Change {
                stored: flag(reader.u8()?)?,
                key: reader.counted(MAX_KEY_BYTES)?.into(),
            });
        }
        reader.end()?;
        Ok(Self { lost, next, changes })
    }
}

/// Some of the objects that a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Their keys.
    pub keys: Vec<Box<[u8]>>,
    /// Where to go on; [`u64::MAX`] at the end.
    pub next: u64,
}

impl Listing {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u64(self.next);
        writer.u16(self.keys.len().min(MAX_KEYS) as u16);
        for key in self.keys.iter().take(MAX_KEYS) {
            writer.counted(key);
        }
        writer.into_bytes()
    }

    /// Parses a payload. Fails with `Corrupt`.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let next = reader.u64()?;
        let count = count(&mut reader)?;
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            keys.push(reader.counted(MAX_KEY_BYTES)?.into());
        }
        reader.end()?;
        Ok(Self { keys, next })
    }
}

fn count(reader: &mut Reader<'_>) -> Result<usize> {
    let count = usize::from(reader.u16()?);
    if count > MAX_KEYS {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("{count} items in an answer"),
        ));
    }
    Ok(count)
}

fn flag(byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::new(ErrorKind::Corrupt, format!("a flag of {other}"))),
    }
}
