//! Messages from peers, waiting to be taken.

use std::collections::VecDeque;

use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::identity::EngineId;

/// The longest notification.
pub const MAX_NOTIFICATION_BYTES: usize = 64 << 10;
/// Bytes of all that wait to be taken.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// A message from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Who sent it.
    pub peer: EngineId,
    /// What it says.
    pub payload: Vec<u8>,
}

#[derive(Debug, Default)]
struct Waiting {
    all: VecDeque<Notification>,
    bytes: usize,
}

/// Notifications in the order in which they came.
#[derive(Debug)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    most: usize,
}

impl Inbox {
    pub fn new(most: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            most,
        }
    }

    /// Fails with `Busy` when too many wait.
    pub fn push(&self, notification: Notification) -> Result<()> {
        let mut waiting = self.waiting.lock();
        let bytes = waiting.bytes + notification.payload.len();
        if waiting.all.len() >= self.most || bytes > MAX_WAITING_BYTES {
            return Err(Error::new(
                ErrorKind::Busy,
                "too many notifications wait to be taken",
            ));
        }
        waiting.bytes = bytes;
        waiting.all.push_back(notification);
        Ok(())
    }

    pub fn take(&self, most: usize) -> Vec<Notification> {
        let mut waiting = self.waiting.lock();
        let count = most.min(waiting.all.len());
        let taken: Vec<_> = waiting.all.drain(..count).collect();
        waiting.bytes -= taken.iter().map(|each| each.payload.len()).sum::<usize>();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_wait_than_fit() {
        let inbox = Inbox::new(2);
        let note = |byte| Notification {
            peer: EngineId::NOBODY,
            payload: vec![byte; 10],
        };
        inbox.push(note(1)).unwrap();
        inbox.push(note(2)).unwrap();
        assert_eq!(inbox.push(note(3)).unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(inbox.take(1), [note(1)]);
        inbox.push(note(3)).unwrap();
        assert_eq!(inbox.take(9), [note(2), note(3)]);
        assert!(inbox.take(9).is_empty());
    }
}
