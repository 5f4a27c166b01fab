//! The lent memory and every way to it: by grants over the engine, and directly for this process.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_master::TokenRange;
use kvstored_master::{Holding, Location, Mounted, NodeId, TokenKey};
use kvstored_transfer::TransferEngine;
use parking_lot::{Condvar, Mutex};

use super::ledger::{Ledger, Phase};
use super::{NodeStatistics, RELEASE_PATIENCE};
use crate::memory::{Memory, Piece, first_bytes, gather, scatter};
use crate::settings::NodeSettings;

/// How long closing waits for transfers under way.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// A complete object that isn't released as long as this lives.
pub(crate) struct Pinned {
    segment: Arc<Segment>,
    put: u64,
    /// Where its bytes are.
    pub pieces: [Piece; 1],
    /// CRC-64/NVME of them, as they were put.
    pub checksum: u64,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.segment.unpin(self.put);
    }
}

/// The memory that a node lends.
pub(crate) struct Segment {
    node: NodeId,
    pub(super) engine: Arc<TransferEngine>,
    pub(super) memory: Arc<Memory>,
    pub(super) ledger: Mutex<Ledger>,
    /// Signalled when the last pin of a range that is being released goes.
    unpinned: Condvar,
    /// The fencing epoch of the master that this node obeys.
    master_epoch: AtomicU64,
    fenced: AtomicU64,
    /// What tokens of puts are checked with.
    token_key: Mutex<Option<TokenKey>>,
    pub(super) grant: Duration,
    runtime: Runtime,
}

impl Segment {
    pub fn new(
        node: NodeId,
        settings: &NodeSettings,
        engine: Arc<TransferEngine>,
        runtime: Runtime,
    ) -> Result<Self> {
        let length = usize::try_from(settings.segment_bytes)
            .map_err(|_| Error::invalid(format!("a segment of {} bytes", settings.segment_bytes)))?;
        Ok(Self {
            node,
            memory: Arc::new(Memory::new(engine.allocate(length)?)),
            engine,
            ledger: Mutex::new(Ledger::new(settings.segment_bytes)),
            unpinned: Condvar::new(),
            master_epoch: AtomicU64::new(0),
            fenced: AtomicU64::new(0),
            token_key: Mutex::default(),
            grant: settings.grant,
            runtime,
        })
    }

    pub fn master_epoch(&self) -> u64 {
        self.master_epoch.load(Ordering::Acquire)
    }

    /// Obeys that master from now on. Fails with `Fenced` when a later one is obeyed already.
    pub fn obey(&self, epoch: u64) -> Result<()> {
        let before = self.master_epoch.fetch_max(epoch, Ordering::AcqRel);
        if before > epoch {
            return Err(Error::new(ErrorKind::Fenced, "a later master is obeyed already")
                .with("epoch", epoch)
                .with("obeyed", before));
        }
        Ok(())
    }

    /// Obeys the master that took the node, and tells what to announce to it. At one moment: a range is among the holdings,
    /// or opened by a token of the new master; an object is, or is sealed in the new master's name.
    pub fn obey_mounted(&self, mounted: &Mounted) -> Result<Vec<Holding>> {
        let ledger = self.ledger.lock();
        self.obey(mounted.epoch)?;
        *self.token_key.lock() = Some(mounted.token_key.clone());
        Ok(ledger.holdings())
    }

    pub fn highest_put(&self) -> u64 {
        self.ledger.lock().highest_put()
    }

    pub fn holdings(&self) -> Vec<Holding> {
        self.ledger.lock().holdings()
    }

    pub fn statistics(&self) -> NodeStatistics {
        let ledger = self.ledger.lock();
        NodeStatistics {
            segment_bytes: self.memory.length() as u64,
            used_bytes: ledger.used_bytes(),
            ranges: ledger.len() as u64,
            releasing: ledger.releasing().len() as u64,
            fenced: self.fenced.load(Ordering::Relaxed),
            master_epoch: self.master_epoch(),
        }
    }

    /// Writes an object from this process's own memory. The bytes are there, but not visible, when it returns their
    /// checksum.
    ///
    /// # Safety
    /// The pieces must be registered memory that nobody writes meanwhile.
    pub unsafe fn write_here(
        &self,
        put: u64,
        place: &Location,
        length: u64,
        key: &[u8],
        pieces: &[Piece],
    ) -> Result<u64> {
        if Piece::total(pieces)? != length {
            return Err(Error::invalid("the pieces aren't as long as the object"));
        }
        let offset = place.offset;
        let target = self.memory.piece(offset, length)?;
        {
            let mut ledger = self.ledger.lock();
            self.check_token(put, offset, length, key, &place.token)?;
            self.count(ledger.open(put, offset, length, key))?;
            ledger.open_entry(put)?.pins += 1;
        }
        // SAFETY: the range is this put's alone and stays so while it's pinned; the caller vouches for the pieces.
        let checksum = unsafe { gather(target, pieces) };
        self.unpin(put);
        Ok(checksum)
    }

    /// The complete object of that name: its put, and its bytes.
    pub fn find(&self, key: &[u8]) -> Option<(u64, u64)> {
        self.ledger.lock().find(key)
    }

    /// Which of the objects are here, complete.
    pub fn find_all(&self, keys: &[&[u8]], present: &mut [bool]) {
        let ledger = self.ledger.lock();
        for (key, present) in keys.iter().zip(present) {
            *present |= ledger.find(key).is_some();
        }
    }

    /// Objects that were removed aren't found by name any more.
    pub fn hide(&self, keys: &[&[u8]]) {
        self.ledger.lock().hide(keys);
    }

    /// No object is found by name any more.
    pub fn hide_all(&self) {
        self.ledger.lock().hide_all();
    }

    /// Reads an object into this process's own memory, and returns the checksums of what was read and of what was put.
    ///
    /// # Safety
    /// The pieces must be registered memory that nobody uses meanwhile.
    pub unsafe fn read_here(
        &self,
        put: u64,
        key: &[u8],
        length: u64,
        pieces: &[Piece],
    ) -> Result<(u64, u64)> {
        let pieces = first_bytes(pieces, length)?;
        let (source, expected) = {
            let mut ledger = self.ledger.lock();
            let entry = self.count(ledger.held_entry(put, key))?;
            if entry.length != length {
                return Err(Error::new(ErrorKind::Fenced, "the object has another length"));
            }
            entry.pins += 1;
            (self.memory.piece(entry.offset, length)?, entry.checksum)
        };
        // SAFETY: nobody writes a held range while it's pinned; the caller vouches for the pieces.
        let found = unsafe { scatter(source, &pieces) };
        self.unpin(put);
        Ok((found, expected))
    }

    /// Keeps a complete object's bytes where they are, for a copy of it: where they are, and their checksum. Fails with
    /// `Fenced` when it was released.
    pub fn pin(self: &Arc<Self>, put: u64, key: &[u8]) -> Result<Pinned> {
        let mut ledger = self.ledger.lock();
        let entry = self.count(ledger.held_entry(put, key))?;
        let (offset, length, checksum) = (entry.offset, entry.length, entry.checksum);
        let pieces = [self.memory.piece(offset, length)?];
        entry.pins += 1;
        Ok(Pinned {
            segment: self.clone(),
            put,
            pieces,
            checksum,
        })
    }

    /// Marks a put as complete and keeps its descriptor. From now on nobody can write there.
    ///
    /// Fails with `Fenced` when it was released meanwhile, and with `Busy` while a write is under way.
    pub fn seal(&self, put: u64, key: &[u8], checksum: u64) -> Result<()> {
        let publication = {
            let mut ledger = self.ledger.lock();
            if let Some(entry) = ledger.get(put)
                && entry.phase == Phase::Held
                && entry.checksum == checksum
                && *entry.key == *key
            {
                return Ok(());
            }
            let entry = self.count(ledger.open_entry(put))?;
            if *entry.key != *key {
                return Err(Error::invalid("the put is open with another key"));
            }
            entry.publication.take()
        };
        if let Some(publication) = publication
            && let Err(error) = self.engine.release(publication.id(), self.now())
        {
            // a write is under way still: the range stays open
            if let Some(entry) = self.ledger.lock().get_mut(put) {
                entry.publication = Some(publication);
            }
            return Err(Error::new(ErrorKind::Busy, "a write is under way").with("cause", error));
        }
        self.count(self.ledger.lock().hold(put, checksum))
    }

    /// Ends a put: nobody reads or writes its range under it any more. Returns whether the range is free, which it
    /// isn't while something under way touches it; then [`Segment::sweep`] tries again.
    pub fn release(&self, put: u64) -> bool {
        if !self.ledger.lock().begin_release(put) {
            return true;
        }
        self.try_finish(put, self.runtime.deadline(RELEASE_PATIENCE))
    }

    /// Tries again to free what was released. Returns the puts whose ranges are free now.
    pub fn sweep(&self) -> Vec<u64> {
        let waiting = self.ledger.lock().releasing();
        waiting
            .into_iter()
            .filter(|put| self.try_finish(*put, self.now()))
            .collect()
    }

    /// Whether some released range isn't free yet.
    pub fn is_releasing(&self) -> bool {
        !self.ledger.lock().releasing().is_empty()
    }

    /// Ends everything: all grants die. Closing again is fine.
    pub fn close(&self) {
        let deadline = self.runtime.deadline(CLOSE_PATIENCE);
        match self.engine.unregister(self.memory.id(), deadline) {
            Ok(()) => {}
            // an earlier call has ended it
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // the region's memory stays mapped as long as a transfer may touch it
            Err(error) => tracing::warn!(%error, "the lent memory is in use at shutdown"),
        }
    }

    pub(super) fn try_finish(&self, put: u64, deadline: Instant) -> bool {
        let publication = {
            let mut ledger = self.ledger.lock();
            match ledger.get_mut(put) {
                Some(entry) if entry.phase == Phase::Releasing => entry.publication.take(),
                Some(_) => return false,
                None => return true,
            }
        };
        if let Some(publication) = publication
            && self.engine.release(publication.id(), deadline).is_err()
        {
            if let Some(entry) = self.ledger.lock().get_mut(put) {
                entry.publication = Some(publication);
            }
            return false;
        }
        let mut ledger = self.ledger.lock();
        while ledger.get(put).is_some_and(|entry| entry.pins > 0) {
            if self.unpinned.wait_until(&mut ledger, deadline).timed_out() {
                return false;
            }
        }
        ledger.finish_release(put)
    }

    fn unpin(&self, put: u64) {
        let mut ledger = self.ledger.lock();
        if let Some(entry) = ledger.get_mut(put) {
            entry.pins = entry.pins.saturating_sub(1);
            if entry.phase == Phase::Releasing {
                self.unpinned.notify_all();
            }
        }
    }

    /// Whether the master that this node obeys gave that range to that put. Asked with the ledger locked, so that no other
    /// master is obeyed before the range is open.
    pub(super) fn check_token(
        &self,
        put: u64,
        offset: u64,
        length: u64,
        key: &[u8],
        token: &[u8],
    ) -> Result<()> {
        let range = TokenRange {
            node: &self.node,
            put,
            offset,
            length,
            key,
        };
        let checked = match &*self.token_key.lock() {
            Some(key) => key.verify(self.master_epoch(), &range, token),
            None => Err(Error::new(ErrorKind::Fenced, "no master has taken this node")),
        };
        self.count(checked)
    }

    pub(super) fn count<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.kind() == ErrorKind::Fenced
        {
            self.fenced.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    pub(super) fn now(&self) -> Instant {
        self.runtime.clock.now()
    }

    /// Flips a byte.
    #[cfg(test)]
    pub fn corrupt(&self, offset: u64) {
        let piece = self.memory.piece(offset, 1).unwrap();
        // SAFETY: a byte of the segment.
        unsafe { *(piece.address as *mut u8) ^= 1 };
    }
}
