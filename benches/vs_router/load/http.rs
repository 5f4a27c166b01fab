//! As little HTTP as the load needs.

use std::io::{Error, Result};
use std::net::SocketAddr;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The end of a chunked body.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";
/// The largest answer or request that is taken.
const MAX_BYTES: usize = 1 << 20;

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With the whole answer.
    Whole,
    /// Without a byte of an answer's body, or with an error status: another try could have saved it.
    Lost,
    /// In the middle of the answer.
    Broken,
}

/// Opens a connection.
pub async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A completion request with that body.
pub fn request(body: &str) -> Vec<u8> {
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: proxy\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads one message to its end; false if the connection ended before.
pub async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<bool> {
    buffer.clear();
    let mut expected = None;
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(false);
        }
        if buffer.len() > MAX_BYTES {
            return Err(Error::other("a message is too long"));
        }
        if expected.is_none() {
            expected = memmem::find(buffer, b"\r\n\r\n").map(|head| length(buffer, head));
        }
        match expected {
            Some(Some(length)) if buffer.len() >= length => return Ok(true),
            Some(None) if buffer.ends_with(LAST_CHUNK) => return Ok(true),
            _ => {}
        }
    }
}

/// The length of a message whose head ends there; none if its body is chunked.
fn length(message: &[u8], head: usize) -> Option<usize> {
    let text = String::from_utf8_lossy(message.get(..head)?).to_ascii_lowercase();
    if text.contains("transfer-encoding: chunked") {
        return None;
    }
    let body = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse::<usize>().ok())
        .unwrap_or(0);
    Some(head + 4 + body)
}

/// Sends a request and reads its answer. An error leaves the connection of no use.
pub async fn call(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Ending {
    buffer.clear();
    let ended = match stream.write_all(request).await {
        Ok(()) => read_message(stream, buffer).await.unwrap_or(false),
        Err(_) => false,
    };
    ending(buffer, ended)
}

/// What became of a request, by what came back.
pub fn ending(answer: &[u8], ended: bool) -> Ending {
    let has_begun = memmem::find(answer, b"data: ").is_some();
    if !has_begun {
        let is_prefill = ended && memmem::find(answer, b"kv_transfer_params").is_some();
        return if is_prefill { Ending::Whole } else { Ending::Lost };
    }
    if ended && memmem::find(answer, b"[DONE]").is_some() {
        Ending::Whole
    } else {
        Ending::Broken
    }
}
