//! Accepting connections: bounded in number, and strangers only for a while.
//!
//! A connection is a stranger's until a call on it has shown the token. Strangers have a bounded time and a bounded number,
//! apart from that of known clients, so that nobody without the token can keep others out.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::auth::Gate;
use super::lane;
use super::service::Service;

/// How long accepting pauses when the system has no descriptor left.
const PAUSE: Duration = Duration::from_millis(200);
/// When the system looks whether a silent peer's host is still there.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// What the connections of one server share.
pub(crate) struct Lobby {
    max_known: usize,
    max_strangers: usize,
    patience: Duration,
    known: AtomicUsize,
    strangers: Mutex<Strangers>,
    turned_away: AtomicU64,
}

#[derive(Default)]
struct Strangers {
    last: u64,
    order: VecDeque<u64>,
    waiting: HashMap<u64, Arc<Connection>>,
}

#[derive(Default)]
struct Connection {
    known: AtomicBool,
    refused: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Connection {
    fn refuse(&self) {
        self.refused.store(true, Ordering::Release);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }
}

impl Lobby {
    pub fn new(max_known: usize, max_strangers: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            max_known,
            max_strangers,
            patience,
            known: AtomicUsize::new(0),
            strangers: Mutex::default(),
            turned_away: AtomicU64::new(0),
        })
    }

    /// Connections of known clients, strangers' connections, and how many were closed on strangers.
    pub fn counts(&self) -> (u64, u64, u64) {
        (
            self.known.load(Ordering::Relaxed) as u64,
            self.strangers.lock().waiting.len() as u64,
            self.turned_away.load(Ordering::Relaxed),
        )
    }

    fn enter(self: &Arc<Self>, stream: TcpStream) -> GuardedStream {
        let connection = Arc::new(Connection::default());
        let (number, oldest) = {
            let mut strangers = self.strangers.lock();
            strangers.last += 1;
            let number = strangers.last;
            strangers.order.push_back(number);
            strangers.waiting.insert(number, connection.clone());
            let mut oldest = None;
            while strangers.waiting.len() > self.max_strangers && oldest.is_none() {
                let Some(first) = strangers.order.pop_front() else {
                    break;
                };
                oldest = strangers.waiting.remove(&first);
            }
            // those that left or became known leave their numbers behind
            while let Some(first) = strangers.order.front()
                && !strangers.waiting.contains_key(first)
            {
                strangers.order.pop_front();
            }
            if strangers.order.len() > self.max_strangers * 4 {
                let Strangers { order, waiting, .. } = &mut *strangers;
                order.retain(|number| waiting.contains_key(number));
            }
            (number, oldest)
        };
        if let Some(oldest) = oldest {
            oldest.refuse();
        }
        GuardedStream {
            stream,
            patience: Some(Box::pin(tokio::time::sleep(self.patience))),
            visitor: Visitor {
                lobby: self.clone(),
                connection,
                number,
            },
        }
    }

    fn leave(&self, number: u64, connection: &Connection) {
        if connection.known.load(Ordering::Acquire) {
            self.known.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.strangers.lock().waiting.remove(&number);
        }
    }
}

/// Whose connection a call came over; in the call's extensions.
#[derive(Clone)]
pub(crate) struct Visitor {
    lobby: Arc<Lobby>,
    connection: Arc<Connection>,
    number: u64,
}

impl Visitor {
    /// A call on this connection has shown the token.
    pub fn is_known(&self) {
        if self.connection.known.load(Ordering::Acquire) {
            return;
        }
        let mut strangers = self.lobby.strangers.lock();
        if strangers.waiting.remove(&self.number).is_none() {
            // turned away meanwhile, or known through another call
            return;
        }
        if self.lobby.known.fetch_add(1, Ordering::Relaxed) >= self.lobby.max_known {
            self.lobby.known.fetch_sub(1, Ordering::Relaxed);
            drop(strangers);
            self.connection.refuse();
            return;
        }
        self.connection.known.store(true, Ordering::Release);
    }
}

/// A connection that is closed when its stranger's time is over.
pub(crate) struct GuardedStream {
    stream: TcpStream,
    patience: Option<Pin<Box<Sleep>>>,
    visitor: Visitor,
}

impl GuardedStream {
    /// Whose connection it is.
    pub fn visitor(&self) -> Visitor {
        self.visitor.clone()
    }

    /// What the client says first, which stays to be read. `None` for a connection that ends before.
    async fn first_byte(&mut self) -> io::Result<Option<u8>> {
        std::future::poll_fn(|context| {
            self.check(context)?;
            let mut byte = [0; 1];
            let peeked = self.stream.poll_peek(context, &mut ReadBuf::new(&mut byte));
            peeked.map_ok(|length| (length > 0).then_some(byte[0]))
        })
        .await
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let connection = &self.visitor.connection;
        if self.patience.is_none() {
            return Ok(());
        }
        if connection.known.load(Ordering::Acquire) {
            self.patience = None;
            return Ok(());
        }
        let over = self
            .patience
            .as_mut()
            .is_some_and(|patience| patience.as_mut().poll(context).is_ready());
        *connection.waker.lock() = Some(context.waker().clone());
        if over || connection.refused.load(Ordering::Acquire) {
            self.visitor.lobby.turned_away.fetch_add(1, Ordering::Relaxed);
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Drop for GuardedStream {
    fn drop(&mut self) {
        self.visitor
            .lobby
            .leave(self.visitor.number, &self.visitor.connection);
    }
}

impl Connected for GuardedStream {
    type ConnectInfo = Visitor;

    fn connect_info(&self) -> Visitor {
        self.visitor.clone()
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_read(context, into)
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_write(context, from)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Where connections go.
#[derive(Clone)]
pub(crate) struct Doors {
    /// To gRPC.
    pub grpc: mpsc::Sender<io::Result<GuardedStream>>,
    /// To the fast lane; `None` where connections are encrypted.
    pub lane: Option<(Gate, Arc<Service>)>,
}

impl Doors {
    /// Lets a connection in by the door that it asks for.
    async fn admit(self, mut stream: GuardedStream) {
        if let Some((gate, service)) = self.lane {
            match stream.first_byte().await {
                Ok(Some(byte)) if byte == lane::FIRST_BYTE => {
                    return lane::serve(stream, gate, service).await;
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
        // nobody takes it when the server stops
        let _ = self.grpc.send(Ok(stream)).await;
    }
}

/// Accepts until nobody takes the connections any more.
pub(crate) async fn accept(listener: TcpListener, lobby: Arc<Lobby>, doors: Doors) {
    loop {
        let next = tokio::select! {
            next = listener.accept() => next,
            () = doors.grpc.closed() => return,
        };
        match next {
            Ok((stream, _)) => {
                if let Err(error) = prepare(&stream) {
                    tracing::debug!(%error, "a connection went before it was served");
                    continue;
                }
                // as many as the lobby lets wait: the oldest stranger goes for the newest
                tokio::spawn(doors.clone().admit(lobby.enter(stream)));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                // out of descriptors, most likely: others have to close first
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Small answers go at once; and the system, which needs none of our time for it, finds out when a peer's host is gone.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 6)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}
