//! A peer's side.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use kvstored_core::Result;

use super::attachment::wake_all;
use super::layout;
use super::protocol::{self, PeerSide};
use crate::memory::{PeerMemory, Sharing};

/// An owner's control page, as a peer has it. When the last handle and the last [`InFlight`] have gone, the
/// owner is told that the peer is done.
#[derive(Debug)]
pub struct PeerControl {
    epochs: PeerMemory,
    counts: PeerMemory,
    slots: u32,
}

struct Slot<'a> {
    epoch: &'a AtomicU64,
    count: &'a AtomicU32,
}

impl PeerSide for Slot<'_> {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn count_in(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn count_out(&self) {
        self.count.fetch_sub(1, Ordering::Release);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn wake(&self) {
        wake_all(self.count);
    }
}

impl PeerControl {
    /// Maps the files that the owner passed.
    ///
    /// Fails with `PermissionDenied` for files that can be shrunk, with `Mismatch` for something else than a
    /// control page of so many slots, and with `InvalidInput` for files that are too short and for too many
    /// slots.
    pub fn map(epochs: OwnedFd, counts: OwnedFd, slots: u32) -> Result<Arc<Self>> {
        let epochs = PeerMemory::map(epochs, layout::length(slots, 8)? as u64, Sharing::ReadOnly)?;
        let counts = PeerMemory::map(counts, layout::length(slots, 4)? as u64, Sharing::ReadWrite)?;
        layout::check_header(epochs.mapping(), layout::EPOCHS, slots)?;
        layout::check_header(counts.mapping(), layout::COUNTS, slots)?;
        Ok(Arc::new(Self {
            epochs,
            counts,
            slots,
        }))
    }

    fn slot(&self, slot: u32) -> Option<Slot<'_>> {
        if slot >= self.slots {
            return None;
        }
        Some(Slot {
            epoch: layout::epoch(self.epochs.mapping(), slot)?,
            count: layout::count(self.counts.mapping(), slot)?,
        })
    }

    /// Counts an operation in at a slot, if its epoch is still this one. While what it returns lives, the
    /// owner doesn't reuse the range. `None` when the owner has taken the range back, and for a slot that
    /// doesn't exist.
    pub fn enter(self: &Arc<Self>, slot: u32, epoch: u64) -> Option<InFlight> {
        protocol::enter(&self.slot(slot)?, epoch).then(|| InFlight {
            control: self.clone(),
            slot,
            epoch,
        })
    }
}

impl Drop for PeerControl {
    fn drop(&mut self) {
        if let Some(word) = layout::closed(self.counts.mapping()) {
            word.store(1, Ordering::Release);
        }
    }
}

/// An operation that is counted in. Counted out when dropped, by whichever thread.
#[derive(Debug)]
pub struct InFlight {
    control: Arc<PeerControl>,
    slot: u32,
    epoch: u64,
}

impl InFlight {
    /// Whether the owner is taking the range back, and waits for this to go. Long operations should look now
    /// and then.
    pub fn is_fenced(&self) -> bool {
        let slot = self.control.slot(self.slot);
        slot.is_none_or(|slot| slot.epoch() != self.epoch)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(slot) = self.control.slot(self.slot) {
            protocol::leave(&slot, self.epoch);
        }
    }
}
