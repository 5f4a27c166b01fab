//! The daemon's side of the Unix socket: one thread that reads requests and answers most of them itself.
//!
//! Lookups and pings are answered on the spot. What moves blocks is handed to the engine, whose threads post the
//! answers. Whatever may touch files runs on threads of its own. A client that goes away, however it goes, has
//! everything it held given back. With no client asking, nothing wakes up.

mod connection;
mod listener;
mod outgoing;
mod settings;
mod shared;
mod socket_directory;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_client::wire::{Answer, answer_frame};
use kvstored_core::engine::Engine;
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::runtime::{Runtime, ThreadHandle};
use parking_lot::Mutex;
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_peercred};
use rustix::net::{SendFlags, send};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use settings::DaemonSettings;
pub use shared::DaemonStatistics;
pub use socket_directory::prepare_socket_directory;

use listener::BoundSocket;
use shared::{Phase, Shared};

/// How often reservations whose wait is over are looked for, while there are any.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(50);
/// The pause after the system refused to accept a client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Answers of the usual size never wait for the client.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// The daemon's socket and those who talk through it.
pub struct Daemon;

impl Daemon {
    /// Binds the socket and serves it on a thread of its own. `arena` is the descriptor of the engine's memory.
    ///
    /// Fails with `AlreadyExists` when another daemon listens at that path, and as the system does.
    pub fn start(
        settings: DaemonSettings,
        engine: Arc<Engine>,
        arena: BorrowedFd<'_>,
        runtime: Runtime,
    ) -> Result<DaemonHandle> {
        let arena = arena
            .try_clone_to_owned()
            .map_err(|error| Error::from_io(error, "can't duplicate the arena's descriptor"))?;
        let socket = listener::bind_socket(&settings.listen)?;
        let spawner = runtime.spawner.clone();
        let shared = Shared::new(settings, engine, arena, runtime);
        let (phase, watched) = watch::channel(Phase::Serving);
        let events = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| Error::from_io(error, "can't start the daemon's event loop"))?;
        let own = shared.clone();
        let body = move || {
            events.block_on(run(own, socket, watched));
            // what's left are tasks that wait for nothing any more
            events.shutdown_background();
        };
        let thread = spawner.spawn("kvstored-control", Box::new(body))?;
        Ok(DaemonHandle {
            shared,
            phase,
            thread: Mutex::new(Some(thread)),
        })
    }
}

/// A running daemon. Dropping it closes every connection at once.
pub struct DaemonHandle {
    shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
    thread: Mutex<Option<ThreadHandle>>,
}

impl DaemonHandle {
    /// The daemon's own numbers.
    pub fn statistics(&self) -> DaemonStatistics {
        self.shared.statistics()
    }

    /// Accepts nobody any more, lets what's under way finish for up to `timeout`, closes all connections and
    /// removes the socket. Later calls return at once.
    pub fn shutdown(&self, timeout: Duration) {
        self.phase.send_replace(Phase::Draining(Instant::now() + timeout));
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread.join();
        }
    }
}

impl Drop for DaemonHandle {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

async fn run(shared: Arc<Shared>, socket: BoundSocket, mut phase: watch::Receiver<Phase>) {
    let listener = match socket.listener.try_clone().and_then(UnixListener::from_std) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the daemon's socket can't be watched"),
    };
    let expiry = tokio::spawn(expire(shared.clone()));
    let mut connections = JoinSet::new();
    while matches!(*phase.borrow_and_update(), Phase::Serving) {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Some(stream) = admit(&shared, stream) {
                        let (shared, phase) = (shared.clone(), phase.clone());
                        connections.spawn(async move {
                            connection::serve(shared.clone(), stream, phase).await;
                            shared.connections.fetch_sub(1, Ordering::Relaxed);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "client not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = connections.join_next(), if !connections.is_empty() => {}
            _ = phase.changed() => {}
        }
    }
    let until = match *phase.borrow() {
        Phase::Draining(until) => until,
        Phase::Serving => Instant::now(),
    };
    // nobody can connect from here on
    drop(listener);
    drop(socket);
    while connections.join_next().await.is_some() {}
    while shared.slow_requests() > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    expiry.abort();
    tracing::info!("all clients are disconnected");
}

/// Refuses reservations whose wait is over; sleeps for good while there are none.
async fn expire(shared: Arc<Shared>) {
    loop {
        shared.parked.notified().await;
        while shared.engine.parked_requests() > 0 {
            tokio::time::sleep(EXPIRE_INTERVAL).await;
            shared.engine.expire_parked();
        }
    }
}

/// Lets a client in, or turns it away with a word.
fn admit(shared: &Shared, stream: UnixStream) -> Option<Arc<UnixStream>> {
    let allowed = allowed(&stream).and_then(|()| {
        let connections = shared.connections.load(Ordering::Relaxed);
        if connections >= shared.settings.max_connections {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{connections} clients are connected, the most there may be"),
            ));
        }
        Ok(())
    });
    if let Err(error) = allowed {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, "client turned away");
        if let Ok(frame) = answer_frame(0, &Answer::error(error)) {
            let _ = send(&stream, &frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        return None;
    }
    // less than asked for is fine, it only takes more calls
    let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    shared.connections.fetch_add(1, Ordering::Relaxed);
    Some(Arc::new(stream))
}

/// Only the daemon's own user and root may use its memory.
fn allowed(socket: &UnixStream) -> Result<()> {
    let peer = socket_peercred(socket)
        .map_err(|error| Error::from_io(error.into(), "who connects can't be told"))?;
    if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::PermissionDenied,
        "the daemon serves its own user alone",
    )
    .with("user", peer.uid.as_raw())
    .with("process", peer.pid.as_raw_nonzero()))
}
