//! What the two cards say to each other.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use crate::layout::ENDPOINT_BYTES;

/// Asks for the list of what is exposed.
pub(crate) const LIST: u8 = 1;
/// Writes bytes.
pub(crate) const PUT: u8 = 2;
/// Reads bytes.
pub(crate) const GET: u8 = 3;
/// The most bytes of one read or write.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// Where the server of an address and port listens.
pub(crate) fn socket(ip: &str, port: u32) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("kvstored-emulated-hixl/{ip}/{port}"))
}

pub(crate) fn number(stream: &mut UnixStream) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A request: its kind, an address and a length.
pub(crate) fn ask(stream: &mut UnixStream, kind: u8, address: u64, bytes: u64) -> std::io::Result<()> {
    let mut frame = [0; 17];
    frame[0] = kind;
    frame[1..9].copy_from_slice(&address.to_le_bytes());
    frame[9..].copy_from_slice(&bytes.to_le_bytes());
    stream.write_all(&frame)
}

pub(crate) fn asked(stream: &mut UnixStream) -> std::io::Result<(u8, u64, u64)> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    Ok((kind[0], number(stream)?, number(stream)?))
}

/// The description of a card.
pub(crate) type Card = [u8; ENDPOINT_BYTES];
