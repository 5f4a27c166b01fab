//! A node's latest changes, for those who keep an index of the pool.

use std::collections::VecDeque;

use super::ledger::MESSAGE_KEY_BYTES;
use crate::wire::{Change, Changes, MAX_KEYS};

/// Changes that are kept; who falls behind further lists anew.
const KEPT_CHANGES: usize = 65_536;

/// Which objects came and went, numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct Record {
    changes: VecDeque<Change>,
    last: u64,
}

impl Record {
    pub fn push(&mut self, change: Change) {
        if self.changes.len() >= KEPT_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
        self.last += 1;
    }

    /// The changes behind that number, as many as one message takes.
    pub fn since(&self, position: u64) -> Changes {
        let first = self.last - self.changes.len() as u64;
        // a number that was never given is of another life of the node
        if position < first || position > self.last {
            return Changes {
                lost: true,
                next: self.last,
                changes: Vec::new(),
            };
        }
        let mut bytes = 0;
        let behind = self.changes.iter().skip((position - first) as usize);
        let changes: Vec<Change> = behind
            .take(MAX_KEYS)
            .take_while(|change| {
                bytes += change.key.len();
                bytes <= MESSAGE_KEY_BYTES
            })
            .cloned()
            .collect();
        Changes {
            lost: false,
            next: position + changes.len() as u64,
            changes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(number: u32) -> Change {
        Change {
            stored: true,
            key: number.to_le_bytes().into(),
        }
    }

    #[test]
    fn changes_are_told_once_and_in_order() {
        let mut record = Record::default();
        for number in 0..10_000 {
            record.push(change(number));
        }
        let (mut position, mut seen) = (0, 0);
        loop {
            let part = record.since(position);
            assert!(!part.lost);
            if part.changes.is_empty() {
                break;
            }
            for found in part.changes {
                assert_eq!(found, change(seen));
                seen += 1;
            }
            position = part.next;
        }
        assert_eq!(seen, 10_000);
    }

    #[test]
    fn who_falls_behind_is_told_so() {
        let mut record = Record::default();
        for number in 0..(KEPT_CHANGES as u32 + 5) {
            record.push(change(number));
        }
        assert!(record.since(0).lost && record.since(4).lost);
        assert!(!record.since(5).lost);
        assert!(record.since(record.last + 1).lost, "of another life");
    }
}
