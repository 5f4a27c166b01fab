//! What the master is asked: which objects are there, and where. What it leased isn't asked twice, and while it doesn't
//! answer, what was known last goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_master::Found;

use super::known::Object;
use super::{MOST_KEYS, PoolClient};

impl PoolClient {
    /// Which objects are there. One question to the master at most, and none for objects that it has leased to this
    /// client or that lie in this process's own memory. A leased object that another client removes by force may count as
    /// present until its lease is over.
    ///
    /// While no master answers, objects with a known location count as present; fails with `Unavailable` or `TimedOut`
    /// when another one is asked for.
    pub fn exist(&self, keys: &[&[u8]], deadline: Instant) -> Result<Vec<bool>> {
        let asked_at = self.runtime.clock.now();
        let mut present: Vec<bool> = keys.iter().map(|key| self.known.exists(key, asked_at)).collect();
        if let Some(node) = &self.node {
            node.segment().find_all(keys, &mut present);
        }
        let open: Vec<usize> = (0..keys.len())
            .filter(|at| present.get(*at) == Some(&false))
            .collect();
        let remembered = (keys.len() - open.len()) as u64;
        self.counters.remembered.fetch_add(remembered, Ordering::Relaxed);
        for part in open.chunks(MOST_KEYS) {
            let wanted: Vec<&[u8]> = part.iter().filter_map(|at| keys.get(*at).copied()).collect();
            for ((at, key), lease) in part
                .iter()
                .zip(&wanted)
                .zip(self.existence(&wanted, asked_at, deadline)?)
            {
                let Some(lease) = lease else { continue };
                if let Some(found) = present.get_mut(*at) {
                    *found = true;
                }
                let lease = lease.min(self.settings.most_lease);
                self.known.learn_existence(key, asked_at + lease);
            }
        }
        Ok(present)
    }

    fn existence(
        &self,
        keys: &[&[u8]],
        asked_at: Instant,
        deadline: Instant,
    ) -> Result<Vec<Option<Duration>>> {
        let last_known = |error: Error| -> Result<Vec<Option<Duration>>> {
            let known = |key: &&[u8]| self.known.find(key, asked_at).is_some();
            if keys.iter().all(known) {
                return Ok(vec![Some(Duration::ZERO); keys.len()]);
            }
            Err(error)
        };
        if self.master_is_away(asked_at)
            && let Ok(known) = last_known(away())
        {
            return Ok(known);
        }
        let answers = self
            .directory
            .exist(keys, self.master_deadline(asked_at, deadline));
        self.heard(answers, asked_at).or_else(last_known)
    }

    /// Bytes of objects. `NotFound` for one that isn't there.
    pub fn sizes(&self, keys: &[&[u8]], deadline: Instant) -> Vec<Result<u64>> {
        let located = self.locate(keys, false, deadline);
        located.into_iter().map(|found| Ok(found?.found.length)).collect()
    }

    /// Where objects are: from memory while that is certain (unless asked `again`), else from the master, else from
    /// memory whether that is certain or not.
    pub(super) fn locate(&self, keys: &[&[u8]], again: bool, deadline: Instant) -> Vec<Result<Arc<Object>>> {
        let asked_at = self.runtime.clock.now();
        let away = self.master_is_away(asked_at);
        let known = |key: &&[u8]| match self.known.find(key, asked_at) {
            Some((object, certain)) if (certain && !again) || away => Some(Ok(object)),
            _ => None,
        };
        let mut all: Vec<Option<Result<Arc<Object>>>> = keys.iter().map(known).collect();
        let open: Vec<usize> = (0..keys.len())
            .filter(|at| matches!(all.get(*at), Some(None)))
            .collect();
        for part in open.chunks(MOST_KEYS) {
            let wanted: Vec<&[u8]> = part.iter().filter_map(|at| keys.get(*at).copied()).collect();
            for (at, answer) in part.iter().zip(self.ask_where(&wanted, asked_at, deadline)) {
                if let Some(slot) = all.get_mut(*at) {
                    *slot = Some(answer);
                }
            }
        }
        let missing = || Error::new(ErrorKind::Unavailable, "the master's answer is too short");
        all.into_iter()
            .map(|found| found.unwrap_or_else(|| Err(missing())))
            .collect()
    }

    fn ask_where(&self, keys: &[&[u8]], asked_at: Instant, deadline: Instant) -> Vec<Result<Arc<Object>>> {
        let answers = self
            .directory
            .locate(keys, self.master_deadline(asked_at, deadline));
        match self.heard(answers, asked_at) {
            Ok(answers) => keys
                .iter()
                .zip(answers)
                .map(|(key, answer)| self.learn(key, answer, asked_at))
                .collect(),
            Err(error) => keys
                .iter()
                .map(|key| self.last_known(key, asked_at).ok_or_else(|| error.clone()))
                .collect(),
        }
    }

    fn last_known(&self, key: &[u8], now: Instant) -> Option<Arc<Object>> {
        self.known.find(key, now).map(|(object, _)| object)
    }

    fn learn(&self, key: &[u8], answer: Result<Found>, asked_at: Instant) -> Result<Arc<Object>> {
        match answer {
            Ok(found) => {
                let lease = found.lease.min(self.settings.most_lease);
                let object = Arc::new(Object::new(found));
                self.known.learn(key, object.clone(), asked_at + lease);
                Ok(object)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.known.forget(key);
                Err(error)
            }
            // a master that has just taken over may not have heard of it yet
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.last_known(key, asked_at).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// How long the master may take: whoever waits for it has a second way to go.
    fn master_deadline(&self, asked_at: Instant, deadline: Instant) -> Instant {
        deadline.min(asked_at + self.settings.master_timeout)
    }

    fn master_is_away(&self, now: Instant) -> bool {
        self.master_away_until.lock().is_some_and(|until| now < until)
    }

    /// Remembers whether the master answers.
    fn heard<T>(&self, answer: Result<T>, asked_at: Instant) -> Result<T> {
        let gone = |error: &Error| matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut);
        let away = answer.as_ref().err().is_some_and(gone);
        *self.master_away_until.lock() = away.then(|| asked_at + self.settings.shun);
        answer
    }
}

fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "no master answered lately")
}
