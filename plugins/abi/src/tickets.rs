//! Operations that a plugin has or will get: who owns their buffers, until when, and whether they ended before.
//!
//! A ticket is a place in the table and the place's generation, so that a ticket that ended is never taken for a later
//! one. An operation that took too long has ended for its caller, but its place keeps the buffer until the plugin gives
//! it back: nothing else may use memory that somebody may still write to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::tier::Completion;
use kvstored_core::{Action, BlockHash, BlockKey, NamespaceInfo, Operation, SlotGuard};

/// What is known of an operation.
pub(crate) struct Ticket {
    pub namespace: Arc<NamespaceInfo>,
    pub hash: BlockHash,
    pub action: Action,
    pub buffer: SlotGuard,
    /// `None` once its caller was told.
    pub completion: Option<Completion>,
    /// The plugin has it.
    pub lent: bool,
    /// Its block was removed meanwhile.
    pub revoked: bool,
}

impl Ticket {
    pub fn key(&self) -> BlockKey {
        self.namespace.key(self.hash)
    }
}

struct Place {
    generation: u32,
    ticket: Option<Ticket>,
}

/// The table.
#[derive(Default)]
pub(crate) struct Tickets {
    places: Vec<Place>,
    free: Vec<u32>,
    /// In the order of their deadlines, those that ended included.
    deadlines: VecDeque<(Instant, u64)>,
    held: u64,
    held_bytes: u64,
}

/// What a completion meets.
pub(crate) enum Ended {
    /// An operation whose caller waits.
    Now(Ticket),
    /// One that took too long; its buffer is free now.
    Late,
    /// None: it ended before, or never was.
    Never,
}

impl Tickets {
    /// Operations in the table, those that took too long included.
    pub fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Buffers of operations that took too long, and their bytes.
    pub fn held(&self) -> (u64, u64) {
        (self.held, self.held_bytes)
    }

    /// Operations whose callers wait.
    pub fn waiting(&self) -> usize {
        self.count() - self.held as usize
    }

    /// Enters an operation.
    pub fn enter(&mut self, operation: Operation, deadline: Instant) -> u64 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                ticket: None,
            });
            self.places.len() as u32 - 1
        });
        let Some(place) = self.places.get_mut(number as usize) else {
            return u64::MAX;
        };
        place.generation = place.generation.wrapping_add(1);
        place.ticket = Some(Ticket {
            namespace: operation.namespace,
            hash: operation.hash,
            action: operation.action,
            buffer: operation.buffer,
            completion: Some(operation.completion),
            lent: false,
            revoked: false,
        });
        let ticket = u64::from(place.generation) << 32 | u64::from(number);
        self.deadlines.push_back((deadline, ticket));
        ticket
    }

    /// An operation that's in the table.
    pub fn get(&mut self, ticket: u64) -> Option<&mut Ticket> {
        let place = self.places.get_mut(ticket as u32 as usize)?;
        (place.generation == (ticket >> 32) as u32)
            .then_some(place.ticket.as_mut())
            .flatten()
    }

    /// The plugin says that an operation has ended.
    pub fn end(&mut self, ticket: u64) -> Ended {
        // one that the plugin never got is none of its
        if !self.get(ticket).is_some_and(|known| known.lent) {
            return Ended::Never;
        }
        match self.take(ticket) {
            Some(ended) if ended.completion.is_some() => Ended::Now(ended),
            Some(ended) => {
                self.held -= 1;
                self.held_bytes -= ended.buffer.length() as u64;
                Ended::Late
            }
            None => Ended::Never,
        }
    }

    /// Takes an operation back that the plugin hasn't got.
    pub fn withdraw(&mut self, ticket: u64) -> Option<(SlotGuard, Completion)> {
        if self.get(ticket)?.lent {
            return None;
        }
        let taken = self.take(ticket)?;
        Some((taken.buffer, taken.completion?))
    }

    /// The next moment at which an operation may have taken too long.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        while let Some((deadline, ticket)) = self.deadlines.front().copied() {
            if self.get(ticket).is_some_and(|known| known.completion.is_some()) {
                return Some(deadline);
            }
            self.deadlines.pop_front();
        }
        None
    }

    /// Takes the callers of operations that have taken too long by `now`; `None` ends all. Says for each whether the
    /// plugin still has its buffer.
    pub fn expire(&mut self, now: Option<Instant>) -> Vec<(SlotGuard, Completion, bool)> {
        let mut expired = Vec::new();
        while let Some((deadline, ticket)) = self.deadlines.front().copied() {
            if now.is_some_and(|now| deadline > now) {
                break;
            }
            self.deadlines.pop_front();
            let Some(known) = self.get(ticket) else { continue };
            let Some(completion) = known.completion.take() else {
                continue;
            };
            let (buffer, lent) = (known.buffer.clone(), known.lent);
            if lent {
                self.held += 1;
                self.held_bytes += buffer.length() as u64;
            } else {
                self.take(ticket);
            }
            expired.push((buffer, completion, lent));
        }
        expired
    }

    /// Marks writes under way whose blocks are to go.
    pub fn revoke(&mut self, chosen: impl Fn(&BlockKey) -> bool) {
        let tickets = self.places.iter_mut().filter_map(|place| place.ticket.as_mut());
        for ticket in tickets {
            if matches!(ticket.action, Action::Write(_)) && chosen(&ticket.key()) {
                ticket.revoked = true;
            }
        }
    }

    fn take(&mut self, ticket: u64) -> Option<Ticket> {
        let number = ticket as u32;
        let taken = self.places.get_mut(number as usize)?.ticket.take()?;
        self.free.push(number);
        Some(taken)
    }
}
