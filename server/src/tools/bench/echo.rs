//! A process that answers on a Unix socket and does nothing else: the least that a round trip can cost.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use kvstored_core::{Error, Result};

/// Largest request and answer.
const MAX_BYTES: usize = 4 << 20;
/// Nobody who measures is silent for so long.
const PATIENCE: Duration = Duration::from_mins(2);

fn failed(error: std::io::Error) -> Error {
    Error::from_io(error, "echo")
}

/// Serves one client until it goes. A request is its own length and the answer's, 4 bytes each, and bytes.
pub fn serve(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).map_err(failed)?;
    let (stream, _) = listener.accept().map_err(failed)?;
    answer_all(stream)
}

fn answer_all(mut stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut buffer = vec![0u8; MAX_BYTES];
    let mut filled = 0;
    loop {
        let free = buffer.get_mut(filled..).unwrap_or_default();
        match stream.read(free) {
            Ok(0) => return Ok(()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        }
        let Some((request, answer)) = lengths(&buffer, filled) else {
            continue;
        };
        if request > MAX_BYTES || answer > MAX_BYTES || request < 8 {
            return Err(Error::invalid(format!("echo of {request} and {answer} bytes")));
        }
        if filled >= request {
            stream
                .write_all(buffer.get(..answer).unwrap_or_default())
                .map_err(failed)?;
            filled = 0;
        }
    }
}

fn lengths(buffer: &[u8], filled: usize) -> Option<(usize, usize)> {
    let word = |at: usize| {
        let bytes = buffer.get(at..at + 4).filter(|_| filled >= 8)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    Some((word(0)?, word(4)?))
}

/// The side that asks.
pub struct EchoClient {
    stream: UnixStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl EchoClient {
    /// Uses a connection for requests and answers of those sizes.
    pub fn new(stream: UnixStream, request_bytes: usize, answer_bytes: usize) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut request = vec![0u8; request_bytes.clamp(8, MAX_BYTES)];
        let answer = vec![0u8; answer_bytes.clamp(1, MAX_BYTES)];
        let header = [request.len() as u32, answer.len() as u32]
            .map(u32::to_le_bytes)
            .concat();
        request
            .iter_mut()
            .zip(header)
            .for_each(|(place, byte)| *place = byte);
        Ok(Self {
            stream,
            request,
            answer,
        })
    }

    /// One round trip.
    pub fn round_trip(&mut self) -> Result<()> {
        self.stream.write_all(&self.request).map_err(failed)?;
        self.stream.read_exact(&mut self.answer).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::Runtime;

    #[test]
    fn requests_of_any_size_are_answered() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let body = Box::new(move || drop(answer_all(theirs)));
        let thread = Runtime::system().spawner.spawn("echo", body).unwrap();
        let again = ours.try_clone().unwrap();
        let mut small = EchoClient::new(ours, 16, 16).unwrap();
        for _ in 0..10 {
            small.round_trip().unwrap();
        }
        let mut large = EchoClient::new(again, 300_000, 5).unwrap();
        for _ in 0..3 {
            large.round_trip().unwrap();
        }
        drop((small, large));
        thread.join();
    }
}
