//! The state machine with a lock around it, and everybody who waits for it to change.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ha::Leadership;
use crate::settings::MasterSettings;
use crate::state::State;
use crate::types::{Lender, Mounted, NodeId, Orders, Status, TokenKey};

/// How late the timer may be before the process is taken to have stood still, and how long nodes then have to be heard.
const LATE: Duration = Duration::from_secs(1);

/// Why a call wasn't answered.
pub(crate) enum Refusal {
    /// Another master leads: at that address, if it's known.
    NotLeader(Option<String>),
    /// The call itself failed.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// One term of leadership.
struct Term {
    /// `None` while another master leads.
    state: Option<State>,
    /// When the timer wakes next.
    armed: Option<Instant>,
}

/// Those who wait for one node's orders.
#[derive(Default)]
struct Waiting {
    changed: Notify,
    /// The number of the latest heartbeat.
    latest: AtomicU64,
}

/// See the module's page.
pub(crate) struct Core {
    settings: MasterSettings,
    term: Mutex<Term>,
    leadership: Arc<Leadership>,
    waiting: Mutex<HashMap<NodeId, Arc<Waiting>>>,
    room: Notify,
    timer: Notify,
    /// Wakes all long calls when the server stops or the leader goes.
    ended: Notify,
    runtime: Runtime,
}

impl Core {
    pub fn new(settings: MasterSettings, leadership: Arc<Leadership>, runtime: Runtime) -> Result<Arc<Self>> {
        settings.check()?;
        Ok(Arc::new(Self {
            settings,
            term: Mutex::new(Term {
                state: None,
                armed: None,
            }),
            leadership,
            waiting: Mutex::default(),
            room: Notify::new(),
            timer: Notify::new(),
            ended: Notify::new(),
            runtime,
        }))
    }

    pub fn now(&self) -> Instant {
        self.runtime.clock.now()
    }

    /// Leads from now on, knowing nothing.
    pub fn begin_term(&self, epoch: u64) -> Result<()> {
        let state = State::new(self.settings.clone(), epoch, self.now())?;
        self.term.lock().state = Some(state);
        tracing::info!(epoch, "this master leads");
        self.wake_all();
        Ok(())
    }

    /// Leads no more.
    pub fn end_term(&self) {
        if self.term.lock().state.take().is_some() {
            tracing::warn!("this master leads no more");
        }
        self.wake_all();
    }

    /// Works on the state, if this master leads at this moment, and wakes whom it concerns.
    pub fn with<T>(&self, work: impl FnOnce(&mut State, Instant) -> T) -> Result<T, Refusal> {
        let mut term = self.term.lock();
        // taken after the lock, so that a leader that was stopped meanwhile finds out
        let now = self.now();
        if !self.leadership.is_valid(now) {
            return Err(Refusal::NotLeader(self.leadership.leader()));
        }
        let Term { state, armed } = &mut *term;
        let Some(state) = state else {
            return Err(Refusal::NotLeader(self.leadership.leader()));
        };
        let outcome = work(state, now);
        let effects = state.take_effects();
        let next = state.next_wake();
        let earlier = next.is_some_and(|next| armed.is_none_or(|armed| next < armed));
        if earlier {
            *armed = next;
        }
        drop(term);
        if earlier {
            self.timer.notify_one();
        }
        if effects.room {
            self.room.notify_waiters();
        }
        if !effects.orders.is_empty() {
            let waiting = self.waiting.lock();
            for node in effects.orders {
                if let Some(waiting) = waiting.get(&node) {
                    waiting.changed.notify_waiters();
                }
            }
        }
        Ok(outcome)
    }

    /// Does what is due when it's due, and nothing in between.
    pub async fn keep_time(&self) {
        loop {
            let due = self.term.lock().armed;
            if due.is_some_and(|due| self.now().saturating_duration_since(due) > LATE) {
                // nodes that spoke meanwhile haven't been heard yet; they shall not be given up for that
                tracing::warn!("this master stood still for a while");
                tokio::time::sleep(LATE).await;
            }
            let next = {
                let mut term = self.term.lock();
                let now = self.now();
                if let Some(state) = &mut term.state {
                    state.tick(now);
                }
                let next = term.state.as_ref().and_then(State::next_wake);
                term.armed = next;
                next
            };
            // what the tick did concerns others as well
            drop(self.with(|_, _| ()));
            match next {
                Some(next) => {
                    let left = next.saturating_duration_since(self.now());
                    tokio::select! {
                        () = tokio::time::sleep(left) => {}
                        () = self.timer.notified() => {}
                    }
                    // lets calls in between two parts of a long clearing
                    tokio::task::yield_now().await;
                }
                None => self.timer.notified().await,
            }
        }
    }

    /// A node lends memory. A master that is alone and finds that its clock was set back begins a later term.
    pub fn mount(&self, lender: &Lender) -> Result<Mounted, Refusal> {
        let again = {
            let outcome = self.with(|state, now| state.mount(lender, random_key()?, now))?;
            match outcome {
                Err(error) if error.kind() == ErrorKind::Fenced => error,
                other => return Ok(other?),
            }
        };
        if !self.leadership.is_alone() {
            tracing::error!(error = %again, node = %lender.name, "a node obeys a later master than this one");
            return Err(again.into());
        }
        tracing::warn!(
            obeyed = lender.obeyed_epoch,
            "a node obeys a later epoch than this master's: the clock was set back. Beginning a later term"
        );
        self.begin_term(lender.obeyed_epoch + 1)?;
        Ok(self.with(|state, now| state.mount(lender, random_key()?, now))??)
    }

    /// A node's heartbeat, which waits for orders.
    pub async fn heartbeat(
        &self,
        node: NodeId,
        epoch: u64,
        released: &[u64],
        wait: Duration,
    ) -> Result<Orders, Refusal> {
        let deadline = self.runtime.deadline(wait);
        let waiting = {
            let mut all = self.waiting.lock();
            if all.len() > self.settings.max_nodes * 2 {
                // those of nodes that are gone; nobody waits there
                all.retain(|_, waiting| Arc::strong_count(waiting) > 1);
            }
            all.entry(node).or_default().clone()
        };
        let number = waiting.latest.fetch_add(1, Ordering::AcqRel) + 1;
        let mut guard = ConnectionGuard {
            core: self,
            waiting: &waiting,
            node,
            epoch,
            number,
            armed: false,
        };
        self.with(|state, now| state.heartbeat(&node, epoch, released, now))?;
        loop {
            let mut changed = std::pin::pin!(waiting.changed.notified());
            let mut ended = std::pin::pin!(self.ended.notified());
            // registered before looking, so that nothing is missed in between
            changed.as_mut().enable();
            ended.as_mut().enable();
            let (orders, news) = self.with(|state, now| {
                let orders = state.orders(&node, epoch, now);
                (orders, state.has_news_of_drain(&node, epoch))
            })?;
            let left = deadline.saturating_duration_since(self.now());
            if orders.announce || news || !orders.release.is_empty() || left.is_zero() {
                return Ok(orders);
            }
            guard.armed = true;
            tokio::select! {
                () = changed => {}
                () = ended => {}
                () = tokio::time::sleep(left) => {}
            }
            guard.armed = false;
        }
    }

    /// Waits until room became free, or until then. `look` is asked first, and again after every change.
    pub async fn until<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut() -> Result<Option<T>, Refusal>,
    ) -> Result<Option<T>, Refusal> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            let mut ended = std::pin::pin!(self.ended.notified());
            room.as_mut().enable();
            ended.as_mut().enable();
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(self.now());
            if left.is_zero() {
                return Ok(None);
            }
            tokio::select! {
                () = room => {}
                () = ended => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// The numbers, whoever leads.
    pub fn status(&self) -> Status {
        let leads = self.with(|state, now| state.status(now));
        let mut status = leads.unwrap_or_default();
        status.leader_address = self.leadership.leader().unwrap_or_default();
        status
    }

    fn wake_all(&self) {
        self.ended.notify_waiters();
        self.room.notify_waiters();
        self.timer.notify_one();
    }
}

/// Notices when a node's connection breaks while its heartbeat waits: then the call is dropped unanswered.
struct ConnectionGuard<'a> {
    core: &'a Core,
    waiting: &'a Waiting,
    node: NodeId,
    epoch: u64,
    number: u64,
    armed: bool,
}

impl Drop for ConnectionGuard<'_> {
    fn drop(&mut self) {
        // a node that has asked again meanwhile is alive
        if self.armed && self.waiting.latest.load(Ordering::Acquire) == self.number {
            drop(
                self.core
                    .with(|state, now| state.suspect(&self.node, self.epoch, now)),
            );
        }
    }
}

/// A key that nobody can foresee.
fn random_key() -> Result<TokenKey> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::from_io(error, "no random bytes"))?;
    Ok(TokenKey::from_bytes(bytes))
}
