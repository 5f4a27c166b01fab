//! The engine as one client sees it: its namespaces by number, what it holds, and an answer to each request.
//!
//! The daemon puts a socket in front of it, the embedded client calls it directly. Whatever a client holds
//! (leases, reservations, requests under way) goes back when its service is closed or dropped.

mod blocks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::block::{BlockHash, Namespace};
use kvstored_core::engine::{Engine, Reservation};
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::memory::SlotGuard;
use kvstored_core::tier::NamespaceInfo;
use parking_lot::Mutex;

use crate::admin::NamespaceRow;
use crate::wire::{Answer, MAX_EVENTS, MAX_JSON_BYTES, Request};

/// Called once with the answer, on the caller's thread or one of the engine's; must not block. It's dropped
/// uncalled where the service was closed meanwhile.
pub type Reply = Box<dyn FnOnce(Answer) + Send>;

/// Bounds of what one client may hold. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSettings {
    /// Leases and reservations together, those being asked for included.
    pub max_held_blocks: usize,
    /// Requests that wait for the engine.
    pub max_in_flight: usize,
    /// Namespaces open through this connection.
    pub max_namespaces: usize,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            max_held_blocks: 65_536,
            max_in_flight: 256,
            max_namespaces: 4096,
        }
    }
}

struct Lease {
    namespace: Arc<NamespaceInfo>,
    hash: BlockHash,
    slot: SlotGuard,
}

#[derive(Default)]
struct State {
    closed: bool,
    last_id: u64,
    leases: HashMap<u64, Lease>,
    reservations: HashMap<u64, Box<Reservation>>,
    promised_blocks: usize,
    in_flight: usize,
    namespaces: Vec<Arc<NamespaceInfo>>,
    numbers: HashMap<Namespace, u32>,
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

/// One client's view of an engine.
pub struct Service {
    engine: Arc<Engine>,
    settings: ServiceSettings,
    state: Mutex<State>,
}

impl Service {
    /// A client that holds nothing yet.
    pub fn new(engine: Arc<Engine>, settings: ServiceSettings) -> Arc<Self> {
        Arc::new(Self {
            engine,
            settings,
            state: Mutex::default(),
        })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Answers a request; one-way requests never call `reply`. See [`Request::is_slow`] for those that block.
    pub fn handle(self: &Arc<Self>, request: Request<'_>, reply: Reply) {
        match request {
            Request::Release { leases } => self.release(&leases),
            Request::ReportCorrupt { lease } => self.report_corrupt(lease),
            Request::Abort { reservations } => self.abort(&reservations),
            Request::Acquire { namespace, hashes } => self.acquire(namespace, &hashes, reply),
            Request::Reserve {
                namespace,
                parent,
                hashes,
                wait_ms,
            } => {
                self.reserve(namespace, parent, &hashes, wait_ms, reply);
            }
            Request::Commit { blocks, durability } => self.commit(blocks.into_owned(), durability, reply),
            Request::Verify {
                tier,
                namespace,
                after,
                limit,
            } => {
                let shared = SharedReply::new(reply);
                let done = shared.clone();
                let begun = self.engine.verify(
                    usize::from(tier),
                    namespace.as_ref(),
                    after.as_ref(),
                    limit as usize,
                    Box::new(move |report, after| done.send(Answer::Verified { report, after })),
                );
                if let Err(error) = begun {
                    shared.send(Answer::error(error));
                }
            }
            other => reply(self.answer(other).unwrap_or_else(Answer::error)),
        }
    }

    /// Requests under way and reservations not yet committed: what a shutdown had better wait for.
    pub fn unfinished(&self) -> usize {
        let state = self.state.lock();
        state.in_flight + state.reservations.len()
    }

    /// Gives everything back, now and for requests that are still under way.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let held = (
            std::mem::take(&mut state.leases),
            std::mem::take(&mut state.reservations),
        );
        // slots are given back without the lock: whoever waits for room may be called from here
        drop(state);
        drop(held);
    }

    /// Everything that's answered at once.
    fn answer(&self, request: Request<'_>) -> Result<Answer> {
        Ok(match request {
            Request::Ping => Answer::Pong,
            Request::Lookup { namespace, hashes } => {
                let mut present = vec![false; hashes.len()];
                self.engine
                    .lookup(&*self.namespace(namespace)?, &hashes, &mut present);
                Answer::Present(present)
            }
            Request::LookupOnPrefix { namespace, hashes } => Answer::Count(
                self.engine
                    .lookup_on_prefix(&*self.namespace(namespace)?, &hashes) as u64,
            ),
            Request::LocatePrefix { namespace, hashes } => {
                Answer::Located(self.engine.locate_prefix(&*self.namespace(namespace)?, &hashes))
            }
            Request::OpenNamespace { identity, layout } => {
                let info = self.engine.open_namespace(*identity, layout)?;
                Answer::Opened {
                    namespace: self.number(&info)?,
                }
            }
            Request::Prefetch { namespace, hashes } => {
                self.engine.prefetch(&self.namespace(namespace)?, &hashes);
                Answer::Done
            }
            Request::Evict {
                namespace,
                hashes,
                tier,
            } => Answer::Count(
                self.engine
                    .evict(&*self.namespace(namespace)?, &hashes, tier.as_deref())?,
            ),
            Request::Purge { namespace } => Answer::Count(self.engine.purge(&namespace)?),
            Request::Statistics => Answer::Json(json(&self.engine.statistics())?),
            Request::Namespaces { after } => Answer::Json(self.namespace_page(after.as_ref())?),
            Request::List {
                tier,
                namespace,
                after,
                limit,
            } => Answer::Keys(self.engine.list(
                usize::from(tier),
                namespace.as_ref(),
                after.as_ref(),
                limit as usize,
            )?),
            Request::TakeEvents { after, limit } => {
                Answer::Events(self.engine.take_events(after, (limit as usize).min(MAX_EVENTS)))
            }
            Request::Drain { timeout_ms } => {
                let timeout = Duration::from_millis(u64::from(timeout_ms));
                self.engine.drain(self.engine.runtime().deadline(timeout))?;
                Answer::Done
            }
            Request::Hello { .. } => return Err(Error::invalid("a second hello on one connection")),
            _ => return Err(Error::internal("a request has no answer")),
        })
    }

    fn namespace(&self, number: u32) -> Result<Arc<NamespaceInfo>> {
        self.state
            .lock()
            .namespaces
            .get(number as usize)
            .cloned()
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("namespace number {number} was not opened by this client"),
                )
            })
    }

    fn number(&self, info: &Arc<NamespaceInfo>) -> Result<u32> {
        let mut state = self.state.lock();
        if let Some(number) = state.numbers.get(&info.namespace) {
            return Ok(*number);
        }
        if state.namespaces.len() >= self.settings.max_namespaces {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "this client has {} namespaces open, the most it may have",
                    state.namespaces.len()
                ),
            ));
        }
        let number = state.namespaces.len() as u32;
        state.namespaces.push(info.clone());
        state.numbers.insert(info.namespace, number);
        Ok(number)
    }

    fn namespace_page(&self, after: Option<&Namespace>) -> Result<Vec<u8>> {
        let mut rows = self.engine.list_namespaces();
        rows.retain(|row| after.is_none_or(|after| row.0 > *after));
        rows.sort_unstable_by_key(|row| row.0);
        let mut page = vec![b'['];
        for (namespace, info, blocks_by_tier) in rows {
            let tensor_bytes = info.as_ref().and_then(|info| NamespaceRow::told(&info.layout));
            let identity = info.map(|info| info.identity.clone());
            let row = json(&NamespaceRow {
                namespace,
                identity,
                tensor_bytes,
                blocks_by_tier,
            })?;
            if page.len() + row.len() + 2 > MAX_JSON_BYTES {
                break;
            }
            if page.len() > 1 {
                page.push(b',');
            }
            page.extend_from_slice(&row);
        }
        page.push(b']');
        Ok(page)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.close();
    }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::internal(format!("report not written as JSON: {error}")))
}

/// A reply that two may hold and one uses.
#[derive(Clone)]
struct SharedReply(Arc<Mutex<Option<Reply>>>);

impl SharedReply {
    fn new(reply: Reply) -> Self {
        Self(Arc::new(Mutex::new(Some(reply))))
    }

    fn send(&self, answer: Answer) {
        let reply = self.0.lock().take();
        if let Some(reply) = reply {
            reply(answer);
        }
    }
}
