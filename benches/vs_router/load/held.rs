//! Streams that have begun and don't end.

use std::io::{Error, Result, Write};
use std::net::SocketAddr;

use memchr::memmem;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::{connect, request};

/// Connections opened at the same time.
const WINDOW: usize = 64;

/// Opens the streams, says so, waits for a line, and reads them to their ends.
pub async fn hold(address: SocketAddr, streams: usize) -> Result<()> {
    let request = request(r#"{"model":"m","prompt":"Say something","max_tokens":16,"stream":true}"#);
    let mut held = Vec::with_capacity(streams);
    while held.len() < streams {
        let mut window = Vec::with_capacity(WINDOW);
        for _ in 0..WINDOW.min(streams - held.len()) {
            let mut stream = connect(address).await?;
            stream.write_all(&request).await?;
            window.push(stream);
        }
        for stream in &mut window {
            await_event(stream).await?;
        }
        held.append(&mut window);
    }
    println!("{}", json!({"held": held.len()}));
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let mut whole = 0;
    for mut stream in held {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n0\r\n\r\n") && stream.read_buf(&mut text).await? > 0 {}
        whole += u64::from(memmem::find(&text, b"[DONE]").is_some());
    }
    println!("{}", json!({"whole": whole}));
    Ok(())
}

async fn await_event(stream: &mut TcpStream) -> Result<()> {
    let mut text = Vec::with_capacity(1024);
    while memmem::find(&text, b"data: ").is_none() {
        if stream.read_buf(&mut text).await? == 0 {
            let text = String::from_utf8_lossy(&text);
            return Err(Error::other(format!("a stream didn't begin: {text}")));
        }
    }
    Ok(())
}
