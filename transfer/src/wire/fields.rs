//! Reading and writing single fields of messages, little-endian. Every read checks what is left.

use kvstored_core::{Error, ErrorKind, Result};

/// The error of a message that isn't made as it must be.
pub fn malformed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

fn truncated() -> Error {
    malformed("a message ends in the middle of a field")
}

/// Takes fields off the front of a message. Everything fails with `Corrupt` where the message has too little.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// At the front of a message.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A number of bytes that is known when it's compiled.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A number of one byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// A number of two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// A number of four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A number of eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things in four bytes, at most `most`.
    pub fn count(&mut self, what: &str, most: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        if count > most {
            return Err(malformed(format!("{count} {what}; at most {most} are accepted")));
        }
        Ok(count)
    }

    /// Bytes with their length in two bytes in front, at most `most`.
    pub fn counted(&mut self, most: usize) -> Result<&'a [u8]> {
        let length = usize::from(self.u16()?);
        if length > most {
            return Err(malformed(format!(
                "a field of {length} bytes; at most {most} are accepted"
            )));
        }
        self.bytes(length)
    }

    /// Text with its length in front.
    pub fn text(&mut self, most: usize) -> Result<String> {
        String::from_utf8(self.counted(most)?.to_vec()).map_err(|_| malformed("a text is no UTF-8"))
    }

    /// Fails when something is left.
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
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// The message.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Its bytes so far.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A number of one byte.
    pub fn u8(&mut self, value: u8) {
        self.raw(&value.to_le_bytes());
    }

    /// A number of two bytes.
    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    /// A number of four bytes.
    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// A number of eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Bytes with their length in front; what doesn't fit in 16 bits is cut off, so callers check lengths before.
    pub fn counted(&mut self, bytes: &[u8]) {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.u16(length);
        self.raw(bytes.get(..usize::from(length)).unwrap_or_default());
    }
}
