//! Makes the checksums that consumers compare theirs with.

use kvstored_core::checksum::Checksum;

use super::Producer;
use crate::memory::Heads;

impl Producer {
    /// Makes those of one ticket, unless its hold has ended.
    pub(super) fn make_sums(&self, number: u64) {
        let Some(memory) = self.memory.get() else {
            return;
        };
        let (hold, blocks, items, request) = {
            let mut table = self.table.lock();
            let Some(ticket) = table.tickets.get(&number) else {
                return;
            };
            let (hold, items, request) = (ticket.hold, ticket.items.clone(), ticket.request.clone());
            let Some(blocks) = table.hold_of(&request, hold).map(|hold| hold.blocks.clone()) else {
                return;
            };
            // from now on the hold isn't released before this is over
            *table.reading.entry(hold).or_default() += 1;
            (hold, blocks, items, request)
        };
        let mut sums = Vec::with_capacity(items.len());
        for item in &items {
            if self.table.lock().hold_of(&request, hold).is_none() {
                // it ends, and waits for this to be over
                break;
            }
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
            sums.push(checksum.value());
        }
        let mut table = self.table.lock();
        if let Some(ticket) = table.tickets.get_mut(&number) {
            ticket.sums = Some(sums);
        }
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
