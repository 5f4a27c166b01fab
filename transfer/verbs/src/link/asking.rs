//! What this end asks of the peer.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};

use super::ask::{Ask, Next, Stage};
use super::core::Note;
use super::message::MOST_GRANT_BYTES;
use super::{Direction, Operation, after, earlier};
use crate::sys::{Exposure, Window};

/// All operations of this end.
pub(super) struct Asking {
    asks: BTreeMap<u64, Ask>,
    queue: VecDeque<u64>,
    /// Those that aren't in use.
    windows: Vec<Window>,
    last_id: u64,
    /// Requests that the peer counts.
    outstanding: u16,
    most_outstanding: u16,
    heard: Instant,
    probing: bool,
}

impl Asking {
    pub fn new(now: Instant) -> Self {
        Self {
            asks: BTreeMap::new(),
            queue: VecDeque::new(),
            windows: Vec::new(),
            last_id: 0,
            outstanding: 0,
            most_outstanding: 0,
            heard: now,
            probing: false,
        }
    }

    pub fn set_window(&mut self, most: u16) {
        self.most_outstanding = most;
    }

    /// Takes operations over: all, or none.
    pub fn submit(&mut self, operations: Vec<Operation>, depth: usize, now: Instant) -> Result<()> {
        if self.asks.len().saturating_add(operations.len()) > depth {
            return Err(Error::new(
                ErrorKind::Busy,
                "too many operations wait for the RDMA peer",
            ));
        }
        for operation in &operations {
            if operation.memory.length() == 0 {
                return Err(Error::invalid("an operation on no memory"));
            }
            if operation.grant.len() > MOST_GRANT_BYTES {
                return Err(Error::invalid(format!(
                    "a grant of {} bytes",
                    operation.grant.len()
                )));
            }
        }
        if self.asks.is_empty() {
            self.heard = now;
        }
        for operation in operations {
            self.last_id += 1;
            let ask = Ask {
                direction: operation.direction,
                memory: Some(operation.memory),
                grant: operation.grant,
                offset: operation.offset,
                deadline: operation.deadline,
                tag: operation.tag,
                owner: Some(operation.owner),
                stage: Stage::Queued,
                verdict: None,
            };
            self.asks.insert(self.last_id, ask);
            self.queue.push_back(self.last_id);
        }
        Ok(())
    }

    /// Whether the memory of one with that tag may be touched, or its owner wasn't told.
    pub fn is_pending(&self, tag: u64) -> bool {
        self.asks
            .values()
            .any(|ask| ask.tag == tag && ask.owner.is_some())
    }

    /// Those with that tag.
    pub fn tagged(&self, tag: u64) -> Vec<u64> {
        let tagged = self.asks.iter().filter(|(_, ask)| ask.tag == tag);
        tagged.map(|(id, _)| *id).collect()
    }

    /// Whether an operation could be sent if there were another window. There are never more than requests outstanding.
    pub fn needs_window(&self) -> bool {
        self.windows.is_empty() && !self.queue.is_empty() && self.outstanding < self.most_outstanding
    }

    pub fn add_window(&mut self, window: Window) {
        self.windows.push(window);
    }

    /// The next one to send, if the peer takes another. Ends those on the way that aren't wanted any more.
    pub fn next(&mut self, now: Instant) -> Option<Next> {
        while self.outstanding < self.most_outstanding && !self.windows.is_empty() {
            let id = self.queue.pop_front()?;
            let Some(ask) = self.asks.get_mut(&id) else {
                continue;
            };
            if let Some(reason) = ask.reason_to_end(now) {
                ask.finish(Err(reason));
                self.asks.remove(&id);
                continue;
            }
            let (Some(memory), Some(window)) = (ask.memory.clone(), self.windows.pop()) else {
                continue;
            };
            ask.stage = Stage::Moving;
            return Some(Next {
                id,
                direction: ask.direction,
                memory,
                grant: std::mem::take(&mut ask.grant),
                offset: ask.offset,
                exposure: match ask.direction {
                    Direction::Read => Exposure::Writable,
                    Direction::Write => Exposure::Readable,
                },
                window,
            });
        }
        None
    }

    /// The operation was sent, or the link is about to fail.
    pub fn put_back(&mut self, next: Next) {
        self.outstanding += 1;
        if let Some(ask) = self.asks.get_mut(&next.id) {
            ask.stage = Stage::Asked {
                window: next.window,
                until: None,
            };
        }
    }

    /// The peer said something.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.probing = false;
    }

    /// The peer answered. Returns a key that must be made worthless before the operation is over.
    ///
    /// Fails with `Corrupt` if the peer wasn't asked.
    pub fn answered(&mut self, id: u64, failure: Option<ErrorKind>) -> Result<Option<u32>> {
        let unasked = || Error::new(ErrorKind::Corrupt, "an answer to a request that wasn't made");
        let ask = self.asks.get_mut(&id).ok_or_else(unasked)?;
        let (stage, key) = match std::mem::replace(&mut ask.stage, Stage::Moving) {
            Stage::Asked { window, .. } => {
                let result = failure.map_or(Ok(()), |kind| Err(refusal(kind)));
                // the reason for which it was given up counts, unless it was done all the same
                let verdict = ask.verdict.take().filter(|_| result.is_err()).unwrap_or(result);
                ask.verdict = Some(verdict);
                let key = window.key();
                let closing = Stage::Closing {
                    window,
                    answered: true,
                    until: None,
                };
                (closing, Some(key))
            }
            Stage::Closing {
                window,
                answered: false,
                until,
            } => {
                let closing = Stage::Closing {
                    window,
                    answered: true,
                    until,
                };
                (closing, None)
            }
            Stage::Abandoned { .. } => {
                self.outstanding -= 1;
                self.asks.remove(&id);
                return Ok(None);
            }
            other => {
                ask.stage = other;
                return Err(unasked());
            }
        };
        ask.stage = stage;
        Ok(key)
    }

    /// The access to an operation's memory was cut off. The peer, if it hasn't answered, must until then.
    pub fn closed(&mut self, id: u64, until: Instant) -> bool {
        let Some(ask) = self.asks.get_mut(&id) else {
            return false;
        };
        let Stage::Closing {
            mut window, answered, ..
        } = std::mem::replace(&mut ask.stage, Stage::Moving)
        else {
            return false;
        };
        window.invalidated();
        self.windows.push(window);
        let verdict = ask.verdict.take().unwrap_or(Ok(()));
        ask.finish(verdict);
        if answered {
            self.outstanding -= 1;
            self.asks.remove(&id);
        } else {
            ask.stage = Stage::Abandoned { until };
        }
        true
    }

    /// Ends an operation for a reason. Returns what to tell the peer.
    pub fn give_up(&mut self, id: u64, reason: Error, until: Instant) -> Option<Note> {
        let ask = self.asks.get_mut(&id)?;
        match &mut ask.stage {
            Stage::Queued => {
                ask.finish(Err(reason));
                self.asks.remove(&id);
                None
            }
            Stage::Asked { until: awaited, .. } if awaited.is_none() => {
                *awaited = Some(until);
                ask.verdict = Some(Err(reason));
                Some(Note::Cancel { id })
            }
            _ => None,
        }
    }

    /// Those that aren't wanted any more, or whose deadline has passed, and why.
    pub fn overdue(&self, now: Instant) -> Vec<(u64, Error)> {
        let awaited = self
            .asks
            .iter()
            .filter(|(_, ask)| matches!(ask.stage, Stage::Queued | Stage::Asked { until: None, .. }));
        awaited
            .filter_map(|(id, ask)| Some((*id, ask.reason_to_end(now)?)))
            .collect()
    }

    /// Those that the peer was asked to stop and didn't: the keys that must be made worthless, which has until then.
    ///
    /// Fails with `Unavailable` when that has taken too long, or the peer hasn't answered for too long.
    pub fn unheeded(&mut self, now: Instant, limit: Instant) -> Result<Vec<(u64, u32)>> {
        let mut keys = Vec::new();
        for (id, ask) in &mut self.asks {
            match &ask.stage {
                Stage::Asked {
                    until: Some(until), ..
                } if *until <= now => {}
                Stage::Closing {
                    until: Some(until), ..
                } if *until <= now => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the RDMA device doesn't end an access",
                    ));
                }
                Stage::Abandoned { until } if *until <= now => {
                    return Err(Error::new(ErrorKind::Unavailable, "the RDMA peer doesn't answer"));
                }
                _ => continue,
            }
            if let Stage::Asked { window, .. } = std::mem::replace(&mut ask.stage, Stage::Moving) {
                keys.push((*id, window.key()));
                ask.stage = Stage::Closing {
                    window,
                    answered: false,
                    until: Some(limit),
                };
            }
        }
        Ok(keys)
    }

    /// Whether the peer should be asked to say something. Fails with `Unavailable` when it has been silent for too long.
    pub fn must_probe(&mut self, now: Instant, silence: Duration) -> Result<bool> {
        if self.outstanding == 0 {
            return Ok(false);
        }
        let silent = now.saturating_duration_since(self.heard);
        if silent >= silence {
            return Err(Error::new(ErrorKind::Unavailable, "the RDMA peer is silent"));
        }
        let asks = !self.probing && silent >= silence / 4;
        self.probing |= asks;
        Ok(asks)
    }

    pub fn next_wake(&self, now: Instant, silence: Duration) -> Option<Instant> {
        let mut wake = None;
        for ask in self.asks.values() {
            let at = match &ask.stage {
                Stage::Queued | Stage::Asked { until: None, .. } => Some(ask.deadline),
                Stage::Asked { until, .. } | Stage::Closing { until, .. } => *until,
                Stage::Abandoned { until } => Some(*until),
                Stage::Moving => None,
            };
            wake = earlier(wake, at);
        }
        if self.outstanding > 0 {
            let beat = after(now, silence / 4).min(after(self.heard, silence));
            wake = earlier(wake, Some(beat));
        }
        wake
    }

    /// Frees all windows, which ends the peer's access.
    pub fn drop_windows(&mut self) {
        self.windows.clear();
        for ask in self.asks.values_mut() {
            if matches!(ask.stage, Stage::Asked { .. } | Stage::Closing { .. }) {
                ask.stage = Stage::Moving;
            }
        }
    }

    /// Ends everything.
    pub fn fail(&mut self, reason: &Error) {
        self.queue.clear();
        for (_, mut ask) in std::mem::take(&mut self.asks) {
            let verdict = match ask.verdict.take() {
                Some(Err(error)) => error,
                _ => Error::new(ErrorKind::Unavailable, format!("the RDMA link is dead: {reason}")),
            };
            ask.finish(Err(verdict));
        }
    }
}

fn refusal(kind: ErrorKind) -> Error {
    Error::new(kind, "the peer refused or ended the operation")
}
