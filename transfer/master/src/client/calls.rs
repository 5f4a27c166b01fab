//! Calls with a deadline, over several masters: the one that leads is found, and followed when it changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status};

use super::attempts::{Attempts, Next};
use super::lane::{Asked, Lane};
use super::settings::ClientSettings;
use crate::wire::MAX_MESSAGE_BYTES;
use crate::wire::lane::Quick;
use crate::wire::proto::master_client::MasterClient as Grpc;

/// How long to wait before asking again while no master leads.
const ELECTION: Duration = Duration::from_millis(50);
/// Most masters that are followed beside the configured ones.
const MAX_LEARNT: usize = 16;
/// Bytes of an answer that may be under way unread.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// One master.
struct Peer {
    address: String,
    endpoint: Endpoint,
    /// Made at a call, because it belongs to the executor that runs then; made anew after no answer came, since a
    /// connection to a host that is gone takes long to end by itself.
    channel: Mutex<Option<Channel>>,
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// All of it.
    pub deadline: Instant,
    /// How long the master itself may wait before it answers.
    pub wait: Duration,
    /// Try even when no master answered lately.
    pub always: bool,
}

impl Patience {
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            wait: Duration::ZERO,
            always: false,
        }
    }
}

/// See the module's page.
pub(super) struct Calls {
    settings: ClientSettings,
    tls: Option<ClientTlsConfig>,
    authorization: Option<MetadataValue<Ascii>>,
    /// For callers with threads of their own, where connections aren't encrypted.
    lane: Option<Lane>,
    peers: Mutex<Vec<Arc<Peer>>>,
    current: AtomicUsize,
    away_until: Mutex<Option<Instant>>,
    runtime: Runtime,
}

impl Calls {
    pub fn new(settings: ClientSettings, runtime: Runtime) -> Result<Self> {
        settings.check()?;
        let tls = settings.tls.as_ref().map(|tls| {
            let read = crate::server::read_pem;
            let mut config =
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.authority)?));
            if let Some((certificate, key)) = &tls.identity {
                config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            if let Some(name) = &tls.server_name {
                config = config.domain_name(name.clone());
            }
            Ok::<_, Error>(config)
        });
        let authorization = settings.token.as_ref().map(|token| {
            let wrong = || Error::invalid("the token is no visible ASCII text");
            let token = std::str::from_utf8(token).map_err(|_| wrong())?;
            let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| wrong())?;
            // kept out of logs
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        });
        let mut calls = Self {
            tls: tls.transpose()?,
            authorization: authorization.transpose()?,
            lane: None,
            peers: Mutex::default(),
            current: AtomicUsize::new(0),
            away_until: Mutex::new(None),
            runtime,
            settings,
        };
        let peers = calls
            .settings
            .endpoints
            .iter()
            .map(|address| calls.peer_at(address));
        let peers = peers.collect::<Result<Vec<_>>>()?;
        calls.peers = Mutex::new(peers);
        Ok(calls)
    }

    pub fn now(&self) -> Instant {
        self.runtime.clock.now()
    }

    pub fn random(&self) -> u64 {
        self.runtime.random.next_u64()
    }

    fn peer_at(&self, address: &str) -> Result<Arc<Peer>> {
        self.settings.check_address(address)?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let wrong =
            |error: tonic::transport::Error| Error::invalid(format!("a master's address {address}: {error}"));
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(wrong)?
            .connect_timeout(self.settings.attempt_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .tcp_keepalive(Some(Duration::from_mins(1)));
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(wrong)?;
        }
        Ok(Arc::new(Peer {
            address: address.to_owned(),
            endpoint,
            channel: Mutex::new(None),
        }))
    }

    /// The master with that address, which another one named.
    fn learn(&self, address: &str) -> Option<usize> {
        let mut peers = self.peers.lock();
        if let Some(index) = peers.iter().position(|peer| peer.address == address) {
            return Some(index);
        }
        if peers.len() >= self.settings.endpoints.len() + MAX_LEARNT {
            // the oldest of those that were learnt goes
            peers.remove(self.settings.endpoints.len());
        }
        let peer = self.peer_at(address).ok()?;
        peers.push(peer);
        Some(peers.len() - 1)
    }

    fn peer(&self, index: usize) -> Option<Arc<Peer>> {
        let peers = self.peers.lock();
        peers.get(index).or_else(|| peers.first()).cloned()
    }

    /// Takes the fast lane from now on where there is one: [`Calls::call_quick`] then blocks its thread.
    pub fn take_lane(&mut self) -> Result<()> {
        if self.tls.is_none() {
            self.lane = Some(Lane::new(self.settings.token.as_deref(), self.runtime.clone())?);
        }
        Ok(())
    }

    /// As [`Calls::call`], by the fast lane if it can be.
    pub async fn call_quick<M, F>(
        &self,
        message: M,
        patience: Patience,
        send: impl Fn(Grpc<Channel>, Request<M>) -> F + Send,
    ) -> Result<M::Answer>
    where
        M: Quick + Clone + Send,
        F: Future<Output = Result<Response<M::Answer>, Status>> + Send,
    {
        let index = self.current.load(Ordering::Relaxed);
        if let Some(lane) = &self.lane
            && !self.is_away(patience)
            && let Some(peer) = self.peer(index)
        {
            let left = patience.deadline.saturating_duration_since(self.now());
            let limit = (self.settings.attempt_timeout + patience.wait).min(left);
            match lane.call(&peer.address, &message, limit) {
                Asked::Told(answer) => return answer,
                Asked::Elsewhere => {}
                Asked::Late if self.now() < patience.deadline => {
                    self.current.store(self.after(index), Ordering::Relaxed);
                }
                Asked::Late => {
                    *self.away_until.lock() = Some(self.now() + self.settings.away);
                    let late = Error::new(ErrorKind::TimedOut, "the master doesn't answer");
                    return Err(late.with("master", &peer.address));
                }
            }
        }
        self.call(message, patience, send).await
    }

    fn is_away(&self, patience: Patience) -> bool {
        let away = *self.away_until.lock();
        !patience.always && away.is_some_and(|until| self.now() < until)
    }

    /// Sends a message to the master that leads.
    ///
    /// Fails with what the master says, with `Unavailable` when none can be reached, and with `TimedOut`.
    pub async fn call<M, A, F>(
        &self,
        message: M,
        patience: Patience,
        send: impl Fn(Grpc<Channel>, Request<M>) -> F + Send,
    ) -> Result<A>
    where
        M: Clone + Send,
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        let away = *self.away_until.lock();
        if self.is_away(patience) {
            return Err(Error::new(ErrorKind::Unavailable, "no master answered lately"));
        }
        let mut index = self.current.load(Ordering::Relaxed);
        let mut attempts = Attempts::new(self.settings.endpoints.len());
        loop {
            let left = patience.deadline.saturating_duration_since(self.now());
            let Some(peer) = self.peer(index).filter(|_| !left.is_zero()) else {
                return Err(self.give_up(attempts));
            };
            let limit = (self.settings.attempt_timeout + patience.wait).min(left);
            let request = self.request(message.clone(), limit);
            let client = Self::client(&peer);
            let status = match tokio::time::timeout(limit, send(client, request)).await {
                Ok(Ok(answer)) => {
                    self.current.store(index, Ordering::Relaxed);
                    if away.is_some() {
                        *self.away_until.lock() = None;
                    }
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => Some(status),
                Err(_) => {
                    *peer.channel.lock() = None;
                    None
                }
            };
            match attempts.judge(status, &peer.address) {
                Next::Fail(error) => return Err(error),
                Next::GiveUp => return Err(self.give_up(attempts)),
                Next::Follow(address) => match self.learn(&address) {
                    Some(leader) => index = leader,
                    None => index = self.after(index),
                },
                Next::Another => index = self.after(index),
                Next::Wait => {
                    tokio::time::sleep(ELECTION.min(left)).await;
                    index = self.after(index);
                }
            }
        }
    }

    fn after(&self, index: usize) -> usize {
        (index + 1) % self.settings.endpoints.len().max(1)
    }

    fn give_up(&self, attempts: Attempts) -> Error {
        if attempts.slow {
            *self.away_until.lock() = Some(self.now() + self.settings.away);
        }
        attempts
            .last
            .unwrap_or_else(|| Error::new(ErrorKind::TimedOut, "there was no time to ask a master"))
    }

    fn client(peer: &Peer) -> Grpc<Channel> {
        let mut channel = peer.channel.lock();
        let channel = channel
            .get_or_insert_with(|| peer.endpoint.connect_lazy())
            .clone();
        Grpc::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn request<M>(&self, message: M, limit: Duration) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        request
    }
}
