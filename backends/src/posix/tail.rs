//! Following other writers' journals, so that lookups know their blocks without touching the disk.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstored_core::{ErrorKind, Namespace, Result};

use super::follow::Followed;
use super::format::WriterId;
use super::log::Log;
use super::segments::Segment;

/// The other writers of a directory.
#[derive(Default)]
pub struct Tailer {
    known: HashMap<WriterId, Followed>,
    /// Writers of a newer version, warned about once.
    refused: HashSet<WriterId>,
}

/// What a round brought.
#[derive(Default)]
pub struct Round {
    /// Whether there was news.
    pub news: bool,
    /// Segments that went.
    pub(super) gone: HashSet<u32>,
}

impl Tailer {
    /// Reads what other writers appended since the last round.
    pub fn round(&mut self, log: &Log) -> Result<Round> {
        let mut round = Round::default();
        let writers = match log.directory.list_writers() {
            Ok(writers) => writers,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let own: HashSet<WriterId> = log.own.lock().writers().map(super::own::OwnWriter::id).collect();
        let there: HashSet<WriterId> = writers.iter().copied().filter(|id| !own.contains(id)).collect();
        self.known.retain(|id, followed| {
            let keep = there.contains(id);
            if !keep {
                // an adopted writer's segments are in use under the same handles
                if !own.contains(id) {
                    followed.leave(&mut round);
                }
                round.news = true;
            }
            keep
        });
        for id in there {
            if let Some(followed) = self.known.get_mut(&id) {
                if !followed.follow(log, &mut round) {
                    let mut followed = self.known.remove(&id);
                    if let Some(followed) = &mut followed {
                        followed.leave(&mut round);
                    }
                    drop_gone(log, &mut round);
                    self.load(log, id, &mut round);
                }
            } else {
                self.load(log, id, &mut round);
            }
        }
        drop_gone(log, &mut round);
        Ok(round)
    }

    fn load(&mut self, log: &Log, id: WriterId, round: &mut Round) {
        if self.refused.contains(&id) {
            return;
        }
        match Followed::load(log, id) {
            Ok(Some(followed)) => {
                round.news = true;
                self.known.insert(id, followed);
            }
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                tracing::warn!(%error, writer = %id, "a writer of a newer version is left out");
                self.refused.insert(id);
            }
            Err(error) => tracing::debug!(%error, writer = %id, "a writer can't be read now"),
        }
    }

    /// The segments known of a writer, by number.
    pub fn segments(&self, id: WriterId) -> HashMap<u32, Arc<Segment>> {
        self.known
            .get(&id)
            .map(|followed| followed.segments.clone())
            .unwrap_or_default()
    }

    /// Stops following a writer that is this process's own from now on.
    pub fn forget(&mut self, id: WriterId) {
        self.known.remove(&id);
    }

    /// Writers that are followed.
    pub fn writers(&self) -> Vec<WriterId> {
        self.known.keys().copied().collect()
    }
}

/// Takes the blocks of segments that went out of the index, all at once: that's a walk over all of it.
fn drop_gone(log: &Log, round: &mut Round) {
    if round.gone.is_empty() {
        return;
    }
    let gone = std::mem::take(&mut round.gone);
    for handle in &gone {
        log.shared.segments.remove(*handle);
    }
    log.shared
        .index
        .drop_segments(&|handle| gone.contains(&handle), &|_, _| {});
}

/// Takes a purge in: the blocks go, and the bytes of those in own segments count as dead.
pub fn purge(log: &Log, namespace: &Namespace, bound: u64) -> u64 {
    let mut places: HashMap<u32, usize> = HashMap::new();
    let gone = log.shared.index.purge(namespace, bound, |location| {
        *places.entry(location.segment).or_default() += 1;
    });
    let Some(index) = log.shared.index.get(namespace) else {
        return gone;
    };
    for (handle, blocks) in places {
        let bytes = blocks * index.image_bytes();
        if log.shared.segments.block_left(handle, bytes) {
            log.shared.quotas.release(&index, bytes as u64);
        }
    }
    log.dirty.store(true, Ordering::Relaxed);
    gone
}
