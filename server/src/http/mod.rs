//! Health, readiness, metrics and statistics over HTTP: read-only, on a thread of its own.
//!
//! `/healthz` answers as long as the process lives. `/readyz` is 503 with the reason while the daemon starts or drains;
//! a degraded tier serves misses and heals by itself, so the daemon stays ready and the body says what is degraded.
//! `/metrics` is OpenMetrics text (the names are in `docs/metrics.md`), `/stat` the same numbers as JSON.

mod listener;
mod metrics;
mod routes;
mod state;
#[cfg(test)]
mod tests;
mod tier_metrics;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use tokio::sync::oneshot;

pub(crate) use metrics::Writer;
pub use metrics::render;
pub(crate) use routes::limits;
pub use state::{AdminState, Parts, Phase};

/// How long requests under way may take once the server stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The running HTTP server.
pub struct HttpServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<ThreadHandle>,
}

impl HttpServer {
    /// Binds the address (port 0 takes a free one) and serves `state` on a new thread.
    pub fn start(address: SocketAddr, state: Arc<AdminState>, runtime: &Runtime) -> Result<Self> {
        Self::start_router(address, routes::router(state), runtime)
    }

    /// The same for other endpoints.
    pub(crate) fn start_router(address: SocketAddr, router: Router, runtime: &Runtime) -> Result<Self> {
        let failed = |error, what: &str| Error::from_io(error, what).with("http", address);
        let listener = TcpListener::bind(address).map_err(|error| failed(error, "can't listen for HTTP"))?;
        listener
            .set_nonblocking(true)
            .map_err(|error| failed(error, "can't prepare the HTTP socket"))?;
        let address = listener
            .local_addr()
            .map_err(|error| failed(error, "can't tell the HTTP address"))?;
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| failed(error, "can't start the HTTP executor"))?;
        let (stop, stopped) = oneshot::channel();
        let body = move || {
            if let Err(error) = executor.block_on(serve(listener, router, stopped)) {
                tracing::error!(%error, "HTTP server ended");
            }
            executor.shutdown_timeout(STOP_LIMIT);
        };
        let thread = runtime.spawner.spawn("kvstored-http", Box::new(body))?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, gives requests under way a moment, and waits for the thread.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        // dropping the sender says the same as sending
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.halt();
    }
}

async fn serve(listener: TcpListener, router: Router, stopped: oneshot::Receiver<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Io, error.to_string());
    let listener =
        listener::BoundedListener::new(tokio::net::TcpListener::from_std(listener).map_err(failed)?);
    let (noted, mut stopping) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // an error means that the sender was dropped, which is a stop as well
        let _ = stopped.await;
        drop(noted);
    });
    let bounded = async {
        let _ = (&mut stopping).await;
        tokio::time::sleep(STOP_LIMIT).await;
    };
    tokio::select! {
        result = server.into_future() => result.map_err(failed),
        () = bounded => Ok(()),
    }
}
