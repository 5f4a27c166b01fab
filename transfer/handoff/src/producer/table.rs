//! Which requests are held, which are being released, and which are gone.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::{EngineId, Publication};

use super::hold::Hold;
use crate::limits::{MAX_HELD, MAX_TOMBSTONES};
use crate::wire::Item;

/// Why a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// All ranks of the consumer said that they are done.
    Taken,
    /// Its lease ended.
    Expired,
    /// It was dropped.
    Dropped,
}

impl Reason {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Expired => "expired",
            Self::Dropped => "dropped",
        }
    }
}

/// A request whose blocks nobody reads any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The request.
    pub request: String,
    /// Why it ended.
    pub reason: Reason,
}

/// A hold that ended, as long as somebody may still read its blocks.
pub(super) struct Ending {
    pub number: u64,
    pub request: String,
    pub reason: Reason,
    pub blocks: usize,
    pub publications: Vec<Publication>,
}

/// Checksums that were asked for.
pub(super) struct Ticket {
    pub peer: EngineId,
    pub request: String,
    pub hold: u64,
    pub items: Vec<Item>,
    pub sums: Option<Vec<u64>>,
}

/// What is known of a request.
pub(super) enum Known<'a> {
    Held(&'a mut Hold),
    Gone,
    Not,
}

/// Holds that ended, by reason.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    pub taken: u64,
    pub expired: u64,
    pub dropped: u64,
}

/// All of it.
#[derive(Default)]
pub(super) struct Table {
    held: HashMap<String, Hold>,
    by_end: BTreeMap<(Instant, u64), String>,
    pub ending: Vec<Ending>,
    pub released: Vec<Released>,
    /// Requests that were released, and the number of their last end.
    tombs: HashMap<String, u64>,
    tomb_order: VecDeque<(u64, String)>,
    pub tickets: HashMap<u64, Ticket>,
    /// Checksums that are being made, by hold.
    pub reading: HashMap<u64, usize>,
    pub ended: Ended,
    next: u64,
    pub stopped: bool,
}

impl Table {
    /// A number that wasn't given out before.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Holds a request, as `make` has it from its number. Fails with `AlreadyExists`, and with `Busy` when there are too many.
    pub fn hold(
        &mut self,
        request: &str,
        lease_end: Instant,
        make: impl FnOnce(u64, Instant) -> Hold,
    ) -> Result<()> {
        if self.stopped {
            return Err(Error::new(ErrorKind::Cancelled, "the hand-off is closed"));
        }
        let ending = self.ending.iter().any(|ending| ending.request == request);
        if ending || self.held.contains_key(request) {
            return Err(
                Error::new(ErrorKind::AlreadyExists, "the request is held already").with("request", request),
            );
        }
        if self.held.len() + self.ending.len() + self.released.len() >= MAX_HELD {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{MAX_HELD} requests are held, or released and not taken"),
            ));
        }
        let number = self.number();
        self.tombs.remove(request);
        self.by_end.insert((lease_end, number), request.to_owned());
        self.held.insert(request.to_owned(), make(number, lease_end));
        Ok(())
    }

    /// A request that is computed still.
    pub fn announced(&mut self, request: &str) -> Option<&mut Hold> {
        self.held.get_mut(request).filter(|hold| hold.is_announced())
    }

    /// Gives a request another lease.
    pub fn renew(&mut self, request: &str, lease_end: Instant) {
        if let Some(hold) = self.held.get_mut(request) {
            self.by_end.remove(&(hold.lease_end, hold.number));
            hold.lease_end = lease_end;
            self.by_end.insert((lease_end, hold.number), request.to_owned());
        }
    }

    pub fn find(&mut self, request: &str) -> Known<'_> {
        match self.held.get_mut(request) {
            Some(hold) => Known::Held(hold),
            None if self.tombs.contains_key(request) => Known::Gone,
            None => Known::Not,
        }
    }

    /// Ends a hold: nothing is granted on its blocks any more. One that isn't held is only remembered as gone.
    pub fn end(&mut self, request: &str, reason: Reason) {
        self.bury(request);
        let Some(hold) = self.held.remove(request) else {
            return;
        };
        self.by_end.remove(&(hold.lease_end, hold.number));
        for ticket in &hold.tickets {
            self.tickets.remove(ticket);
        }
        match reason {
            Reason::Taken => self.ended.taken += 1,
            Reason::Expired => self.ended.expired += 1,
            Reason::Dropped => self.ended.dropped += 1,
        }
        self.ending.push(Ending {
            number: hold.number,
            request: request.to_owned(),
            reason,
            blocks: hold.blocks.len(),
            publications: hold.into_publications(),
        });
    }

    /// Ends all holds whose lease is over. When the next one is.
    pub fn expire(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let ((end, _), request) = self.by_end.first_key_value()?;
            if *end > now {
                return Some(*end);
            }
            let request = request.clone();
            self.end(&request, Reason::Expired);
        }
    }

    /// Ends all holds.
    pub fn end_all(&mut self) {
        let all: Vec<String> = self.held.keys().cloned().collect();
        for request in all {
            self.end(&request, Reason::Dropped);
        }
    }

    /// The hold of that number, if it's still the request's.
    pub fn hold_of(&self, request: &str, number: u64) -> Option<&Hold> {
        self.held.get(request).filter(|hold| hold.number == number)
    }

    /// Requests, blocks and publications that are held or being released.
    pub fn totals(&self) -> (u64, u64, u64) {
        let held = self.held.values();
        let (mut blocks, mut publications) = (0, 0);
        for hold in held {
            blocks += hold.blocks.len();
            publications += hold.publications();
        }
        for ending in &self.ending {
            blocks += ending.blocks;
            publications += ending.publications.len();
        }
        let requests = self.held.len() + self.ending.len();
        (requests as u64, blocks as u64, publications as u64)
    }

    fn bury(&mut self, request: &str) {
        if self.tombs.contains_key(request) {
            return;
        }
        let number = self.number();
        self.tombs.insert(request.to_owned(), number);
        self.tomb_order.push_back((number, request.to_owned()));
        while self.tomb_order.len() > MAX_TOMBSTONES {
            if let Some((number, oldest)) = self.tomb_order.pop_front()
                // the same request may have been held again since, and have ended again
                && self.tombs.get(&oldest) == Some(&number)
            {
                self.tombs.remove(&oldest);
            }
        }
    }
}
