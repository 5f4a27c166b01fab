//! Reading and writing single fields. Every read checks what is left.

use kvstored_core::{Error, ErrorKind, Result};

fn truncated() -> Error {
    Error::new(ErrorKind::Corrupt, "a message ends in the middle of a field")
}

/// Takes fields off the front of a message.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.bytes(N)?.try_into().map_err(|_| truncated())
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Bytes with their length in front; fails with `Corrupt` when there are more than `most`.
    pub fn counted(&mut self, most: usize) -> Result<&'a [u8]> {
        let length = usize::from(self.u16()?);
        if length > most {
            let message = format!("a field of {length} bytes; at most {most} are accepted");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        self.bytes(length)
    }

    /// Fails with `Corrupt` when something is left.
    pub fn end(self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Corrupt,
                "a message has bytes behind its end",
            ))
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

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn u8(&mut self, value: u8) {
        self.raw(&value.to_le_bytes());
    }

    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

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
