//! A client, well-behaved or not.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// So long nothing takes unless it hangs.
pub const HANG: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
    /// Whether the body came to its proper end.
    pub ended: bool,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// What the error says.
    pub fn message(&self) -> String {
        let json = self.json();
        assert_eq!(json["error"]["code"], self.status.as_u16());
        json["error"]["message"].as_str().unwrap().to_owned()
    }

    /// The data of all events.
    pub fn events(&self) -> Vec<String> {
        assert!(
            self.headers["content-type"]
                .to_str()
                .unwrap()
                .starts_with("text/event-stream")
        );
        kvstored_proxy::events(self.text.as_bytes())
            .map(|data| String::from_utf8(data.into_owned()).unwrap())
            .collect()
    }

    /// The generated text of all events.
    pub fn streamed_text(&self) -> String {
        self.events()
            .iter()
            .filter_map(|event| serde_json::from_str::<Value>(event).ok())
            .map(|event| {
                let choice = &event["choices"][0];
                let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
                text.unwrap_or_default().to_owned()
            })
            .collect()
    }

    /// The error that ends a broken stream, which has no `[DONE]`.
    pub fn stream_error(&self) -> String {
        let events = self.events();
        assert!(!events.iter().any(|event| event == "[DONE]"));
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        last["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// Sends a request over a connection of its own, and returns the answer's head.
pub async fn open(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    timeout(HANG, sender.send_request(request))
        .await
        .unwrap()
        .unwrap()
}

pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    let (head, mut body) = open(address, request).await.into_parts();
    let mut text = Vec::new();
    let ended = loop {
        match timeout(HANG, body.frame()).await.unwrap() {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => text.extend_from_slice(frame.data_ref().unwrap()),
        }
    };
    Reply {
        status: head.status,
        headers: head.headers,
        text: String::from_utf8(text).unwrap(),
        ended,
    }
}

pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Request<Full<Bytes>> {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "proxy");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(Bytes::from(body))).unwrap()
}

pub async fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, request("GET", path, &[], String::new())).await
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    send(address, request("POST", path, &[], body.to_string())).await
}

/// Sends bytes as they are and reads until the other side closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut text = Vec::new();
    // a reset after the answer is as good as an end
    let _ = timeout(HANG, stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8_lossy(&text).into_owned()
}
