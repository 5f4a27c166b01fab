//! Tells producers that a rank wants nothing of a request any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvstored_core::{ErrorKind, Result};

use super::Consumer;
use super::producers::{Heard, ask};
use super::request::RemoteRequest;
use crate::wire::{Question, Status};

/// The longest that one try may take. One that hangs holds up words to others for so long, and not again and again: see
/// [`super::producers::Producers::peer`].
const TRY: Duration = Duration::from_secs(2);
/// Waits between tries grow from the one to the other.
const WAITS: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// A word to one rank of a producer.
pub(super) struct Ending {
    pub remote: Arc<RemoteRequest>,
    pub producer: usize,
    pub deadline: Instant,
    pub wait: Duration,
}

impl Ending {
    /// One for each rank.
    pub fn all(remote: RemoteRequest, deadline: Instant) -> impl Iterator<Item = Self> {
        let remote = Arc::new(remote);
        (0..remote.producers.len()).map(move |producer| Self {
            remote: remote.clone(),
            producer,
            deadline,
            wait: WAITS[0],
        })
    }
}

impl Consumer {
    /// Tries once, and has it tried again later if need be.
    pub(super) fn deliver(&self, mut ending: Ending) {
        match self.tell(&ending) {
            Ok(true) => {}
            // what is wrong with the question stays wrong
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                tracing::warn!(%error, request = ending.remote.request, "a producer can't be told that a request is done");
                self.counts.undelivered.fetch_add(1, Ordering::Relaxed);
            }
            outcome => {
                let at = self.runtime.deadline(ending.wait);
                ending.wait = (ending.wait * 2).min(WAITS[1]);
                if at >= ending.deadline || self.endings.push(at, ending).is_err() {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a producer wasn't told that a request is done");
                    }
                    self.counts.undelivered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whether it was heard.
    fn tell(&self, ending: &Ending) -> Result<bool> {
        let rank = &self.memory()?.description.rank;
        let deadline = ending.deadline.min(self.runtime.deadline(TRY));
        let Some(address) = ending.remote.producers.get(ending.producer) else {
            return Ok(true);
        };
        let peer = self
            .producers
            .peer(&self.engine, &self.runtime, address, deadline)?;
        let question = Question::Done {
            engine_id: ending.remote.engine_id.clone(),
            request: ending.remote.request.clone(),
            rank: rank.index() as u32,
            ranks: rank.ranks() as u32,
        };
        Ok(match ask(&peer, &question, deadline)? {
            Heard::Answer(_) | Heard::Refused(Status::Gone) => true,
            Heard::Refused(Status::NotYet) => false,
        })
    }
}
