//! Listening, serving connections, and stopping in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use kvstored_core::{Error, Result, Runtime};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::client_stream::ClientStream;
use crate::events;
use crate::health;
use crate::instance::Role;
use crate::proxy::Proxy;
use crate::routes;
use crate::settings::Settings;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// Largest head of a request, and the bound of a connection's buffers.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// The pause after a connection couldn't be accepted; out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening proxy.
pub struct ProxyServer {
    proxy: Arc<Proxy>,
    listener: TcpListener,
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

/// Tells a proxy to stop.
#[derive(Clone, Debug)]
pub struct StopHandle {
    stop: watch::Sender<bool>,
}

impl StopHandle {
    /// It accepts no further connection, and lets requests under way end.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

impl ProxyServer {
    /// Binds the address and begins to look after the instances. To be called inside a Tokio runtime.
    pub fn bind(settings: Settings, runtime: Runtime) -> Result<Self> {
        raise_descriptor_limit();
        let failed = |error| Error::from_io(error, "can't listen").with("address", settings.listen);
        let listener = listen(settings.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let proxy = Proxy::new(settings, runtime)?;
        for role in Role::ALL {
            for instance in proxy.fleet.instances(role).iter() {
                health::watch(&proxy, instance);
                events::follow(&proxy, instance);
            }
        }
        let names = |role| {
            let instances = proxy.fleet.instances(role);
            let names: Vec<&str> = instances.iter().map(|instance| instance.name.as_str()).collect();
            names.join(" ")
        };
        tracing::info!(
            listen = %address,
            prefill = names(Role::Prefill),
            decode = names(Role::Decode),
            admin = if proxy.settings.admin_token.is_some() {
                "with token"
            } else if address.ip().is_loopback() {
                "open on loopback"
            } else {
                "off: no --admin-token-file"
            },
            "proxy starts"
        );
        Ok(Self {
            proxy,
            listener,
            address,
            stop: watch::Sender::new(false),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// To stop it.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle {
            stop: self.stop.clone(),
        }
    }

    /// Serves until told to stop. False if requests were still under way after the drain time.
    pub async fn serve(self) -> bool {
        let Self {
            proxy,
            listener,
            stop,
            ..
        } = self;
        let graceful = GracefulShutdown::new();
        let slots = Arc::new(Semaphore::new(
            proxy.settings.max_connections.min(Semaphore::MAX_PERMITS),
        ));
        let mut stopped = stop.subscribe();
        let told = async {
            // an error means that nobody is left to tell it to stop, which can't be while `stop` is here
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        tokio::select! {
            () = told => {}
            () = accept(&proxy, &listener, &slots, &graceful) => {}
        }
        proxy.set_stopping();
        drop(listener);
        let limit = proxy.settings.drain_timeout;
        tracing::info!(
            connections = graceful.count(),
            timeout_ms = limit.as_millis() as u64,
            "stopping"
        );
        let drained = timeout(limit, graceful.shutdown()).await.is_ok();
        if drained {
            tracing::info!("stopped");
        } else {
            tracing::warn!("stopped before all requests had ended");
        }
        drained
    }
}

async fn accept(
    proxy: &Arc<Proxy>,
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    graceful: &GracefulShutdown,
) {
    loop {
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
            // the semaphore is never closed
            return;
        };
        match listener.accept().await {
            Ok((stream, client)) => serve_connection(proxy, stream, client, slot, graceful),
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn serve_connection(
    proxy: &Arc<Proxy>,
    stream: TcpStream,
    client: SocketAddr,
    slot: OwnedSemaphorePermit,
    graceful: &GracefulShutdown,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %client, "connection gone before it began");
        return;
    }
    let limit = proxy.settings.client_timeout;
    let stream = TokioIo::new(ClientStream::new(stream, limit));
    let service = {
        let proxy = Arc::clone(proxy);
        service_fn(move |request| routes::handle(Arc::clone(&proxy), client, request))
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(stream, service);
    let connection = graceful.watch(connection);
    let connections = proxy.metrics.connections.clone();
    connections.inc();
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, %client, "connection ended");
        }
        connections.dec();
        drop(slot);
    });
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A stream takes two descriptors, and the usual soft limit is 1,024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::warn!(%error, limit = limit.current, "limit of open files not raised");
    }
}

/// SIGTERM and SIGINT, caught from the moment this is made.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them. To be called inside a Tokio runtime.
    pub fn catch() -> Result<Self> {
        let failed = |error| Error::from_io(error, "signals can't be caught");
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// Stops a proxy at the first; the second ends the process at once.
    pub async fn stop(mut self, handle: StopHandle) {
        const IMPATIENT_EXIT: i32 = 130;
        for is_first in [true, false] {
            let name = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "told to stop");
            if is_first {
                handle.stop();
            }
        }
        std::process::exit(IMPATIENT_EXIT);
    }
}
