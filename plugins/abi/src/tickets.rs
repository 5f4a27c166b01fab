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

use crate::quota::Charge;

/// Deadlines of operations that have ended and that are never worth going through.
const FEW: usize = 64;

/// What is known of an operation.
pub(crate) struct Ticket {
    pub namespace: Arc<NamespaceInfo>,
    pub hash: BlockHash,
    pub action: Action,
    pub buffer: SlotGuard,
    /// What a write is charged for, where there are quotas.
    pub charge: Option<Charge>,
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

    /// Enters an operation.
    pub fn enter(&mut self, operation: Operation, charge: Option<Charge>, deadline: Instant) -> u64 {
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
            charge,
            completion: Some(operation.completion),
            lent: false,
            revoked: false,
        });
        let ticket = u64::from(place.generation) << 32 | u64::from(number);
        // those that have ended are dropped once there are more of them than of others
        if self.deadlines.len() >= 2 * self.places.len() + FEW {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines.retain(|(_, number)| self.get(*number).is_some());
            self.deadlines = deadlines;
        }
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
        let Some(ended) = self.take(ticket) else {
            return Ended::Never;
        };
        if ended.completion.is_some() {
            return Ended::Now(ended);
        }
        self.held -= 1;
        self.held_bytes -= ended.buffer.length() as u64;
        Ended::Late
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvstored_core::memory::SlotOwner;
    use kvstored_core::{Arena, Identity, Layout, Runtime};

    use super::*;

    struct Nobody;

    impl SlotOwner for Nobody {
        fn release(&self, _slot: u32) {}
    }

    fn operation() -> Operation {
        let layout = Layout::uniform(1, 1, 4096).unwrap();
        let namespace = Arc::new(NamespaceInfo::new(Identity::default(), layout).unwrap());
        let bytes = namespace.layout.image_bytes();
        let arena = Arc::new(Arena::heap(bytes).unwrap());
        Operation {
            namespace,
            hash: BlockHash::new(&[1; 16]).unwrap(),
            action: Action::Read,
            buffer: SlotGuard::new(arena, Arc::new(Nobody), 0, 0, bytes),
            completion: Box::new(|_, _| {}),
        }
    }

    #[test]
    fn a_ticket_ends_once_and_only_after_it_was_lent() {
        let mut tickets = Tickets::default();
        let deadline = Runtime::system().deadline(Duration::from_secs(1));
        let number = tickets.enter(operation(), None, deadline);
        assert!(matches!(tickets.end(number), Ended::Never));
        tickets.get(number).unwrap().lent = true;
        assert!(tickets.withdraw(number).is_none());
        assert!(matches!(tickets.end(number), Ended::Now(_)));
        assert!(matches!(tickets.end(number), Ended::Never));
        // the place has another ticket now
        let next = tickets.enter(operation(), None, deadline);
        tickets.get(next).unwrap().lent = true;
        assert!(next != number && matches!(tickets.end(number), Ended::Never));
        assert_eq!(tickets.count(), 1);
    }

    #[test]
    fn a_buffer_is_held_until_it_is_given_back() {
        let mut tickets = Tickets::default();
        let deadline = Runtime::system().deadline(Duration::ZERO);
        let numbers = [0, 1].map(|_| tickets.enter(operation(), None, deadline));
        tickets.get(numbers[0]).unwrap().lent = true;
        assert_eq!(tickets.expire(Some(deadline)).len(), 2);
        // the one that the plugin hasn't got is free
        assert_eq!((tickets.count(), tickets.held().0), (1, 1));
        assert!(tickets.expire(None).is_empty() && tickets.next_deadline().is_none());
        assert!(matches!(tickets.end(numbers[0]), Ended::Late));
        assert_eq!((tickets.count(), tickets.held()), (0, (0, 0)));
    }

    #[test]
    fn deadlines_of_what_has_ended_take_no_memory() {
        let mut tickets = Tickets::default();
        let deadline = Runtime::system().deadline(Duration::from_secs(1));
        let first = tickets.enter(operation(), None, deadline);
        for _ in 0..10 * FEW {
            let number = tickets.enter(operation(), None, deadline);
            assert!(tickets.withdraw(number).is_some());
        }
        assert!(tickets.deadlines.len() <= 2 * tickets.places.len() + FEW);
        assert!(tickets.get(first).is_some() && tickets.next_deadline() == Some(deadline));
    }
}
