//! Instances that compute nothing: the prefill's answer and the stream's events are always the same bytes.

use std::io::{Error, Result, Write};
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::http::read_message;

const PREFILL: &str = r#"{"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m","choices":[{"index":0,"text":" a","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":512,"total_tokens":513,"completion_tokens":1},"kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[1,2,3,4],"remote_engine_id":"3f0c7c11","remote_host":"127.0.0.1","remote_port":5600,"tp_size":1,"remote_request_id":"cmpl-1"}}"#;
const EVENT: &str = "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}]}\n\n";
const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

struct Answers {
    prefill: Vec<u8>,
    models: Vec<u8>,
    empty: Vec<u8>,
    /// The head and the first event, the other events, and the last.
    events: Vec<Vec<u8>>,
    pause: Option<Duration>,
}

impl Answers {
    fn new(events: usize, pause: Option<Duration>) -> Self {
        let whole = |body: &str| {
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes()
        };
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let mut pieces = vec![format!("{HEAD}{}", chunk(EVENT))];
        pieces.extend((1..events).map(|_| chunk(EVENT)));
        pieces.push(chunk("data: [DONE]\n\n") + "0\r\n\r\n");
        if pause.is_none() {
            // what follows the first event goes out at once
            let rest = pieces.split_off(1).concat();
            pieces.push(rest);
        }
        Self {
            prefill: whole(PREFILL),
            models: whole(r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#),
            empty: whole(""),
            events: pieces.into_iter().map(String::into_bytes).collect(),
            pause,
        }
    }
}

/// Prints the ports as a list of JSON and serves. A line `close` on the standard input stops streams behind their first
/// event, a line `open` lets them end.
pub async fn serve(count: usize, events: usize, pause: Option<Duration>) -> Result<()> {
    let answers = Arc::new(Answers::new(events, pause));
    let gate = watch::Sender::new(true);
    let mut ports = Vec::new();
    for _ in 0..count {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let listener = socket.listen(4096)?;
        ports.push(listener.local_addr()?.port());
        tokio::spawn(accept(listener, Arc::clone(&answers), gate.subscribe()));
    }
    println!("{ports:?}");
    std::io::stdout().flush()?;
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines() {
            gate.send_replace(line? != "close");
        }
        Ok(())
    })
    .await
    .map_err(Error::other)?
}

async fn accept(listener: TcpListener, answers: Arc<Answers>, gate: watch::Receiver<bool>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (answers, gate) = (Arc::clone(&answers), gate.clone());
        tokio::spawn(async move {
            // a connection that breaks is the proxy's affair
            let _ = answer(stream, &answers, gate).await;
        });
    }
}

async fn answer(mut stream: TcpStream, answers: &Answers, mut gate: watch::Receiver<bool>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while read_message(&mut stream, &mut buffer).await? {
        if buffer.starts_with(b"GET /v1/models") {
            stream.write_all(&answers.models).await?;
        } else if buffer.starts_with(b"GET ") {
            stream.write_all(&answers.empty).await?;
        } else if is_prefill(&buffer) {
            if let Some(pause) = answers.pause {
                sleep(pause).await;
            }
            stream.write_all(&answers.prefill).await?;
        } else {
            for (index, event) in answers.events.iter().enumerate() {
                if index == 1 && !*gate.borrow() {
                    // what waits for the gate needs no room for a request
                    buffer = Vec::new();
                    gate.wait_for(|open| *open).await.map_err(Error::other)?;
                }
                if index > 0
                    && let Some(pause) = answers.pause
                {
                    sleep(pause).await;
                }
                stream.write_all(event).await?;
            }
        }
    }
    Ok(())
}

fn is_prefill(request: &[u8]) -> bool {
    [&b"\"do_remote_decode\":true"[..], b"\"do_remote_decode\": true"]
        .iter()
        .any(|mark| memmem::find(request, mark).is_some())
}
