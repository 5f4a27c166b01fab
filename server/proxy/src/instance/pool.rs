//! Connections to one instance, kept for the next request.
//!
//! A connection carries one request at a time. Dropping a request or an answer under way closes its connection, which is
//! how an instance learns that nobody wants the answer any more.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::http::response;
use hyper::{HeaderMap, Method, Request, Uri, header};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::address::Address;
use crate::request::Pieces;

/// Idle connections kept; more are closed.
const MAX_IDLE: usize = 1024;
/// Servers close idle connections too, vLLM after five seconds: ours go before that, so that no request meets a closing one.
const MAX_IDLE_TIME: Duration = Duration::from_secs(4);
/// How long a connection that has just answered may take until it takes the next request.
const READY_LIMIT: Duration = Duration::from_millis(50);
/// Largest head of an answer, and the bound of a connection's read buffer.
const MAX_BUFFER_BYTES: usize = 64 << 10;

/// A request to an instance: what goes over every connection it's tried on.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: Uri,
    /// Headers, without `Host` and those of the framing.
    pub headers: HeaderMap,
    /// The body.
    pub body: Pieces,
    /// Set as soon as the instance may have seen the request.
    pub begun: Option<Arc<AtomicBool>>,
}

/// An answer's head, its body, and the connection both come over.
#[derive(Debug)]
pub struct Received {
    /// Status and headers.
    pub head: response::Parts,
    /// The body.
    pub body: Incoming,
    /// To give the connection back.
    pub lease: Lease,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct SendError {
    /// Whether the instance may have seen the request.
    pub seen: bool,
    /// Whether the instance can't be connected to now.
    pub unreachable: bool,
    message: String,
}

impl SendError {
    fn broken(error: &hyper::Error) -> Self {
        Self {
            seen: true,
            unreachable: false,
            message: format!("connection broke: {error}"),
        }
    }

    fn unreachable(error: &io::Error) -> Self {
        Self {
            seen: false,
            unreachable: true,
            message: format!("can't connect: {error}"),
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

struct Idle {
    sender: SendRequest<Pieces>,
    since: Instant,
}

struct Shared {
    host: String,
    port: u16,
    host_header: header::HeaderValue,
    connect_timeout: Duration,
    idle: Mutex<Vec<Idle>>,
}

/// See the module's page.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pool")
            .field("host", &self.shared.host)
            .field("port", &self.shared.port)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Of that instance.
    pub fn new(address: &Address, connect_timeout: Duration) -> Self {
        // an address is made of characters that a header may have
        let host_header = header::HeaderValue::from_str(&address.to_string())
            .unwrap_or_else(|_| header::HeaderValue::from_static("instance"));
        Self {
            shared: Arc::new(Shared {
                host: address.host().to_owned(),
                port: address.port(),
                host_header,
                connect_timeout,
                idle: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Sends a request and waits for the head of its answer. The caller sets the time limit.
    ///
    /// A kept connection that turns out to be closed before the request went out is replaced. Once the request may have
    /// been seen it's never sent again here: a second one with the same id or the same KV could do harm.
    pub async fn send(&self, upstream: &Upstream) -> Result<Received, SendError> {
        if let Some(mut sender) = self.take_idle().await {
            match sender.try_send_request(self.request(upstream)).await {
                Ok(answer) => return Ok(self.received(sender, answer)),
                Err(mut error) => {
                    // the others have most likely been closed too
                    self.shared.idle.lock().clear();
                    if error.take_message().is_none() {
                        return Err(SendError::broken(error.error()));
                    }
                    if let Some(begun) = &upstream.begun {
                        begun.store(false, Ordering::Relaxed);
                    }
                }
            }
        }
        let mut sender = self
            .connect()
            .await
            .map_err(|error| SendError::unreachable(&error))?;
        let answer = sender
            .send_request(self.request(upstream))
            .await
            .map_err(|error| SendError::broken(&error))?;
        Ok(self.received(sender, answer))
    }

    /// Closes connections that were idle for long.
    pub fn trim(&self) {
        self.shared
            .idle
            .lock()
            .retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < MAX_IDLE_TIME);
    }

    fn request(&self, upstream: &Upstream) -> Request<Pieces> {
        if let Some(begun) = &upstream.begun {
            begun.store(true, Ordering::Relaxed);
        }
        let mut request = Request::new(upstream.body.clone());
        *request.method_mut() = upstream.method.clone();
        *request.uri_mut() = upstream.target.clone();
        *request.headers_mut() = upstream.headers.clone();
        request
            .headers_mut()
            .insert(header::HOST, self.shared.host_header.clone());
        request
    }

    fn received(&self, sender: SendRequest<Pieces>, answer: hyper::Response<Incoming>) -> Received {
        let (head, body) = answer.into_parts();
        Received {
            head,
            body,
            lease: Lease {
                pool: self.clone(),
                sender,
            },
        }
    }

    /// The connection used last that is still open and ready.
    async fn take_idle(&self) -> Option<SendRequest<Pieces>> {
        loop {
            let mut sender = {
                let mut idle = self.shared.idle.lock();
                let last = idle.pop()?;
                if last.since.elapsed() >= MAX_IDLE_TIME {
                    // those below it have waited longer still
                    idle.clear();
                    return None;
                }
                last.sender
            };
            if sender.is_ready() || matches!(timeout(READY_LIMIT, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> io::Result<SendRequest<Pieces>> {
        let open = async {
            let stream = TcpStream::connect((self.shared.host.as_str(), self.shared.port)).await?;
            stream.set_nodelay(true)?;
            http1::Builder::new()
                .max_buf_size(MAX_BUFFER_BYTES)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)
        };
        let (sender, connection) = timeout(self.shared.connect_timeout, open)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        tokio::spawn(async move {
            // whoever waits for an answer over this connection gets the error too
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// The right to give a connection back once its answer has been read to the end. Dropped instead, the connection closes.
pub struct Lease {
    pool: Pool,
    sender: SendRequest<Pieces>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lease").finish_non_exhaustive()
    }
}

impl Lease {
    /// Keeps the connection for the next request.
    pub fn give_back(self) {
        let Self { pool, sender } = self;
        if sender.is_closed() {
            return;
        }
        let mut idle = pool.shared.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
    }
}
