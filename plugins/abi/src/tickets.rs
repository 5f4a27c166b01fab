//! Operations that a plugin has or will get: who owns their buffers, until when, and whether they ended before.
//!
//! A ticket is a place in the table and the place's generation, so that a ticket that ended is never taken for a later
//! one. An operation that took too long has ended for its caller, but its place keeps the buffer until the plugin gives
//! it back: nothing else may use memory that somebody may still write to.
//!
//! Each place has a lock of its own, so that the threads that enter operations, hand them over and end them don't wait for
//! each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use kvstored_core::tier::Completion;
use kvstored_core::{Action, BlockHash, BlockKey, NamespaceInfo, Operation, SlotGuard};
use parking_lot::Mutex;

use crate::quota::Charge;

/// Places that are made together.
const CHUNK: usize = 64;

/// What is known of an operation.
pub(crate) struct Ticket {
    pub namespace: Arc<NamespaceInfo>,
    pub hash: BlockHash,
    pub action: Action,
    pub buffer: SlotGuard,
    /// What a write is charged for, where there are quotas.
    pub charge: Option<Box<Charge>>,
    /// `None` once its caller was told.
    pub completion: Option<Completion>,
    /// When it will have taken too long.
    pub deadline: Instant,
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

#[derive(Default)]
struct Place {
    generation: u32,
    ticket: Option<Ticket>,
}

#[derive(Default)]
struct Free {
    numbers: Vec<u32>,
    /// Places that were in use before.
    made: u32,
}

type Chunk = Box<[Mutex<Place>]>;

/// The table.
pub(crate) struct Tickets {
    chunks: Box<[OnceLock<Chunk>]>,
    free: Mutex<Free>,
    most: u32,
    held: AtomicU64,
    held_bytes: AtomicU64,
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

/// An operation that took too long: its buffer, its caller, and whether the plugin still has the buffer.
pub(crate) type Expired = (SlotGuard, Completion, bool);

impl Tickets {
    /// A table with room for so many.
    pub fn new(most: usize) -> Self {
        let most = most.clamp(1, u32::MAX as usize);
        Self {
            chunks: (0..most.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            free: Mutex::default(),
            most: most as u32,
            held: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
        }
    }

    /// Buffers of operations that took too long, and their bytes.
    pub fn held(&self) -> (u64, u64) {
        let value = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        (value(&self.held), value(&self.held_bytes))
    }

    /// Takes places for so many operations, or as many as there are. Those of operations that took too long aren't free.
    pub fn reserve(&self, count: usize) -> Vec<u32> {
        let mut free = self.free.lock();
        let known = free.numbers.len();
        let mut places = free.numbers.split_off(known - count.min(known));
        while places.len() < count && free.made < self.most {
            places.push(free.made);
            free.made += 1;
        }
        places
    }

    /// Gives places back that are not needed.
    pub fn give_back(&self, places: &[u32]) {
        if !places.is_empty() {
            self.free.lock().numbers.extend_from_slice(places);
        }
    }

    /// Enters an operation in a place that was taken for it.
    pub fn enter(
        &self,
        number: u32,
        operation: Operation,
        charge: Option<Box<Charge>>,
        deadline: Instant,
    ) -> u64 {
        let Some(place) = self.place(number) else {
            return u64::MAX;
        };
        let mut place = place.lock();
        place.generation = place.generation.wrapping_add(1);
        place.ticket = Some(Ticket {
            namespace: operation.namespace,
            hash: operation.hash,
            action: operation.action,
            buffer: operation.buffer,
            charge,
            completion: Some(operation.completion),
            deadline,
            lent: false,
            revoked: false,
        });
        u64::from(place.generation) << 32 | u64::from(number)
    }

    /// Looks at an operation that's in the table.
    pub fn with<R>(&self, ticket: u64, look: impl FnOnce(&mut Ticket) -> R) -> Option<R> {
        let mut place = self.place(ticket as u32)?.lock();
        Self::known(&mut place, ticket).map(look)
    }

    /// The plugin says that an operation has ended.
    pub fn end(&self, ticket: u64) -> Ended {
        // one that the plugin never got is none of its
        let Some(ended) = self.take_if(ticket, |known| known.lent) else {
            return Ended::Never;
        };
        if ended.completion.is_some() {
            return Ended::Now(ended);
        }
        self.held.fetch_sub(1, Ordering::AcqRel);
        self.held_bytes
            .fetch_sub(ended.buffer.length() as u64, Ordering::AcqRel);
        Ended::Late
    }

    /// Takes an operation back that the plugin hasn't got.
    pub fn withdraw(&self, ticket: u64) -> Option<(SlotGuard, Completion)> {
        let taken = self.take_if(ticket, |known| !known.lent)?;
        Some((taken.buffer, taken.completion?))
    }

    /// Takes the callers of operations that have taken too long by `now`, of all of them where it's `None`. The moment is
    /// the next at which one may have.
    pub fn expire(&self, now: Option<Instant>) -> (Vec<Expired>, Option<Instant>) {
        let mut expired = Vec::new();
        let mut next: Option<Instant> = None;
        let made = self.free.lock().made;
        for number in 0..made {
            let Some(place) = self.place(number) else { continue };
            let mut place = place.lock();
            let Some(known) = &mut place.ticket else { continue };
            if now.is_some_and(|now| known.deadline > now) {
                if known.completion.is_some() {
                    next = Some(next.map_or(known.deadline, |next| next.min(known.deadline)));
                }
                continue;
            }
            let Some(completion) = known.completion.take() else {
                continue;
            };
            let (buffer, lent) = (known.buffer.clone(), known.lent);
            if lent {
                self.held.fetch_add(1, Ordering::AcqRel);
                self.held_bytes
                    .fetch_add(buffer.length() as u64, Ordering::AcqRel);
            } else {
                place.ticket = None;
                self.free.lock().numbers.push(number);
            }
            expired.push((buffer, completion, lent));
        }
        (expired, next)
    }

    /// Marks writes under way whose blocks are to go.
    pub fn revoke(&self, chosen: impl Fn(&BlockKey) -> bool) {
        let made = self.free.lock().made;
        for place in (0..made).filter_map(|number| self.place(number)) {
            if let Some(ticket) = &mut place.lock().ticket
                && matches!(ticket.action, Action::Write(_))
                && chosen(&ticket.key())
            {
                ticket.revoked = true;
            }
        }
    }

    /// Takes an operation out of the table, if it's in it and as wanted.
    fn take_if(&self, ticket: u64, wanted: impl FnOnce(&Ticket) -> bool) -> Option<Ticket> {
        let number = ticket as u32;
        let taken = {
            let mut place = self.place(number)?.lock();
            if !Self::known(&mut place, ticket).is_some_and(|known| wanted(known)) {
                return None;
            }
            place.ticket.take()
        };
        self.free.lock().numbers.push(number);
        taken
    }

    fn known(place: &mut Place, ticket: u64) -> Option<&mut Ticket> {
        (place.generation == (ticket >> 32) as u32)
            .then_some(place.ticket.as_mut())
            .flatten()
    }

    fn place(&self, number: u32) -> Option<&Mutex<Place>> {
        let (chunk, place) = (number as usize / CHUNK, number as usize % CHUNK);
        let chunk = self.chunks.get(chunk)?;
        let places = chunk.get_or_init(|| (0..CHUNK).map(|_| Mutex::default()).collect());
        places.get(place)
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

    fn entered(tickets: &Tickets, deadline: Instant) -> u64 {
        let place = tickets.reserve(1)[0];
        tickets.enter(place, operation(), None, deadline)
    }

    fn lend(tickets: &Tickets, ticket: u64) {
        tickets.with(ticket, |known| known.lent = true).unwrap();
    }

    #[test]
    fn a_ticket_ends_once_and_only_after_it_was_lent() {
        let tickets = Tickets::new(4);
        let deadline = Runtime::system().deadline(Duration::from_secs(1));
        let number = entered(&tickets, deadline);
        assert!(matches!(tickets.end(number), Ended::Never));
        lend(&tickets, number);
        assert!(tickets.withdraw(number).is_none());
        assert!(matches!(tickets.end(number), Ended::Now(_)));
        assert!(matches!(tickets.end(number), Ended::Never));
        // the place has another ticket now
        let next = entered(&tickets, deadline);
        lend(&tickets, next);
        assert_eq!(next as u32, number as u32);
        assert!(next != number && matches!(tickets.end(number), Ended::Never));
        assert_eq!(tickets.reserve(8).len(), 3);
    }

    #[test]
    fn a_buffer_is_held_until_it_is_given_back() {
        let tickets = Tickets::new(2);
        let deadline = Runtime::system().deadline(Duration::ZERO);
        let numbers = [0, 1].map(|_| entered(&tickets, deadline));
        lend(&tickets, numbers[0]);
        let (expired, next) = tickets.expire(Some(deadline));
        assert_eq!((expired.len(), next), (2, None));
        // the place of the one that the plugin hasn't got is free
        assert_eq!(tickets.held().0, 1);
        let places = tickets.reserve(2);
        assert_eq!(places, [numbers[1] as u32]);
        tickets.give_back(&places);
        let (again, next) = tickets.expire(None);
        assert!(again.is_empty() && next.is_none());
        assert!(matches!(tickets.end(numbers[0]), Ended::Late));
        assert_eq!((tickets.reserve(3).len(), tickets.held()), (2, (0, 0)));
    }

    #[test]
    fn the_next_deadline_is_that_of_an_operation_whose_caller_waits() {
        let tickets = Tickets::new(2 * CHUNK);
        let runtime = Runtime::system();
        let [soon, later] = [1, 2].map(|seconds| runtime.deadline(Duration::from_secs(seconds)));
        let numbers: Vec<u64> = (0..=CHUNK).map(|_| entered(&tickets, later)).collect();
        let first = entered(&tickets, soon);
        assert_eq!(tickets.expire(Some(runtime.clock.now())).1, Some(soon));
        assert!(tickets.withdraw(first).is_some());
        assert_eq!(tickets.expire(Some(runtime.clock.now())).1, Some(later));
        for number in numbers {
            assert!(tickets.withdraw(number).is_some());
        }
        assert_eq!(tickets.expire(Some(runtime.clock.now())).1, None);
    }
}
