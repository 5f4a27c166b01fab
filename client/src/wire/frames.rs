//! Cutting a stream of bytes into frames.

use kvstored_core::error::Result;

use super::{HEADER_BYTES, Header};

/// Room that's always there; the usual read and the usual message fit.
const USUAL_BYTES: usize = 64 << 10;

/// Room that stays after a larger message.
const KEPT_BYTES: usize = 1 << 20;

/// Bytes received and not yet taken as frames.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl FrameBuffer {
    /// Room to read into; never empty. It grows with what has come, not with what a header announces.
    pub fn space(&mut self) -> &mut [u8] {
        if self.begin > 0 {
            self.bytes.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        if self.end == 0 && self.bytes.len() > KEPT_BYTES {
            self.bytes.truncate(USUAL_BYTES);
            self.bytes.shrink_to_fit();
        }
        if self.bytes.len() - self.end < USUAL_BYTES / 2 {
            self.bytes.resize((2 * self.bytes.len()).max(USUAL_BYTES), 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// `count` bytes were read into [`FrameBuffer::space`].
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// Whether part of a frame waits for the rest.
    pub fn is_partial(&self) -> bool {
        self.begin < self.end
    }

    /// The next whole frame. Fails as [`Header::decode`] does: then the stream can't be read on.
    pub fn next_frame(&mut self) -> Result<Option<(Header, &[u8])>> {
        let waiting = self.bytes.get(self.begin..self.end).unwrap_or_default();
        let Some(header) = waiting.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::decode(header)?;
        let Some(body) = waiting.get(HEADER_BYTES..HEADER_BYTES + header.body_bytes) else {
            return Ok(None);
        };
        self.begin += HEADER_BYTES + header.body_bytes;
        Ok(Some((header, body)))
    }
}
