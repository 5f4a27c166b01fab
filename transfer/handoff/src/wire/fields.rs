//! Reading and writing single fields, little-endian. Every read checks what is left.

use kvstored_core::{Error, ErrorKind, Result};

use super::MAX_MESSAGE_BYTES;
use crate::limits::MAX_NAME_BYTES;

/// The error of a message that isn't made as it must be.
pub(crate) fn malformed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

/// Takes fields off the front of a message.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Fails with `Corrupt` for more bytes than a message has.
    pub fn of_message(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(malformed(format!("a message of {} bytes", bytes.len())));
        }
        Ok(Self { rest: bytes })
    }

    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| malformed("a message ends in the middle of a field"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| malformed("a message ends in the middle of a field"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things, at most `most`.
    pub fn count(&mut self, what: &str, most: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        if count > most {
            return Err(malformed(format!("{count} {what}; at most {most} are accepted")));
        }
        Ok(count)
    }

    /// A name or other short bytes, with their length in front.
    pub fn short(&mut self) -> Result<&'a [u8]> {
        let length = usize::from(self.u16()?);
        if length > MAX_NAME_BYTES {
            return Err(malformed(format!(
                "a name of {length} bytes; at most {MAX_NAME_BYTES} are accepted"
            )));
        }
        self.bytes(length)
    }

    /// A name.
    pub fn name(&mut self) -> Result<String> {
        String::from_utf8(self.short()?.to_vec()).map_err(|_| malformed("a name is no UTF-8"))
    }

    /// Fails with `Corrupt` when something is left.
    pub fn end(self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(malformed("a message has bytes behind its end"))
        }
    }
}

/// Appends fields to a message.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Bytes with their length in front; callers check lengths before.
    pub fn short(&mut self, bytes: &[u8]) {
        let bytes = bytes.get(..MAX_NAME_BYTES).unwrap_or(bytes);
        self.u16(bytes.len() as u16);
        self.raw(bytes);
    }
}
