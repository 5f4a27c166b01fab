//! Plain sockets, 1 MiB at a time: the most that transfers over TCP can be worth.
//!
//! A request is a header of 16 bytes (what is wanted, 8 bytes, and how many bytes, 8, little-endian). For a read the
//! bytes come back; for a write they follow the header, and one byte comes back.

use std::io::{ErrorKind as IoKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use kvstored_core::{Error, Result};

use super::cases::Direction;
use crate::tools::buffer::Buffer;

/// Bytes of a send.
const SEND_BYTES: usize = 1 << 20;
const HEADER_BYTES: usize = 16;
/// Nobody who measures is silent for so long.
const PATIENCE: Duration = Duration::from_mins(2);
const READ: u64 = 1;
const WRITE: u64 = 2;

fn failed(error: std::io::Error) -> Error {
    Error::from_io(error, "raw sockets")
}

fn prepared(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    Ok(stream)
}

fn header(kind: u64, bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&(bytes as u64).to_le_bytes());
    header
}

fn parsed(header: [u8; HEADER_BYTES]) -> (u64, u64) {
    let [kind, bytes] = [0, 8].map(|at| {
        let mut word = [0; 8];
        word.copy_from_slice(header.get(at..at + 8).unwrap_or(&[0; 8]));
        u64::from_le_bytes(word)
    });
    (kind, bytes)
}

/// Serves one client until it goes.
pub fn serve(listener: &TcpListener, buffer_bytes: usize) -> Result<()> {
    let (stream, _) = listener.accept().map_err(failed)?;
    answer_all(prepared(stream)?, Buffer::new(buffer_bytes)?)
}

fn answer_all(mut stream: TcpStream, mut buffer: Buffer) -> Result<()> {
    loop {
        let mut header = [0; HEADER_BYTES];
        // what follows a header is already wanted in the buffer, and nothing follows a header of a read
        let mut parts = [
            IoSliceMut::new(&mut header),
            IoSliceMut::new(buffer.as_mut_slice()),
        ];
        let mut arrived = match stream.read_vectored(&mut parts) {
            Ok(0) => return Ok(()),
            Ok(arrived) => arrived,
            Err(error) if error.kind() == IoKind::Interrupted => continue,
            Err(error) if error.kind() == IoKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        if let Some(rest) = header.get_mut(arrived..).filter(|rest| !rest.is_empty()) {
            stream.read_exact(rest).map_err(failed)?;
            arrived = HEADER_BYTES;
        }
        match parsed(header) {
            (READ, bytes) => send_all(&mut stream, &buffer, bytes)?,
            (WRITE, bytes) => {
                let early = arrived - HEADER_BYTES;
                receive_all(&mut stream, &mut buffer, early, bytes)?;
                stream.write_all(&[1]).map_err(failed)?;
            }
            (kind, _) => return Err(Error::invalid(format!("raw request {kind}"))),
        }
    }
}

/// Sends the buffer from its start, as often as it takes.
fn send_all(stream: &mut TcpStream, buffer: &Buffer, bytes: u64) -> Result<()> {
    let mut left = bytes as usize;
    let mut offset = 0;
    while left > 0 {
        let length = left.min(SEND_BYTES).min(buffer.len() - offset);
        stream
            .write_all(buffer.as_slice().get(offset..offset + length).unwrap_or_default())
            .map_err(failed)?;
        left -= length;
        offset = (offset + length) % buffer.len();
    }
    Ok(())
}

/// Receives to the buffer from its start, as often as it takes; the first `early` bytes are there.
fn receive_all(stream: &mut TcpStream, buffer: &mut Buffer, early: usize, bytes: u64) -> Result<()> {
    let capacity = buffer.len();
    let mut received = early;
    while (received as u64) < bytes {
        let offset = received % capacity;
        let length = (bytes as usize - received).min(capacity - offset);
        let free = buffer.as_mut_slice().get_mut(offset..offset + length);
        match stream.read(free.unwrap_or_default()) {
            Ok(0) => return Err(failed(IoKind::UnexpectedEof.into())),
            Ok(read) => received += read,
            Err(error) if error.kind() == IoKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// The side that asks.
pub struct RawClient {
    stream: TcpStream,
    buffer: Buffer,
}

impl RawClient {
    /// Connects, with memory of that many bytes.
    pub fn connect(address: SocketAddr, buffer_bytes: usize) -> Result<Self> {
        Ok(Self {
            stream: prepared(TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?)?,
            buffer: Buffer::new(buffer_bytes)?,
        })
    }

    /// Moves that many bytes and waits until they are there.
    pub fn transfer(&mut self, direction: Direction, bytes: usize) -> Result<()> {
        match direction {
            Direction::Read => {
                self.stream.write_all(&header(READ, bytes)).map_err(failed)?;
                receive_all(&mut self.stream, &mut self.buffer, 0, bytes as u64)
            }
            Direction::Write => {
                let first = bytes.min(SEND_BYTES).min(self.buffer.len());
                self.send_first(bytes, first)?;
                let mut left = bytes - first;
                let mut offset = first % self.buffer.len();
                while left > 0 {
                    let length = left.min(SEND_BYTES).min(self.buffer.len() - offset);
                    let part = self.buffer.as_slice().get(offset..offset + length);
                    self.stream.write_all(part.unwrap_or_default()).map_err(failed)?;
                    left -= length;
                    offset = (offset + length) % self.buffer.len();
                }
                self.stream.read_exact(&mut [0]).map_err(failed)
            }
        }
    }

    /// Sends the header and the first bytes with one call where the socket takes them.
    fn send_first(&mut self, bytes: usize, first: usize) -> Result<()> {
        let header = header(WRITE, bytes);
        let part = self.buffer.as_slice().get(..first).unwrap_or_default();
        let mut parts = [IoSlice::new(&header), IoSlice::new(part)];
        let mut rest = &mut parts[..];
        while !rest.is_empty() {
            match self.stream.write_vectored(rest) {
                Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::Runtime;

    #[test]
    fn any_number_of_bytes_goes_both_ways() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let body = Box::new(move || serve(&listener, 100_000).unwrap());
        let thread = Runtime::system().spawner.spawn("raw", body).unwrap();
        let mut client = RawClient::connect(address, 70_000).unwrap();
        client.buffer.as_mut_slice().fill(7);
        client.transfer(Direction::Write, 70_000).unwrap();
        client.buffer.as_mut_slice().fill(0);
        client.transfer(Direction::Read, 100_000).unwrap();
        // the last 30,000 of what was read are the peer's own
        assert!(client.buffer.as_slice()[..30_000].iter().all(|byte| *byte == 0));
        assert!(client.buffer.as_slice()[30_000..].iter().all(|byte| *byte == 7));
        for bytes in [1, 16, 4096, 1 << 20, (3 << 20) + 1] {
            client.transfer(Direction::Read, bytes).unwrap();
            client.transfer(Direction::Write, bytes).unwrap();
        }
        drop(client);
        thread.join();
    }

    #[test]
    fn a_request_that_is_none_ends_the_server() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.write_all(&[9; HEADER_BYTES]).unwrap();
        assert!(
            serve(&listener, 1)
                .unwrap_err()
                .to_string()
                .contains("raw request")
        );
    }
}
