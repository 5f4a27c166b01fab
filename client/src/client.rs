//! The client: calls, and tasks that move blocks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::block::{BlockHash, BlockKey, Namespace};
use kvstored_core::engine::{Engine, EngineStatistics, VerifyReport};
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::events::Events;
use kvstored_core::identity::Identity;
use kvstored_core::layout::Layout;
use kvstored_core::runtime::Runtime;
use kvstored_core::tier::{Durability, NamespaceInfo};

use crate::admin::NamespaceRow;
use crate::copy::CopyPlan;
use crate::device::Place;
use crate::dump_session::DumpSession;
use crate::request::{DumpRequest, LoadRequest, NamespaceHandle};
use crate::session::{Session, Source, Until, unexpected};
use crate::settings::ClientSettings;
use crate::task::{Task, TaskState};
use crate::wire::{Answer, MAX_BLOCKS, MAX_EVENTS, Request};
use crate::work::{Core, DumpJob, Job, LoadJob};

/// A client of a daemon or of an engine in this process; for any number of threads at once.
///
/// Where a daemon goes away, calls fail with `Unavailable` and tasks report it per block; later calls connect
/// anew. Dropping the client ends its tasks as cancelled.
pub struct Client {
    pub(crate) core: Arc<Core>,
    tier_names: Vec<String>,
    arena_bytes: usize,
}

impl Client {
    /// Connects to the daemon behind a Unix socket and maps its arena. Fails with `Unavailable` when nobody
    /// listens there.
    pub fn connect(socket: &Path, settings: ClientSettings, runtime: Runtime) -> Result<Self> {
        Self::start(Source::socket(socket.to_owned()), settings, runtime)
    }

    /// Uses an engine in this process.
    pub fn embedded(engine: Arc<Engine>, settings: ClientSettings, runtime: Runtime) -> Result<Self> {
        let tier_names = engine.tier_names().into();
        Self::start(Source::Embedded { engine, tier_names }, settings, runtime)
    }

    fn start(source: Source, settings: ClientSettings, runtime: Runtime) -> Result<Self> {
        let until = Until::Moment(runtime.deadline(settings.timeout));
        let core = Core::start(source, settings, runtime)?;
        let mut client = Self {
            core,
            tier_names: Vec::new(),
            arena_bytes: 0,
        };
        let session = client.core.sessions.take(until)?;
        client.tier_names = session.tier_names().to_vec();
        client.arena_bytes = session.arena().length();
        Ok(client)
    }

    /// Names of the tiers, fast to durable; index 0 is memory.
    pub fn tier_names(&self) -> &[String] {
        &self.tier_names
    }

    /// Opens a namespace; idempotent. Fails with `InvalidInput`, `TooLarge` or `Mismatch`.
    pub fn open_namespace(&self, identity: &Identity, layout: &Layout) -> Result<NamespaceHandle> {
        let info = Arc::new(NamespaceInfo::new(identity.clone(), layout.clone())?);
        self.ask(|session, until| session.namespace(&info, until).map(drop))?;
        Ok(NamespaceHandle { info })
    }

    /// The smallest round trip.
    pub fn ping(&self) -> Result<()> {
        self.ask(|session, until| match session.call(Request::Ping, until)? {
            Answer::Pong => Ok(()),
            other => Err(unexpected(&other)),
        })
    }

    /// Brings blocks into the first tier ahead of use; returns at once.
    pub fn prefetch(&self, namespace: &NamespaceHandle, hashes: &[BlockHash]) -> Result<()> {
        for part in hashes.chunks(MAX_BLOCKS) {
            self.ask(|session, until| {
                let namespace = session.namespace(&namespace.info, until)?;
                match session.call(
                    Request::Prefetch {
                        namespace,
                        hashes: part.into(),
                    },
                    until,
                )? {
                    Answer::Done => Ok(()),
                    other => Err(unexpected(&other)),
                }
            })?;
        }
        Ok(())
    }

    /// Begins to fill engine memory from the store.
    ///
    /// Fails with `InvalidInput` when tensors don't fit the layout, before anything moves, and with `Busy` when too
    /// many tasks wait. What becomes of blocks is the task's report: a missing block is no error.
    ///
    /// # Safety
    /// The tensors' memory must be writable, and used by nobody else, until the task has ended.
    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    pub unsafe fn load(&self, namespace: &NamespaceHandle, request: LoadRequest) -> Result<Task> {
        // SAFETY: the caller vouches for the tensors' memory until the task's end.
        unsafe { self.load_at(namespace, request, Place::Host) }
    }

    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    pub(crate) unsafe fn load_at(
        &self,
        namespace: &NamespaceHandle,
        request: LoadRequest,
        place: Place,
    ) -> Result<Task> {
        let LoadRequest {
            hashes,
            shards,
            tensors,
            order,
            timeout,
        } = request;
        let info = namespace.info.clone();
        // SAFETY: the caller vouches for the tensors' memory until the task's end.
        let plan = unsafe { CopyPlan::new(&info, hashes.len(), shards.clone(), tensors, place) }?;
        let state = self.task(hashes.len(), shards, timeout);
        if !hashes.is_empty() {
            let job = LoadJob::new(
                &self.core,
                state.clone(),
                info,
                hashes,
                plan,
                order,
                self.arena_bytes,
            );
            self.core.push(Job::Load(Arc::new(job)))?;
        }
        Ok(Task { state })
    }

    /// Begins to store blocks from engine memory, all shards of each.
    ///
    /// Fails as [`Client::load`] does.
    ///
    /// # Safety
    /// The tensors' memory must be readable, and written by nobody, until the task has ended.
    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    pub unsafe fn dump(&self, namespace: &NamespaceHandle, request: DumpRequest) -> Result<Task> {
        // SAFETY: the caller vouches for the tensors' memory until the task's end.
        unsafe { self.dump_at(namespace, request, Place::Host) }
    }

    #[allow(unsafe_code)] // the caller's promise is passed on to the copy plan
    pub(crate) unsafe fn dump_at(
        &self,
        namespace: &NamespaceHandle,
        request: DumpRequest,
        place: Place,
    ) -> Result<Task> {
        let DumpRequest {
            hashes,
            parent,
            tensors,
            durability,
            timeout,
        } = request;
        let info = namespace.info.clone();
        let shards = 0..info.layout.shards().len();
        // SAFETY: the caller vouches for the tensors' memory until the task's end.
        let plan = unsafe { CopyPlan::new(&info, hashes.len(), shards.clone(), tensors, place) }?;
        let state = self.task(hashes.len(), shards, timeout);
        if !hashes.is_empty() {
            let job = DumpJob::new(&self.core, state.clone(), info, hashes, parent, plan, durability);
            self.core.push(Job::Dump(Arc::new(job)))?;
        }
        Ok(Task { state })
    }

    /// Reserves slots for a run of blocks whose shards will be put one after the other, in any order.
    ///
    /// Takes no longer than `timeout` (the client's timeout without), whatever state the daemon is in: blocks that
    /// find no room by then end as failed with `Busy`. Fails with `TimedOut` when the daemon hasn't answered by then,
    /// with `Busy` when too many dumps are under way, and with `Unavailable` when nobody answers at all. The dump
    /// that was begun has the client's timeout, anew with each shard.
    pub fn begin_dump(
        &self,
        namespace: &NamespaceHandle,
        hashes: Vec<BlockHash>,
        parent: Option<BlockHash>,
        durability: Durability,
        timeout: Option<Duration>,
    ) -> Result<DumpSession> {
        let task = self.task(hashes.len(), 0..0, timeout);
        DumpSession::begin(&self.core, &namespace.info, &hashes, parent, durability, task)
    }

    /// Drops blocks from one tier by name, or from all. Returns how many places a block was dropped from.
    pub fn evict(
        &self,
        namespace: &NamespaceHandle,
        hashes: &[BlockHash],
        tier: Option<&str>,
    ) -> Result<u64> {
        let mut dropped = 0;
        for part in hashes.chunks(MAX_BLOCKS) {
            dropped += self.count(namespace, |namespace| Request::Evict {
                namespace,
                hashes: part.into(),
                tier: tier.map(str::to_owned),
            })?;
        }
        Ok(dropped)
    }

    /// Forgets a namespace in every tier, also for later restarts. Returns how many blocks were dropped.
    pub fn purge(&self, namespace: &Namespace) -> Result<u64> {
        self.ask(|session, until| {
            match session.call(
                Request::Purge {
                    namespace: *namespace,
                },
                until,
            )? {
                Answer::Count(count) => Ok(count),
                other => Err(unexpected(&other)),
            }
        })
    }

    /// The engine's numbers.
    pub fn statistics(&self) -> Result<EngineStatistics> {
        self.json(Request::Statistics)
    }

    /// The namespaces that have blocks somewhere.
    pub fn namespaces(&self) -> Result<Vec<NamespaceRow>> {
        let mut rows: Vec<NamespaceRow> = Vec::new();
        loop {
            let after = rows.last().map(|row| row.namespace);
            let page: Vec<NamespaceRow> = self.json(Request::Namespaces { after })?;
            if page.is_empty() {
                return Ok(rows);
            }
            rows.extend(page);
        }
    }

    /// Up to `limit` keys of a tier, by its index in the pipeline, behind `after`.
    pub fn list(
        &self,
        tier: usize,
        namespace: Option<&Namespace>,
        after: Option<&BlockKey>,
        limit: usize,
    ) -> Result<Vec<BlockKey>> {
        let request = Request::List {
            tier: tier_index(tier)?,
            namespace: namespace.copied(),
            after: after.copied(),
            limit: limit.min(MAX_BLOCKS) as u32,
        };
        self.ask(|session, until| match session.call(request.clone(), until)? {
            Answer::Keys(keys) => Ok(keys),
            other => Err(unexpected(&other)),
        })
    }

    /// Reads and checks up to `limit` blocks of a tier behind `after`, payload and all. Returns what was found and
    /// the key to go on behind.
    pub fn verify(
        &self,
        tier: usize,
        namespace: Option<&Namespace>,
        after: Option<&BlockKey>,
        limit: usize,
    ) -> Result<(VerifyReport, Option<BlockKey>)> {
        let request = Request::Verify {
            tier: tier_index(tier)?,
            namespace: namespace.copied(),
            after: after.copied(),
            limit: limit.min(MAX_BLOCKS) as u32,
        };
        self.ask(|session, until| match session.call(request.clone(), until)? {
            Answer::Verified { report, after } => Ok((report, after)),
            other => Err(unexpected(&other)),
        })
    }

    /// Up to `limit` events (8,192 at most) after the one numbered `after`, which is 0 at first and then the last
    /// answer's `next`: which blocks became visible in each tier, and which left it. Returns at once.
    ///
    /// The first call by anybody switches recording on in the engine, and from then on nothing is missed but what
    /// [`Events::lost`] tells of: more than 65,536 events between two calls, more than about a minute between them, or
    /// another run of the engine. What was there before that call can be listed after it. A purge tells of each block.
    pub fn take_events(&self, after: u64, limit: usize) -> Result<Events> {
        let limit = limit.min(MAX_EVENTS) as u32;
        self.ask(
            |session, until| match session.call(Request::TakeEvents { after, limit }, until)? {
                Answer::Events(events) => Ok(events),
                other => Err(unexpected(&other)),
            },
        )
    }

    /// Waits until every accepted dump has reached every tier and is durable. Fails with `TimedOut`.
    pub fn drain(&self, timeout: Duration) -> Result<()> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        // the engine's own answer at the deadline says more than ours
        let patience = timeout.saturating_add(Duration::from_secs(2));
        let until = Until::Moment(self.core.runtime.deadline(patience));
        self.ask(
            |session, _| match session.call(Request::Drain { timeout_ms }, until)? {
                Answer::Done => Ok(()),
                other => Err(unexpected(&other)),
            },
        )
    }

    fn task(
        &self,
        blocks: usize,
        shards: std::ops::Range<usize>,
        timeout: Option<Duration>,
    ) -> Arc<TaskState> {
        let deadline = self
            .core
            .runtime
            .deadline(timeout.unwrap_or(self.core.settings.timeout));
        self.core.task(blocks, shards, deadline)
    }

    /// A call over a free session; once more over a new one where the session turns out to be gone.
    pub(crate) fn ask<T>(
        &self,
        mut call: impl FnMut(&mut dyn Session, Until<'static>) -> Result<T>,
    ) -> Result<T> {
        let until = Until::Moment(self.core.runtime.deadline(self.core.settings.call_timeout));
        loop {
            let mut session = self.core.sessions.take(until)?;
            match call(&mut *session, until) {
                Err(error) if error.kind() == ErrorKind::Unavailable && !session.is_fresh() => {
                    session.discard();
                }
                result => return result,
            }
        }
    }

    fn count<'a>(&self, namespace: &NamespaceHandle, request: impl Fn(u32) -> Request<'a>) -> Result<u64> {
        self.ask(|session, until| {
            let number = session.namespace(&namespace.info, until)?;
            match session.call(request(number), until)? {
                Answer::Count(count) => Ok(count),
                other => Err(unexpected(&other)),
            }
        })
    }

    fn json<T: serde::de::DeserializeOwned>(&self, request: Request<'_>) -> Result<T> {
        self.ask(|session, until| match session.call(request.clone(), until)? {
            Answer::Json(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::internal(format!("the daemon's report can't be read: {error}"))),
            other => Err(unexpected(&other)),
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.core.close();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Client")
            .field("tier_names", &self.tier_names)
            .finish_non_exhaustive()
    }
}

fn tier_index(tier: usize) -> Result<u8> {
    u8::try_from(tier).map_err(|_| Error::invalid(format!("tier index {tier} is outside every pipeline")))
}
