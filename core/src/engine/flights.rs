//! Promotions under way: one read per block, however many ask for it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::block::BlockKey;
use crate::error::{Error, Result};

use super::{AcquireDone, Acquired};

/// Collects the outcomes of one acquire and calls back when the last is in.
pub(crate) struct Gather {
    state: Mutex<GatherState>,
}

struct GatherState {
    outcomes: Vec<Option<Result<Acquired>>>,
    missing: usize,
    done: Option<AcquireDone>,
}

impl Gather {
    pub(crate) fn new(blocks: usize, done: AcquireDone) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(GatherState {
                outcomes: (0..blocks).map(|_| None).collect(),
                missing: blocks,
                done: Some(done),
            }),
        })
    }

    /// Sets one outcome; the last one triggers the callback, outside the lock.
    pub(crate) fn set(&self, index: usize, outcome: Result<Acquired>) {
        let mut state = self.state.lock();
        match state.outcomes.get_mut(index) {
            Some(place @ None) => *place = Some(outcome),
            _ => return,
        }
        state.missing -= 1;
        if state.missing > 0 {
            return;
        }
        let outcomes = std::mem::take(&mut state.outcomes);
        let done = state.done.take();
        drop(state);
        if let Some(done) = done {
            let lost = || Err(Error::internal("an outcome is missing"));
            done(
                outcomes
                    .into_iter()
                    .map(|outcome| outcome.unwrap_or_else(lost))
                    .collect(),
            );
        }
    }
}

/// Somebody who waits for a block.
pub(crate) struct Waiter {
    pub(crate) gather: Arc<Gather>,
    pub(crate) index: usize,
}

/// The blocks being read, each with those who wait for it.
#[derive(Default)]
pub(crate) struct Flights {
    waiters: Mutex<HashMap<BlockKey, Vec<Waiter>>>,
}

impl Flights {
    /// Joins a flight, or starts one: then `true`, and the caller must end it with [`Flights::land`].
    pub(crate) fn join(&self, key: BlockKey, waiter: Waiter) -> bool {
        let mut waiters = self.waiters.lock();
        let known = waiters.entry(key).or_default();
        known.push(waiter);
        known.len() == 1
    }

    /// Ends a flight: every waiter gets the outcome.
    pub(crate) fn land(&self, key: &BlockKey, outcome: &Result<Acquired>) {
        let waiters = self.waiters.lock().remove(key).unwrap_or_default();
        for waiter in waiters {
            waiter.gather.set(waiter.index, outcome.clone());
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiters.lock().len()
    }
}
