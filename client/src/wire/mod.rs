//! The control protocol between a client and the daemon: fixed, versioned binary frames, little-endian.
//!
//! A frame is a header of [`HEADER_BYTES`] and a body:
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 2 | magic [`MAGIC`] |
//! | 2 | 1 | version [`VERSION`] |
//! | 3 | 1 | kind: a request below 128, an answer from 128 on |
//! | 4 | 4 | request id, chosen by the client; its answer carries the same |
//! | 8 | 4 | bytes of the body, at most [`MAX_BODY_BYTES`] |
//!
//! Every count and length is checked against its bound, and against the bytes that are there, before anything is
//! allocated. The bytes of blocks never travel here: they lie in the arena, whose file descriptor comes with the
//! welcome.

mod answer;
mod buffer;
mod frames;
mod namespace;
mod request;
#[cfg(test)]
mod tests;

use kvstored_core::error::{Error, ErrorKind, Result};

pub use answer::{Answer, Failure, Granted, Held};
pub use frames::FrameBuffer;
pub use request::Request;

use buffer::Writer;

/// First two bytes of each frame.
pub const MAGIC: u16 = 0x534B;
/// Version of frames and messages.
pub const VERSION: u8 = 2;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 12;
/// The largest frame, header included.
pub const MAX_FRAME_BYTES: usize = 8 << 20;
/// The largest body.
pub const MAX_BODY_BYTES: usize = MAX_FRAME_BYTES - HEADER_BYTES;
/// Most hashes, leases or reservations in one message.
pub const MAX_BLOCKS: usize = 65_536;
/// Most events in one message: a full answer takes half a megabyte.
pub const MAX_EVENTS: usize = 8192;
/// The longest text field.
pub const MAX_TEXT_BYTES: usize = 64 << 10;
/// The longest JSON field of an answer.
pub const MAX_JSON_BYTES: usize = 4 << 20;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which request or answer the body is.
    pub kind: u8,
    /// Pairs an answer with its request.
    pub id: u32,
    /// Bytes of the body.
    pub body_bytes: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// Fails with `Unsupported` for another version, and with `InvalidInput` for a wrong magic or a body above
    /// the bound; either way the stream can't be read on.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let [m0, m1, version, kind, i0, i1, i2, i3, l0, l1, l2, l3] = *bytes;
        let magic = u16::from_le_bytes([m0, m1]);
        if magic != MAGIC {
            return Err(Error::invalid(format!(
                "a frame begins with {magic:#06x}, not {MAGIC:#06x}"
            )));
        }
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("a frame has protocol version {version}; this build speaks {VERSION}"),
            ));
        }
        let body_bytes = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if body_bytes > MAX_BODY_BYTES {
            return Err(Error::invalid(format!(
                "a frame's body has {body_bytes} bytes; at most {MAX_BODY_BYTES} are accepted"
            )));
        }
        Ok(Self {
            kind,
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            body_bytes,
        })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let [m0, m1] = MAGIC.to_le_bytes();
        let [i0, i1, i2, i3] = self.id.to_le_bytes();
        let [l0, l1, l2, l3] = (self.body_bytes as u32).to_le_bytes();
        [m0, m1, VERSION, self.kind, i0, i1, i2, i3, l0, l1, l2, l3]
    }
}

/// A whole frame with a request. Fails with `InvalidInput` where the message exceeds a bound.
pub fn request_frame(id: u32, request: &Request<'_>) -> Result<Vec<u8>> {
    let mut writer = Writer::with_header();
    request.write(&mut writer)?;
    seal(writer, request.kind(), id)
}

/// A whole frame with an answer. Fails with `InvalidInput` where the message exceeds a bound.
pub fn answer_frame(id: u32, answer: &Answer) -> Result<Vec<u8>> {
    let mut writer = Writer::with_header();
    answer.write(&mut writer)?;
    seal(writer, answer.kind(), id)
}

fn seal(writer: Writer, kind: u8, id: u32) -> Result<Vec<u8>> {
    let mut frame = writer.into_bytes();
    let body_bytes = frame.len().saturating_sub(HEADER_BYTES);
    if body_bytes > MAX_BODY_BYTES {
        return Err(Error::invalid(format!(
            "a message has {body_bytes} bytes; at most {MAX_BODY_BYTES} are accepted: ask for fewer blocks at a time"
        )));
    }
    if let Some(place) = frame.get_mut(..HEADER_BYTES) {
        place.copy_from_slice(&Header { kind, id, body_bytes }.encode());
    }
    Ok(frame)
}
