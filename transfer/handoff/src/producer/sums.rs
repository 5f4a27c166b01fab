//! Makes the checksums that consumers compare theirs with.

use std::sync::Arc;

use kvstored_core::checksum::Checksum;

use super::Producer;
use super::early::Early;
use crate::memory::{Heads, Memory};
use crate::wire::Item;

/// A hold whose checksums are to be made before they are asked for.
pub(super) struct EarlyJob {
    pub request: String,
    pub hold: u64,
}

/// What is read of a hold.
type Read = (Arc<[u32]>, Option<Arc<Early>>);

impl Producer {
    /// Makes those of one ticket, unless its hold has ended.
    pub(super) fn make_sums(&self, number: u64) {
        let Some(memory) = self.memory.get() else {
            return;
        };
        let (hold, items, request) = {
            let table = self.table.lock();
            let Some(ticket) = table.tickets.get(&number) else {
                return;
            };
            (ticket.hold, ticket.items.clone(), ticket.request.clone())
        };
        let Some((blocks, early)) = self.begin_reading(&request, hold) else {
            return;
        };
        let mut sums = Vec::with_capacity(items.len());
        for item in &items {
            if self.table.lock().hold_of(&request, hold).is_none() {
                // it ends, and waits for this to be over
                break;
            }
            let known = early.as_ref().and_then(|early| early.item(memory, &blocks, item));
            sums.push(known.unwrap_or_else(|| sum(memory, &blocks, item)));
        }
        if let Some(ticket) = self.table.lock().tickets.get_mut(&number) {
            ticket.sums = Some(sums);
        }
        self.end_reading(hold);
    }

    /// Makes those of a hold, until it ends.
    pub(super) fn make_early(&self, job: &EarlyJob) {
        let Some(memory) = self.memory.get() else {
            return;
        };
        let Some((blocks, early)) = self.begin_reading(&job.request, job.hold) else {
            return;
        };
        if let Some(early) = early {
            for piece in 0..early.pieces() {
                if self.table.lock().hold_of(&job.request, job.hold).is_none() {
                    break;
                }
                early.make(memory, &blocks, piece);
            }
        }
        self.end_reading(job.hold);
    }

    /// From now on the hold isn't released before the reading is over. None if it has ended.
    fn begin_reading(&self, request: &str, hold: u64) -> Option<Read> {
        let mut table = self.table.lock();
        let held = table.hold_of(request, hold)?;
        let read = (held.blocks.clone(), held.early.clone());
        *table.reading.entry(hold).or_default() += 1;
        Some(read)
    }

    fn end_reading(&self, hold: u64) {
        let mut table = self.table.lock();
        if let Some(count) = table.reading.get_mut(&hold) {
            *count -= 1;
            if *count == 0 {
                table.reading.remove(&hold);
            }
        }
        drop(table);
        self.changed.notify_all();
    }
}

/// That of one item.
fn sum(memory: &Memory, blocks: &[u32], item: &Item) -> u64 {
    let mut checksum = Checksum::new();
    let heads = Heads {
        first: u32::from(item.first_head),
        count: u32::from(item.heads),
    };
    let range = item.first as usize..(item.first as usize + item.blocks as usize);
    // items were checked when the ticket was given out
    if let Some(piece) = memory.pieces.get(item.piece as usize) {
        for block in blocks.get(range).unwrap_or_default() {
            piece.sum(*block, heads, &mut checksum);
        }
    }
    checksum.value()
}
