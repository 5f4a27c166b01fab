//! What is pulled, and how far it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, Result};
use kvstored_transfer::Transfer;
use parking_lot::{Condvar, Mutex};

use super::follow::Followed;
use crate::geometry::name_length;
use crate::limits::MAX_RANKS;

/// A request of another engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteRequest {
    /// The engine.
    pub engine_id: String,
    /// The request there.
    pub request: String,
    /// `host:port` of each of its ranks, at `pp_rank * tp_size + tp_rank`.
    pub producers: Vec<String>,
}

impl RemoteRequest {
    /// Fails with `InvalidInput`, naming what makes no sense.
    pub(crate) fn check(&self) -> Result<()> {
        name_length("remote_engine_id", self.engine_id.len())?;
        name_length("remote_request", self.request.len())?;
        if self.producers.is_empty() || self.producers.len() > MAX_RANKS {
            return Err(Error::invalid(format!(
                "{} producers, not 1 to {MAX_RANKS}",
                self.producers.len()
            )));
        }
        self.producers
            .iter()
            .try_for_each(|address| name_length("a producer's address", address.len()))
    }
}

/// A pull that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The request here.
    pub request: String,
    /// Blocks here that didn't come; what they hold is worthless.
    pub failed: Vec<u32>,
    /// Why, beginning with the kind of the error and a colon; empty where all came.
    pub message: String,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It waits for its time or a thread.
    Waiting,
    /// A thread is at it.
    Running,
    Over,
}

struct State {
    phase: Phase,
    cancelled: bool,
    transfers: Vec<Arc<Transfer>>,
    /// How often the producer was asked in vain.
    attempts: u32,
}

/// A pull.
pub(crate) struct Pull {
    pub request: String,
    pub remote: RemoteRequest,
    pub blocks: Vec<u32>,
    pub first_block: u32,
    pub deadline: Instant,
    /// Until when a producer that doesn't know the request is asked again.
    pub grace_end: Instant,
    /// Whether the producer may compute it still.
    pub follows: bool,
    /// How far that has come, between two turns.
    pub followed: Mutex<Option<Followed>>,
    state: Mutex<State>,
    changed: Condvar,
}

/// What a call for the end of a pull found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// No thread is at it, and none will be: the caller has to report it.
    Here,
    /// A thread is at it, and reports it when its transfers are cancelled.
    Elsewhere,
    /// It's over already.
    Over,
}

impl Pull {
    pub fn new(
        request: String,
        remote: RemoteRequest,
        blocks: Vec<u32>,
        first_block: u32,
        deadline: Instant,
        grace_end: Instant,
        follows: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            request,
            remote,
            blocks,
            first_block,
            deadline,
            grace_end,
            follows,
            followed: Mutex::default(),
            state: Mutex::new(State {
                phase: Phase::Waiting,
                cancelled: false,
                transfers: Vec::new(),
                attempts: 0,
            }),
            changed: Condvar::new(),
        })
    }

    /// A thread begins with it. False when it's over.
    pub fn begin(&self) -> bool {
        let mut state = self.state.lock();
        let begins = state.phase == Phase::Waiting;
        if begins {
            state.phase = Phase::Running;
        }
        begins
    }

    /// The thread leaves it until later; how long to wait: twice as long each time that nothing came, within those bounds.
    /// `None` when it was cancelled meanwhile.
    pub fn pause(&self, waits: [Duration; 2], came: bool) -> Option<Duration> {
        let mut state = self.state.lock();
        if state.cancelled {
            return None;
        }
        state.phase = Phase::Waiting;
        state.attempts = if came { 0 } else { state.attempts + 1 };
        let [first, longest] = waits;
        Some((first * 2u32.pow(state.attempts.min(10))).min(longest))
    }

    /// Ends it for a reason that isn't its thread's.
    pub fn stop(&self) -> Stopped {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Over => Stopped::Over,
            Phase::Waiting => {
                state.phase = Phase::Over;
                Stopped::Here
            }
            Phase::Running => {
                state.cancelled = true;
                drop(state);
                self.changed.notify_all();
                Stopped::Elsewhere
            }
        }
    }

    /// Ends it if no thread is at it. Whether that was so.
    pub fn expire(&self) -> bool {
        let mut state = self.state.lock();
        let waits = state.phase == Phase::Waiting;
        if waits {
            state.phase = Phase::Over;
        }
        waits
    }

    /// Its thread ends it.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Over;
        state.transfers.clear();
    }

    pub fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// Counts a transfer in, so that it can be cancelled.
    pub fn add(&self, transfer: &Arc<Transfer>) {
        self.state.lock().transfers.push(transfer.clone());
    }

    /// A transfer is over.
    pub fn remove(&self, transfer: &Arc<Transfer>) {
        self.state
            .lock()
            .transfers
            .retain(|other| !Arc::ptr_eq(other, transfer));
    }

    /// Transfers that are under way.
    pub fn transfers(&self) -> Vec<Arc<Transfer>> {
        self.state.lock().transfers.clone()
    }

    /// Waits, until it's cancelled at most.
    pub fn rest(&self, until: Instant) {
        let mut state = self.state.lock();
        while !state.cancelled {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}
