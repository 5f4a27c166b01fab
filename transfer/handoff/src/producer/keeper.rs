//! The thread that ends leases and releases what ended.

use std::time::Duration;

use kvstored_core::ErrorKind;

use super::Producer;
use super::table::{Ending, Released};

/// How long a release of one publication may hold up those of others.
const RELEASE: Duration = Duration::from_millis(20);
/// After how long a release that failed is tried again.
const AGAIN: Duration = Duration::from_millis(50);

impl Producer {
    /// Until it's stopped.
    pub(super) fn keep(&self) {
        loop {
            let ending = {
                let mut table = self.table.lock();
                if table.stopped {
                    return;
                }
                let next = table.expire(self.runtime.clock.now());
                if table.ending.is_empty() {
                    self.idle.notify_all();
                    match next {
                        Some(next) => {
                            self.changed.wait_until(&mut table, next);
                        }
                        None => self.changed.wait(&mut table),
                    }
                    continue;
                }
                // they stay in the table until nobody reads their blocks
                let all = table.ending.iter();
                all.map(|ending| (ending.number, ending.publications.clone()))
                    .collect::<Vec<_>>()
            };
            let mut busy = false;
            for (number, publications) in ending {
                busy |= !self.release(number, &publications);
            }
            if busy {
                let mut table = self.table.lock();
                if !table.stopped {
                    let until = self.runtime.deadline(AGAIN);
                    self.changed.wait_until(&mut table, until);
                }
            }
        }
    }

    /// Releases what one hold published. Whether nobody reads its blocks any more.
    fn release(&self, number: u64, publications: &[kvstored_transfer::Publication]) -> bool {
        let mut left = Vec::new();
        for (index, publication) in publications.iter().enumerate() {
            match self
                .engine
                .release(publication.id(), self.runtime.deadline(RELEASE))
            {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::debug!(%error, "blocks can't be released yet");
                    left.extend_from_slice(publications.get(index..).unwrap_or_default());
                    break;
                }
            }
        }
        let mut table = self.table.lock();
        let Some(at) = table.ending.iter().position(|ending| ending.number == number) else {
            return true;
        };
        if !left.is_empty() || table.reading.contains_key(&number) {
            if let Some(ending) = table.ending.get_mut(at) {
                ending.publications = left;
            }
            return false;
        }
        let Ending { request, reason, .. } = table.ending.swap_remove(at);
        table.released.push(Released { request, reason });
        drop(table);
        self.freed.notify_all();
        true
    }
}
