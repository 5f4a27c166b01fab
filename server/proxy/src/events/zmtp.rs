//! The connecting side of ZMTP 3.0, ZeroMQ's protocol, as far as a subscriber and a dealer need it.
//!
//! It is spoken here, and not by a library, for two reasons: no length that the other side names is believed before it is
//! compared with a cap, and a connection that ends is seen to end instead of being opened again behind the caller's back.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::address::Address;

/// The largest message, all its frames together.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// The most frames of a message.
const MAX_FRAMES: usize = 16;
/// How long the rest of a message may take once its first byte is there.
const MESSAGE_LIMIT: Duration = Duration::from_secs(30);
/// A silent connection is looked after by the system, so that a machine that is gone is noticed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// Room for what is read at once.
const READ_BYTES: usize = 8 << 10;

const GREETING_BYTES: usize = 64;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What this side is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Gets what a publisher sends.
    Subscriber,
    /// Asks a router.
    Dealer,
}

/// A connection to a ZeroMQ socket.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    buffer: BytesMut,
    /// Frames of a message whose last one hasn't come yet, and their bytes.
    frames: Vec<Bytes>,
    frame_bytes: usize,
    /// When the first byte of a message came that isn't whole yet.
    begun: Option<Instant>,
}

struct Frame {
    flags: u8,
    body: Bytes,
}

fn broken(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl Link {
    /// Connects and shakes hands within `limit`. A subscriber gets everything.
    pub async fn connect(address: &Address, kind: Kind, limit: Duration) -> io::Result<Self> {
        let open = async {
            let stream = TcpStream::connect((address.host(), address.port())).await?;
            sockopt::set_socket_keepalive(&stream, true)?;
            sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
            sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
            sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_TRIES)?;
            let mut link = Self {
                stream,
                buffer: BytesMut::new(),
                frames: Vec::new(),
                frame_bytes: 0,
                begun: None,
            };
            link.shake_hands(kind).await?;
            Ok(link)
        };
        timeout(limit, open)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn shake_hands(&mut self, kind: Kind) -> io::Result<()> {
        let mut greeting = [0; GREETING_BYTES];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        self.stream.write_all(&greeting).await?;
        while self.buffer.len() < GREETING_BYTES {
            self.fill().await?;
        }
        let theirs = self.buffer.split_to(GREETING_BYTES);
        if (theirs[0], theirs[9]) != (0xff, 0x7f) || theirs[10] < 3 {
            return Err(broken("it doesn't speak ZMTP 3"));
        }
        if !theirs[12..32].starts_with(b"NULL\0") {
            return Err(broken("it wants a security mechanism"));
        }
        let name: &[u8] = match kind {
            Kind::Subscriber => b"SUB",
            Kind::Dealer => b"DEALER",
        };
        let ready = [
            &b"\x05READY\x0bSocket-Type\0\0\0"[..],
            &[name.len() as u8],
            name,
            b"\x08Identity\0\0\0\0",
        ]
        .concat();
        self.write_frame(COMMAND, &ready).await?;
        loop {
            if let Some(frame) = self.next_frame()? {
                if frame.flags & COMMAND != 0 && frame.body.starts_with(b"\x05READY") {
                    break;
                }
                return Err(broken("it refused the connection"));
            }
            self.fill().await?;
        }
        match kind {
            Kind::Subscriber => self.write_frame(0, b"\x01").await,
            Kind::Dealer => Ok(()),
        }
    }

    /// Sends a message.
    pub async fn send(&mut self, frames: &[&[u8]]) -> io::Result<()> {
        for (index, frame) in frames.iter().enumerate() {
            let more = if index + 1 < frames.len() { MORE } else { 0 };
            self.write_frame(more, frame).await?;
        }
        Ok(())
    }

    /// The next message's frames. Giving up waiting for it loses nothing.
    pub async fn receive(&mut self) -> io::Result<Vec<Bytes>> {
        loop {
            while let Some(frame) = self.next_frame()? {
                if frame.flags & COMMAND != 0 {
                    self.answer(&frame.body).await?;
                    if self.frames.is_empty() {
                        // the time of the next message begins with it
                        self.begun = None;
                    }
                    continue;
                }
                self.frame_bytes += frame.body.len();
                self.frames.push(frame.body);
                if self.frames.len() > MAX_FRAMES || self.frame_bytes > MAX_MESSAGE_BYTES {
                    return Err(broken("a message is too long"));
                }
                if frame.flags & MORE == 0 {
                    self.frame_bytes = 0;
                    self.begun = None;
                    return Ok(std::mem::take(&mut self.frames));
                }
            }
            if self.buffer.is_empty() && self.frames.is_empty() {
                self.fill().await?;
            } else {
                let begun = *self.begun.get_or_insert_with(Instant::now);
                timeout_at(begun + MESSAGE_LIMIT, self.fill())
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            }
        }
    }

    /// Answers a heartbeat; of other commands there are none that matter.
    async fn answer(&mut self, command: &[u8]) -> io::Result<()> {
        // behind the name come two bytes with a time to live, and what has to be sent back
        match command.strip_prefix(b"\x04PING").and_then(|rest| rest.get(2..)) {
            Some(context) => {
                let pong = [&b"\x04PONG"[..], context.get(..16).unwrap_or(context)].concat();
                self.write_frame(COMMAND, &pong).await
            }
            None => Ok(()),
        }
    }

    async fn write_frame(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(body.len() + 9);
        if let Ok(short) = u8::try_from(body.len()) {
            frame.extend_from_slice(&[flags, short]);
        } else {
            frame.push(flags | LONG);
            frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
        frame.extend_from_slice(body);
        timeout(MESSAGE_LIMIT, self.stream.write_all(&frame))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// A frame that has come whole.
    fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        let Some(flags) = self.buffer.first().copied() else {
            return Ok(None);
        };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(broken("a frame has unknown flags"));
        }
        let mut head = self.buffer.get(1..).unwrap_or_default();
        let length = if flags & LONG == 0 {
            if head.is_empty() {
                return Ok(None);
            }
            u64::from(head.get_u8())
        } else {
            if head.len() < 8 {
                return Ok(None);
            }
            head.get_u64()
        };
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= MAX_MESSAGE_BYTES)
            .ok_or_else(|| broken("a frame is too long"))?;
        let start = self.buffer.len() - head.len();
        if head.len() < length {
            // room for what was announced, now that it was compared with the cap
            self.buffer.reserve(start + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(start);
        Ok(Some(Frame {
            flags,
            body: self.buffer.split_to(length).freeze(),
        }))
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}
