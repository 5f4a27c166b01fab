//! The server: the state machine behind gRPC and the fast lane.

mod auth;
mod core;
mod lane;
mod listen;
mod objects;
mod service;
mod settings;
mod tls;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, Result, Runtime};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::ha::{self, Election, Leadership};
use crate::settings::MasterSettings;
use crate::types::{Drained, NodeId, NodeStatus, ObjectPage, Status};
use crate::wire::MAX_MESSAGE_BYTES;
use crate::wire::proto::master_server::MasterServer as GrpcServer;
pub(crate) use core::{Core, Refusal};
use listen::{Doors, Lobby};
use service::Service;
pub use settings::{HaSettings, ServerSettings, ServerTls};
pub(crate) use tls::read as read_pem;

/// How long calls under way may take once the server stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// The longest that any call takes; heartbeats wait less.
const CALL_LIMIT: Duration = Duration::from_mins(1);
/// Calls at once on one connection.
const MAX_STREAMS: u32 = 1024;
/// Bytes of a call that may be under way unread.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of a call's metadata.
const MAX_HEADERS: u32 = 16 << 10;

/// A running master.
pub struct MasterServer {
    address: SocketAddr,
    core: Arc<Core>,
    lobby: Arc<Lobby>,
    gate: auth::Gate,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<ThreadHandle>>,
}

impl MasterServer {
    /// Binds the address and serves on threads of its own.
    ///
    /// Fails with `InvalidInput`, with `PermissionDenied` where an address needs a token and TLS that aren't there, and as
    /// binding and reading certificates do.
    pub fn start(settings: ServerSettings, master: MasterSettings, runtime: Runtime) -> Result<Self> {
        settings.check()?;
        let failed = |error, what: &str| Error::from_io(error, what).with("address", settings.listen);
        let listener = TcpListener::bind(settings.listen).map_err(|error| failed(error, "can't listen"))?;
        listener
            .set_nonblocking(true)
            .map_err(|error| failed(error, "can't prepare the socket"))?;
        let address = listener
            .local_addr()
            .map_err(|error| failed(error, "can't tell the address"))?;
        let own = settings.advertise.clone().unwrap_or_else(|| address.to_string());

        let now = runtime.clock.now();
        let leadership = Arc::new(match &settings.ha {
            None => Leadership::alone(own.clone(), now),
            Some(_) => Leadership::elected(now),
        });
        let core = Core::new(master, leadership.clone(), runtime.clone())?;
        let election = match &settings.ha {
            None => {
                core.begin_term(runtime.clock.unix_ms().max(1))?;
                None
            }
            Some(ha) => Some(Election::new(ha, own, leadership, core.clone(), runtime.clone())?),
        };
        let tls = settings.tls.as_ref().map(tls::server_config).transpose()?;
        let gate = auth::Gate::new(settings.token.as_deref());
        let lobby = Lobby::new(
            settings.max_connections,
            settings.max_strangers,
            settings.stranger_patience,
        );
        let executor = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads)
            .thread_name("kvstored-master")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| failed(error, "can't start the executor"))?;
        let (stop, stopped) = watch::channel(false);
        let parts = Parts {
            listener,
            tls,
            gate: gate.clone(),
            lobby: lobby.clone(),
            core: core.clone(),
            max_calls: settings.max_calls,
            election,
            stopped,
        };
        let body = move || {
            if let Err(error) = executor.block_on(serve(parts)) {
                tracing::error!(%error, "the master's server ended");
            }
            executor.shutdown_timeout(STOP_LIMIT);
        };
        let thread = runtime.spawner.spawn("kvstored-master-main", Box::new(body))?;
        Ok(Self {
            address,
            core,
            lobby,
            gate,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The numbers of this master, whether it leads or not.
    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// Connections of known clients and of strangers, and how many strangers were turned away.
    pub fn connections(&self) -> (u64, u64, u64) {
        self.lobby.counts()
    }

    /// The nodes. Fails with `Unavailable` where another master leads.
    pub fn nodes(&self) -> Result<Vec<NodeStatus>> {
        let nodes = self
            .core
            .with(|state, now| state.node_statuses(now))
            .map_err(refused)?;
        Ok(nodes.into_iter().map(|(_, status)| status).collect())
    }

    /// A page of objects; see [`crate::state::State::list`]. Fails with `Unavailable` where another master leads.
    pub fn objects(&self, after: u64, limit: usize, tenant: Option<&str>) -> Result<ObjectPage> {
        self.core
            .with(|state, now| state.list(after, limit, tenant, now))
            .map_err(refused)
    }

    /// Empties a node; see [`crate::state::State::drain`]. Fails with `NotFound`, and with `Unavailable` where another
    /// master leads.
    pub fn drain(&self, node: &NodeId, evict: bool, undo: bool) -> Result<Drained> {
        self.core
            .with(|state, now| state.drain(node, evict, undo, now))
            .map_err(refused)?
    }

    /// Removes all objects, or all of one tenant. Returns how many. Fails with `Unavailable` where another master leads.
    pub fn remove_all(&self, tenant: Option<&str>, force: bool) -> Result<u64> {
        objects::remove_all(&self.core, tenant, force).map_err(refused)
    }

    /// Whether the value of an `authorization` header shows the token; for administration over HTTP.
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        self.gate.admits_header(authorization)
    }

    /// Stops: gives calls under way a moment, and the leadership away.
    pub fn stop(self) {
        self.halt();
    }

    fn halt(&self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.lock().take() {
            thread.join();
        }
    }
}

impl Drop for MasterServer {
    fn drop(&mut self) {
        self.halt();
    }
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Failed(error) => error,
        Refusal::NotLeader(leader) => crate::wire::from_status(&crate::wire::not_leader(leader.as_deref())),
    }
}

struct Parts {
    listener: TcpListener,
    tls: Option<tonic::transport::ServerTlsConfig>,
    gate: auth::Gate,
    lobby: Arc<Lobby>,
    core: Arc<Core>,
    max_calls: usize,
    election: Option<Election>,
    stopped: watch::Receiver<bool>,
}

async fn serve(parts: Parts) -> Result<()> {
    let Parts {
        listener,
        tls,
        gate,
        lobby,
        core,
        max_calls,
        election,
        stopped,
    } = parts;
    let failed = |error: &dyn std::fmt::Display| Error::new(kvstored_core::ErrorKind::Io, error.to_string());
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| failed(&error))?;
    let (accepted, connections) = mpsc::channel(16);
    let service = Arc::new(Service::new(core.clone(), max_calls));
    let doors = Doors {
        grpc: accepted,
        lane: tls.is_none().then(|| (gate.clone(), service.clone())),
    };
    let acceptor = tokio::spawn(listen::accept(listener, lobby, doors));
    let keeper = core.clone();
    let timer = tokio::spawn(async move { keeper.keep_time().await });
    let elected = election.map(|election| tokio::spawn(ha::run(election, until(stopped.clone()))));

    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).map_err(|error| failed(&error))?;
    }
    let grpc = GrpcServer::from_arc(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let served = server
        .timeout(CALL_LIMIT)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADERS)
        .add_service(InterceptedService::new(grpc, gate))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), until(stopped.clone()));
    let bounded = async {
        until(stopped.clone()).await;
        // those who wait for orders or room are told to go elsewhere
        core.end_term();
        tokio::time::sleep(STOP_LIMIT).await;
    };
    let outcome = tokio::select! {
        served = served => served.map_err(|error| failed(&error)),
        () = bounded => Ok(()),
    };
    acceptor.abort();
    timer.abort();
    if let Some(elected) = elected {
        // gives the leadership away
        let _ = tokio::time::timeout(STOP_LIMIT, elected).await;
    }
    outcome
}

/// Resolves when the server is told to stop, or forgotten.
async fn until(mut stopped: watch::Receiver<bool>) {
    // an error means that the server is gone
    let _ = stopped.wait_for(|stop| *stop).await;
}
