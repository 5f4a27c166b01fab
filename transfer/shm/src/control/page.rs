//! The owner's side.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Instant;

use kvstored_core::runtime::Clock;
use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::attachment::{Attachment, AttachmentId};
use super::protocol::{self, OwnerSide};
use super::{MAX_SLOTS, layout};
use crate::memory::{SharedMemory, Sharing};
use crate::process::{PeerProcess, ProcessState};

/// Peers at one control page.
pub const MAX_ATTACHMENTS: usize = 4096;

/// What a peer needs, besides [`ControlPage::descriptor`] and the number of slots, for
/// [`super::PeerControl::map`].
#[derive(Debug)]
pub struct Attached {
    /// Names the peer at the owner's.
    pub id: AttachmentId,
    /// The file of its counts, for this peer alone.
    pub counts: OwnedFd,
}

/// Slots that ranges of the owner's memory are published under, and the peers that may use them.
pub struct ControlPage {
    epochs: SharedMemory,
    slots: u32,
    clock: Arc<dyn Clock>,
    free: Mutex<Free>,
    attachments: Mutex<Vec<Arc<Attachment>>>,
    next: AtomicU64,
}

/// Slots that nothing is published under.
#[derive(Debug, Default)]
struct Free {
    /// From here on none was ever claimed.
    fresh: u32,
    given_back: Vec<u32>,
}

struct Slot<'a>(&'a AtomicU64);

impl OwnerSide for Slot<'_> {
    fn bump(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Release).wrapping_add(1)
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl ControlPage {
    /// A page of `slots` slots, all at epoch 0, without peers. Memory is taken as slots are used: 8 bytes for
    /// each, and 4 for each and peer.
    ///
    /// Fails with `InvalidInput` for no slots or more than [`MAX_SLOTS`], and with `NoSpace`.
    pub fn new(slots: u32, clock: Arc<dyn Clock>) -> Result<Self> {
        let epochs = SharedMemory::new("kvstored-epochs", layout::length(slots, 8)?, Sharing::ReadOnly)?;
        layout::write_header(epochs.mapping(), layout::EPOCHS, slots)?;
        Ok(Self {
            epochs,
            slots,
            clock,
            free: Mutex::default(),
            attachments: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The file of the epochs, to be passed to peers; they can only read it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.epochs.descriptor()
    }

    fn slot(&self, slot: u32) -> Result<&AtomicU64> {
        let found = (slot < self.slots).then(|| layout::epoch(self.epochs.mapping(), slot));
        found
            .flatten()
            .ok_or_else(|| Error::invalid(format!("slot {slot} of {}", self.slots)))
    }

    /// Takes a slot that nothing is published under, and tells its epoch. Fails with `Busy` when there is
    /// none.
    pub fn claim(&self) -> Result<(u32, u64)> {
        let mut free = self.free.lock();
        let slot = match free.given_back.pop() {
            Some(slot) => slot,
            None if free.fresh < self.slots => {
                free.fresh += 1;
                free.fresh - 1
            }
            None => {
                return Err(Error::new(ErrorKind::Busy, "all slots are taken").with("slots", self.slots));
            }
        };
        Ok((slot, self.slot(slot)?.load(Ordering::Relaxed)))
    }

    /// Gives a claimed slot back: advances it once more, so that nobody gets in who was told its epoch.
    ///
    /// Fails with `Busy`, and keeps it claimed, while a peer is counted in. The caller has claimed it.
    pub fn give_back(&self, slot: u32) -> Result<()> {
        self.advance(slot)?;
        if self.in_flight(slot)? > 0 {
            return Err(Error::new(ErrorKind::Busy, "a peer is at work on the slot").with("slot", slot));
        }
        self.free.lock().given_back.push(slot);
        Ok(())
    }

    /// The slot's epoch. Fails with `InvalidInput` for a slot that doesn't exist, as all of these do.
    pub fn epoch(&self, slot: u32) -> Result<u64> {
        Ok(self.slot(slot)?.load(Ordering::Acquire))
    }

    /// Shuts the slot for whoever was told its epoch until now, and returns the new one. Peers that are
    /// counted in go on: [`ControlPage::wait_idle`] waits for them.
    pub fn advance(&self, slot: u32) -> Result<u64> {
        Ok(protocol::advance(&Slot(self.slot(slot)?)))
    }

    /// How many operations peers have under way at the slot, or say that they have.
    pub fn in_flight(&self, slot: u32) -> Result<u64> {
        self.slot(slot)?;
        let attachments = self.attachments.lock();
        Ok(attachments.iter().map(|peer| u64::from(peer.count(slot))).sum())
    }

    /// Waits until no peer has anything under way at the slot. After [`ControlPage::advance`] that is for
    /// good, and the range published under it may be reused.
    ///
    /// Fails with `Busy` when a peer still has at the deadline, e.g. because it's stopped: the range must not
    /// be reused. A peer whose process has exited has nothing under way.
    pub fn wait_idle(&self, slot: u32, deadline: Instant) -> Result<()> {
        self.slot(slot)?;
        // a peer that attaches later reads the epoch later, and doesn't get in
        let busy: Vec<_> = {
            let attachments = self.attachments.lock();
            let busy = attachments.iter().filter(|peer| peer.count(slot) > 0);
            busy.cloned().collect()
        };
        for peer in busy {
            if !peer.wait_idle(slot, &*self.clock, deadline) {
                let doing = match peer.process.state() {
                    ProcessState::Stopped => "a stopped peer is still counted in",
                    ProcessState::Running | ProcessState::Exited => "a peer is still counted in",
                };
                return Err(Error::new(ErrorKind::Busy, doing)
                    .with("slot", slot)
                    .with("pid", peer.process.pid()));
            }
        }
        Ok(())
    }

    /// Lets a peer in, with counts of its own. Fails with `Busy` for more than [`MAX_ATTACHMENTS`], and with
    /// `NoSpace`.
    pub fn attach(&self, process: Arc<PeerProcess>) -> Result<Attached> {
        if self.attachments.lock().len() >= MAX_ATTACHMENTS {
            self.reap();
        }
        let counts = SharedMemory::new(
            "kvstored-counts",
            layout::length(self.slots, 4)?,
            Sharing::ReadWrite,
        )?;
        layout::write_header(counts.mapping(), layout::COUNTS, self.slots)?;
        let (mapping, file) = counts.into_parts();
        let id = AttachmentId(self.next.fetch_add(1, Ordering::Relaxed));
        let attachment = Attachment::new(id, process, mapping, self.slots);
        let mut attachments = self.attachments.lock();
        if attachments.len() >= MAX_ATTACHMENTS {
            return Err(Error::new(ErrorKind::Busy, "too many peers share this memory"));
        }
        attachments.push(Arc::new(attachment));
        Ok(Attached { id, counts: file })
    }

    /// Forgets a peer whose process has exited: its counts are gone, and whoever waits for them wakes. To be
    /// called when its pidfd tells; otherwise waiting threads find out by themselves, a little later. An
    /// unknown peer is fine.
    ///
    /// Fails with `Busy` while the process lives, since it may touch memory at any time.
    pub fn reset(&self, id: AttachmentId) -> Result<()> {
        let found = {
            let attachments = self.attachments.lock();
            attachments.iter().find(|peer| peer.id == id).cloned()
        };
        let Some(peer) = found else { return Ok(()) };
        if !peer.has_exited() {
            return Err(
                Error::new(ErrorKind::Busy, "the peer's process lives").with("pid", peer.process.pid())
            );
        }
        self.attachments.lock().retain(|other| other.id != id);
        Ok(())
    }

    /// Forgets all peers whose process has exited, and those that are done ([`super::PeerControl`] dropped)
    /// and counted in nowhere. Returns how many. To be called when a connection to a peer ends.
    pub fn reap(&self) -> usize {
        let attachments = self.attachments.lock().clone();
        let is_gone = |peer: &Arc<Attachment>| peer.has_exited() || peer.is_closed();
        let gone: Vec<_> = attachments.into_iter().filter(is_gone).collect();
        let mut attachments = self.attachments.lock();
        attachments.retain(|peer| !gone.iter().any(|other| other.id == peer.id));
        gone.len()
    }

    /// How many peers there are.
    pub fn attached(&self) -> usize {
        self.attachments.lock().len()
    }
}

impl std::fmt::Debug for ControlPage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        debug_assert!(self.slots <= MAX_SLOTS);
        formatter
            .debug_struct("ControlPage")
            .field("slots", &self.slots)
            .field("attached", &self.attached())
            .finish_non_exhaustive()
    }
}
