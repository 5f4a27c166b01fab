//! What lies where in the memory that a node lends. The node alone decides; a master only proposes.
//!
//! Every range belongs to one *put*, a number that no master gives out twice. Two ranges never overlap, whatever masters
//! say: a range is free again only after its put was released and nothing under way touches it any more. A late
//! reader or writer names a put that is over and is refused, so numbers of puts are the epochs of ranges.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_master::{Holding, HoldingState};
use kvstored_transfer::Publication;

use super::record::Record;
use crate::wire::{Change, Changes, Listing, MAX_BODY_BYTES, MAX_KEYS};

/// Released puts that are remembered so that a token that arrives late is refused. Past that the overlap check alone
/// guards.
const REMEMBERED_RELEASES: usize = 65_536;

/// Bytes of keys in one message.
pub(super) const MESSAGE_KEY_BYTES: usize = MAX_BODY_BYTES - 32 - 3 * MAX_KEYS;

/// How far a put has come on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// May be written.
    Open,
    /// Complete, with a descriptor; never written again.
    Held,
    /// Released, with something still under way.
    Releasing,
}

/// One range.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it begins in the segment.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The object's whole key.
    pub key: Arc<[u8]>,
    /// CRC-64/NVME of the bytes, once held.
    pub checksum: u64,
    /// How far it is.
    pub phase: Phase,
    /// Users inside this process, who reach the memory without the engine.
    pub pins: u32,
    /// What peers' grants name, if a peer ever asked.
    pub publication: Option<Publication>,
}

/// All ranges of one segment.
#[derive(Debug)]
pub(crate) struct Ledger {
    segment_bytes: u64,
    entries: HashMap<u64, Entry>,
    by_offset: BTreeMap<u64, u64>,
    /// Complete objects.
    by_key: HashMap<Arc<[u8]>, u64>,
    released: HashSet<u64>,
    release_order: VecDeque<u64>,
    used_bytes: u64,
    highest_put: u64,
    record: Record,
}

impl Ledger {
    pub fn new(segment_bytes: u64) -> Self {
        Self {
            segment_bytes,
            entries: HashMap::new(),
            by_offset: BTreeMap::new(),
            by_key: HashMap::new(),
            released: HashSet::new(),
            release_order: VecDeque::new(),
            used_bytes: 0,
            highest_put: 0,
            record: Record::default(),
        }
    }

    /// Bytes of all ranges.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn get(&self, put: u64) -> Option<&Entry> {
        self.entries.get(&put)
    }

    pub fn get_mut(&mut self, put: u64) -> Option<&mut Entry> {
        self.entries.get_mut(&put)
    }

    /// Opens a range for writing. Asking again for the same range of the same put is fine.
    ///
    /// Fails with `InvalidInput` outside the segment, with `Fenced` when the put was released, and with `Busy` when
    /// another put's range lies there still.
    pub fn open(&mut self, put: u64, offset: u64, length: u64, key: &[u8]) -> Result<()> {
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.segment_bytes && length > 0);
        let Some(end) = end else {
            return Err(Error::invalid(format!(
                "bytes {offset}+{length} are outside the segment's {} bytes",
                self.segment_bytes
            )));
        };
        if self.released.contains(&put) {
            return Err(fenced(put));
        }
        self.highest_put = self.highest_put.max(put);
        if let Some(entry) = self.entries.get(&put) {
            let same = (entry.offset, entry.length) == (offset, length) && *entry.key == *key;
            return match entry.phase {
                Phase::Open if same => Ok(()),
                Phase::Open => Err(Error::invalid("the put is open with another range or key")),
                Phase::Held | Phase::Releasing => Err(fenced(put)),
            };
        }
        if let Some((_, other)) = self.by_offset.range(..end).next_back()
            && let Some(entry) = self.entries.get(other)
            && entry.offset + entry.length > offset
        {
            return Err(
                Error::new(ErrorKind::Busy, "another put's range lies there still")
                    .with("put", put)
                    .with("other", other),
            );
        }
        self.by_offset.insert(offset, put);
        self.used_bytes += length;
        self.entries.insert(
            put,
            Entry {
                offset,
                length,
                key: key.into(),
                checksum: 0,
                phase: Phase::Open,
                pins: 0,
                publication: None,
            },
        );
        Ok(())
    }

    /// The entry of an open put. Fails with `Fenced` for any other.
    pub fn open_entry(&mut self, put: u64) -> Result<&mut Entry> {
        self.entries
            .get_mut(&put)
            .filter(|entry| entry.phase == Phase::Open)
            .ok_or_else(|| fenced(put))
    }

    /// Makes an open put a complete object. Fails with `Fenced` when it was released meanwhile.
    pub fn hold(&mut self, put: u64, checksum: u64) -> Result<()> {
        let entry = self.open_entry(put)?;
        entry.checksum = checksum;
        entry.phase = Phase::Held;
        let key = entry.key.clone();
        self.record.push(Change {
            stored: true,
            key: (*key).into(),
        });
        self.by_key.insert(key, put);
        Ok(())
    }

    /// The complete object of that name: its put, and its bytes.
    pub fn find(&self, key: &[u8]) -> Option<(u64, u64)> {
        let put = *self.by_key.get(key)?;
        Some((put, self.entries.get(&put)?.length))
    }

    /// Objects that were removed aren't found by name any more, even before the master has them released.
    pub fn hide(&mut self, keys: &[&[u8]]) {
        for key in keys {
            self.by_key.remove(*key);
        }
    }

    /// No object is found by name any more.
    pub fn hide_all(&mut self) {
        self.by_key.clear();
    }

    /// What happened since that position in the record of changes.
    pub fn changes(&self, since: u64) -> Changes {
        self.record.since(since)
    }

    /// Complete objects behind that offset, as many as one message takes.
    pub fn list(&self, after: u64) -> Listing {
        let mut listing = Listing {
            keys: Vec::new(),
            next: u64::MAX,
        };
        let mut bytes = 0;
        // offsets are asked for from 0, so "behind" is one further than what was listed last
        for (offset, put) in self.by_offset.range(after..) {
            let Some(entry) = self.entries.get(put).filter(|entry| entry.phase == Phase::Held) else {
                continue;
            };
            if bytes + entry.key.len() > MESSAGE_KEY_BYTES || listing.keys.len() == MAX_KEYS {
                listing.next = *offset;
                break;
            }
            bytes += entry.key.len();
            listing.keys.push((*entry.key).into());
        }
        listing
    }

    /// The entry of a complete object, if it is the one that the caller means. Fails with `Fenced` otherwise.
    pub fn held_entry(&mut self, put: u64, key: &[u8]) -> Result<&mut Entry> {
        self.entries
            .get_mut(&put)
            .filter(|entry| entry.phase == Phase::Held && *entry.key == *key)
            .ok_or_else(|| fenced(put))
    }

    /// Marks a put as released: no new use starts. Returns whether anything is known of it; if not, its token is
    /// refused from now on.
    pub fn begin_release(&mut self, put: u64) -> bool {
        self.remember(put);
        self.highest_put = self.highest_put.max(put);
        match self.entries.get_mut(&put) {
            Some(entry) => {
                if entry.phase == Phase::Held {
                    if self.by_key.get(&entry.key) == Some(&put) {
                        self.by_key.remove(&entry.key);
                    }
                    self.record.push(Change {
                        stored: false,
                        key: (*entry.key).into(),
                    });
                }
                entry.phase = Phase::Releasing;
                true
            }
            None => false,
        }
    }

    /// Frees a released range that nobody uses any more. Returns whether it's gone.
    pub fn finish_release(&mut self, put: u64) -> bool {
        let Some(entry) = self.entries.get(&put) else {
            return true;
        };
        if entry.phase != Phase::Releasing || entry.pins > 0 || entry.publication.is_some() {
            return false;
        }
        self.by_offset.remove(&entry.offset);
        self.used_bytes -= entry.length;
        self.entries.remove(&put);
        true
    }

    /// The highest number of a put that was ever heard of.
    pub fn highest_put(&self) -> u64 {
        self.highest_put
    }

    /// Every range, for announcing it; in order of offsets.
    pub fn holdings(&self) -> Vec<Holding> {
        let all = self
            .by_offset
            .values()
            .filter_map(|put| Some((put, self.entries.get(put)?)));
        all.map(|(put, entry)| Holding {
            put: *put,
            offset: entry.offset,
            length: entry.length,
            key: (*entry.key).into(),
            checksum: entry.checksum,
            state: match entry.phase {
                Phase::Open => HoldingState::Open,
                Phase::Held => HoldingState::Sealed,
                Phase::Releasing => HoldingState::Releasing,
            },
        })
        .collect()
    }

    /// Puts whose release isn't complete.
    pub fn releasing(&self) -> Vec<u64> {
        let all = self.entries.iter();
        all.filter(|(_, entry)| entry.phase == Phase::Releasing)
            .map(|(put, _)| *put)
            .collect()
    }

    fn remember(&mut self, put: u64) {
        if self.released.insert(put) {
            self.release_order.push_back(put);
        }
        while self.release_order.len() > REMEMBERED_RELEASES {
            if let Some(oldest) = self.release_order.pop_front() {
                self.released.remove(&oldest);
            }
        }
    }
}

fn fenced(put: u64) -> Error {
    Error::new(ErrorKind::Fenced, "the put was released, or is not in that state").with("put", put)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_is_reused_only_after_its_release_is_complete() {
        let mut ledger = Ledger::new(1000);
        ledger.open(1, 0, 600, b"a").unwrap();
        assert_eq!(ledger.open(2, 599, 10, b"b").unwrap_err().kind(), ErrorKind::Busy);
        ledger.get_mut(1).unwrap().pins = 1;
        assert!(ledger.begin_release(1));
        assert!(!ledger.finish_release(1));
        assert_eq!(ledger.open(2, 0, 10, b"b").unwrap_err().kind(), ErrorKind::Busy);
        ledger.get_mut(1).unwrap().pins = 0;
        assert!(ledger.finish_release(1));
        ledger.open(2, 0, 10, b"b").unwrap();
        assert_eq!(ledger.used_bytes(), 10);
    }

    #[test]
    fn a_token_that_was_revoked_before_it_arrived_is_refused() {
        let mut ledger = Ledger::new(1000);
        assert!(!ledger.begin_release(7));
        assert_eq!(ledger.open(7, 0, 10, b"a").unwrap_err().kind(), ErrorKind::Fenced);
    }

    #[test]
    fn only_the_object_that_was_asked_for_is_found() {
        let mut ledger = Ledger::new(1000);
        ledger.open(1, 0, 10, b"a").unwrap();
        assert_eq!(ledger.held_entry(1, b"a").unwrap_err().kind(), ErrorKind::Fenced);
        ledger.hold(1, 0).unwrap();
        assert!(ledger.held_entry(1, b"a").is_ok());
        assert_eq!(ledger.held_entry(1, b"b").unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(ledger.find(b"a"), Some((1, 10)));
        assert_eq!(ledger.open_entry(1).unwrap_err().kind(), ErrorKind::Fenced);
        ledger.begin_release(1);
        assert_eq!(ledger.find(b"a"), None);
        assert_eq!(ledger.held_entry(1, b"a").unwrap_err().kind(), ErrorKind::Fenced);
    }

    #[test]
    fn ranges_near_the_end_of_numbers_are_refused() {
        let mut ledger = Ledger::new(1000);
        for (offset, length) in [
            (0, 0),
            (1000, 1),
            (1, 1000),
            (u64::MAX, 1),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            let error = ledger.open(1, offset, length, b"a").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{offset}+{length}");
        }
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in proptest::collection::vec((0u64..40, 0u64..100, 1u64..30, any::<bool>()), 1..200)) {
            let mut ledger = Ledger::new(100);
            for (put, offset, length, open) in steps {
                if open {
                    let _ = ledger.open(put, offset, length, b"k");
                } else {
                    ledger.begin_release(put);
                    ledger.finish_release(put);
                }
                let mut end = 0;
                let mut used = 0;
                for (at, put) in &ledger.by_offset {
                    let entry = ledger.get(*put).unwrap();
                    prop_assert_eq!(entry.offset, *at);
                    prop_assert!(*at >= end && at + entry.length <= 100);
                    end = at + entry.length;
                    used += entry.length;
                }
                prop_assert_eq!(used, ledger.used_bytes());
                prop_assert_eq!(ledger.by_offset.len(), ledger.len());
            }
        }
    }
}
