//! The end of puts: nodes take the descriptors, then the master makes the objects visible.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_master::{Finished, Found, Location, NodeId};
use parking_lot::{Condvar, Mutex};

use super::PoolClient;
use super::known::Object;
use super::peers::Node;
use super::put::{Job, fail, set};
use crate::wire::Verb;

/// How soon a master that doesn't answer, or a node with a write under way, is asked again.
const RETRY: Duration = Duration::from_millis(20);
/// How long revoking a failed put may take.
const REVOKE: Duration = Duration::from_millis(500);

impl PoolClient {
    /// Hands the descriptors over.
    pub(super) fn seal(
        &self,
        jobs: &mut [Job<'_>],
        node: &Node,
        group: Vec<(usize, Location)>,
        deadline: Instant,
    ) {
        let until = self.runtime.deadline(self.settings.replica_timeout).min(deadline);
        let mut left = group;
        while !left.is_empty() {
            let items = left
                .iter()
                .filter_map(|(at, place)| Some(jobs.get(*at)?.item(place)))
                .collect();
            let answers = match node.ask(Verb::Seal, items, until) {
                Ok(answers) => answers,
                Err(error) => {
                    node.failed(&error);
                    for (at, _) in left {
                        fail(jobs, at, error.clone());
                    }
                    return;
                }
            };
            let mut busy = Vec::new();
            for ((at, place), answer) in left.into_iter().zip(answers) {
                match answer {
                    Ok(answer) => {
                        if let Some(job) = jobs.get_mut(at) {
                            job.held_by(place.node, answer.master_epoch);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::Busy && self.runtime.clock.now() < until => {
                        busy.push((at, place));
                    }
                    Err(error) => fail(jobs, at, error),
                }
            }
            left = busy;
            if !left.is_empty() {
                self.pause(RETRY);
            }
        }
        node.worked();
    }

    /// Makes what is held visible, and gives the rest up.
    pub(super) fn finish(&self, jobs: Vec<Job<'_>>, outcomes: &mut [Result<()>], deadline: Instant) {
        let (mut held, failed): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| !job.holders.is_empty());
        if !failed.is_empty() {
            let revoked: Vec<(&[u8], u64)> = failed
                .iter()
                .map(|job| (job.request.key, job.ticket.put))
                .collect();
            if let Err(error) = self
                .directory
                .revoke_puts(&revoked, self.runtime.deadline(REVOKE))
            {
                // the master gives it up by itself later
                tracing::debug!(%error, "a failed put wasn't revoked");
            }
        }
        for job in failed {
            let unknown = || Error::new(ErrorKind::Unavailable, "no node took the object");
            set(outcomes, job.index, Err(job.failure.unwrap_or_else(unknown)));
        }
        let mut last = None;
        while !held.is_empty() {
            // a holder may have lost the object between two attempts
            let (kept, lost): (Vec<_>, Vec<_>) = held.into_iter().partition(|job| !job.holders.is_empty());
            for job in lost {
                let unknown = || Error::new(ErrorKind::Fenced, "the put was revoked");
                set(outcomes, job.index, Err(job.failure.unwrap_or_else(unknown)));
            }
            held = kept;
            if held.is_empty() {
                return;
            }
            let finished: Vec<Finished<'_>> = held.iter().map(finished).collect();
            match self.directory.end_puts(&finished, deadline) {
                Ok(answers) => {
                    let mut again = Vec::new();
                    for (job, answer) in held.into_iter().zip(answers) {
                        match answer {
                            Ok(()) => {
                                self.counters.puts.fetch_add(1, Ordering::Relaxed);
                                self.counters.put_bytes.fetch_add(job.length, Ordering::Relaxed);
                                self.learn_put(&job);
                                set(outcomes, job.index, Ok(()));
                            }
                            // another master took over: the nodes say by which one they stand
                            Err(error) if error.is_retryable() => {
                                last = Some(error);
                                again.push(job);
                            }
                            Err(error) => set(outcomes, job.index, Err(error)),
                        }
                    }
                    held = again;
                }
                // the nodes hold it: a master that comes back learns of it
                Err(error) => last = Some(error),
            }
            if held.is_empty() {
                return;
            }
            if self.runtime.clock.now() >= deadline {
                let late = || Error::new(ErrorKind::TimedOut, "the master didn't acknowledge in time");
                let error = last.unwrap_or_else(late);
                for job in held {
                    set(outcomes, job.index, Err(error.clone()));
                }
                return;
            }
            self.pause(RETRY);
            self.seal_again(&mut held, deadline);
        }
    }

    /// Remembers where an object is that was put just now: not leased, but to be tried when no master answers.
    fn learn_put(&self, job: &Job<'_>) {
        let holds = |location: &&Location| job.holders.contains(&location.node);
        let found = Found {
            put: job.ticket.put,
            length: job.length,
            checksum: job.checksum.unwrap_or(0),
            lease: Duration::ZERO,
            locations: job.ticket.locations.iter().filter(holds).cloned().collect(),
            stale: true,
        };
        let now = self.runtime.clock.now();
        self.known
            .learn(job.request.key, Arc::new(Object::new(found)), now);
    }

    /// Asks the nodes again by which master they stand; sealing twice changes nothing.
    fn seal_again(&self, jobs: &mut [Job<'_>], deadline: Instant) {
        let own = self.own_node();
        let mut by_node: HashMap<NodeId, Vec<(usize, Location)>> = HashMap::new();
        for (at, job) in jobs.iter_mut().enumerate() {
            let holders = std::mem::take(&mut job.holders);
            let places = job.ticket.locations.clone();
            for place in places.into_iter().filter(|place| holders.contains(&place.node)) {
                if Some(place.node) != own {
                    by_node.entry(place.node).or_default().push((at, place));
                } else if let Some(node) = &self.node {
                    let checksum = job.checksum.unwrap_or(0);
                    match node.segment().seal(job.ticket.put, job.request.key, checksum) {
                        Ok(()) => job.held_by(place.node, node.segment().master_epoch()),
                        Err(error) => job.failure = Some(error),
                    }
                }
            }
        }
        for group in by_node.into_values() {
            if let Some((_, place)) = group.first() {
                let node = self.nodes.get(place);
                self.seal(jobs, &node, group, deadline);
            }
        }
    }

    fn pause(&self, length: Duration) {
        let never = (Mutex::new(()), Condvar::new());
        let until = self.runtime.deadline(length);
        let mut guard = never.0.lock();
        while !never.1.wait_until(&mut guard, until).timed_out() {}
    }
}

fn finished<'a>(job: &'a Job<'_>) -> Finished<'a> {
    Finished {
        key: job.request.key,
        put: job.ticket.put,
        checksum: job.checksum.unwrap_or(0),
        nodes: &job.holders,
        master_epoch: job.master_epoch,
    }
}
