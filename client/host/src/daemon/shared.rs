//! What all connections of the daemon share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kvstored_client::service::{Reply, Service, ServiceSettings};
use kvstored_client::wire::{Answer, Request};
use kvstored_core::engine::Engine;
use kvstored_core::error::{Error, ErrorKind};
use kvstored_core::runtime::Runtime;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::DaemonSettings;

/// What the daemon is doing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Accepting clients.
    Serving,
    /// Letting what's under way finish, until then.
    Draining(Instant),
}

/// The daemon's own numbers at one moment. Counters only grow; the others are levels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DaemonStatistics {
    /// Clients connected.
    pub connections: u64,
    /// Clients that ever connected.
    pub accepted_connections: u64,
    /// Clients that were turned away: too many, or another user's.
    pub refused_connections: u64,
    /// Messages that made no sense.
    pub bad_frames: u64,
    /// Administrative requests being worked on.
    pub slow_requests: u64,
}

pub(super) struct Shared {
    pub(super) settings: DaemonSettings,
    pub(super) engine: Arc<Engine>,
    pub(super) tier_names: Vec<String>,
    runtime: Runtime,
    arena: OwnedFd,
    /// Reservations wait for room: somebody has to look after their deadlines.
    pub(super) parked: Notify,
    pub(super) connections: AtomicUsize,
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) bad_frames: AtomicU64,
    slow: AtomicUsize,
}

impl Shared {
    pub(super) fn new(
        settings: DaemonSettings,
        engine: Arc<Engine>,
        arena: OwnedFd,
        runtime: Runtime,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            tier_names: engine.tier_names(),
            engine,
            runtime,
            arena,
            parked: Notify::new(),
            connections: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            bad_frames: AtomicU64::new(0),
            slow: AtomicUsize::new(0),
        })
    }

    pub(super) fn arena(&self) -> BorrowedFd<'_> {
        self.arena.as_fd()
    }

    pub(super) fn service_settings(&self) -> ServiceSettings {
        ServiceSettings {
            max_held_blocks: self.settings.max_held_blocks_per_connection,
            max_in_flight: self.settings.max_in_flight_per_connection,
            ..ServiceSettings::default()
        }
    }

    pub(super) fn slow_requests(&self) -> usize {
        self.slow.load(Ordering::Acquire)
    }

    pub(super) fn statistics(&self) -> DaemonStatistics {
        DaemonStatistics {
            connections: self.connections.load(Ordering::Relaxed) as u64,
            accepted_connections: self.accepted.load(Ordering::Relaxed),
            refused_connections: self.refused.load(Ordering::Relaxed),
            bad_frames: self.bad_frames.load(Ordering::Relaxed),
            slow_requests: self.slow_requests() as u64,
        }
    }

    /// Answers a request that may block on a thread of its own; `Busy` when too many are.
    pub(super) fn run_slow(self: &Arc<Self>, service: Arc<Service>, request: Request<'static>, reply: Reply) {
        if self.slow.fetch_add(1, Ordering::AcqRel) >= self.settings.max_slow_requests {
            self.slow.fetch_sub(1, Ordering::AcqRel);
            let error = Error::new(ErrorKind::Busy, "too many administrative requests at a time");
            return reply(Answer::error(error));
        }
        let reply = Arc::new(parking_lot::Mutex::new(Some(reply)));
        let (shared, own_reply) = (self.clone(), reply.clone());
        let body = move || {
            let taken = own_reply.lock().take();
            if let Some(reply) = taken {
                service.handle(request, reply);
            }
            shared.slow.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = self.runtime.spawner.spawn("kvstored-admin", Box::new(body)) {
            self.slow.fetch_sub(1, Ordering::AcqRel);
            let taken = reply.lock().take();
            if let Some(reply) = taken {
                reply(Answer::error(error));
            }
        }
    }
}
