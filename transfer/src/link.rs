//! What a way to a peer must be able to do.

use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{ErrorKind, Result};

use crate::grant::Grant;
use crate::memory::RegionState;
use crate::settings::TransportKind;
use crate::transfer::{TransferKind, TransferState};
use crate::wire::MAX_PAYLOAD_BYTES;

/// An entry whose local side was checked.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub region: Arc<RegionState>,
    pub local_offset: u64,
    pub grant: Grant,
    pub remote_offset: u64,
    pub length: u64,
}

impl Entry {
    /// How many operations it takes.
    pub fn operations(&self) -> usize {
        self.length.div_ceil(MAX_PAYLOAD_BYTES) as usize
    }

    /// The operations it takes, each as an entry of its own.
    pub fn pieces(&self) -> impl Iterator<Item = Self> + '_ {
        (0..self.length.div_ceil(MAX_PAYLOAD_BYTES)).map(|index| {
            let done = index * MAX_PAYLOAD_BYTES;
            Self {
                region: self.region.clone(),
                local_offset: self.local_offset + done,
                grant: self.grant,
                remote_offset: self.remote_offset + done,
                length: (self.length - done).min(MAX_PAYLOAD_BYTES),
            }
        })
    }
}

/// A way to one peer. Methods are called from any thread.
pub(crate) trait Link: Send + Sync {
    /// Which transport it is.
    fn transport(&self) -> TransportKind;

    /// Whether it computes checksums of the bytes that it moves when a transfer asks for them.
    fn sums(&self) -> bool {
        false
    }

    /// The peer said what a grant is worth to this transport.
    fn foretold(&self, _grant: &Grant, _worth: &[u8]) {}

    /// Whether it still works.
    fn is_alive(&self) -> bool;

    /// Takes all operations of a transfer over, or none of them and fails (`Busy`, `Unavailable`). From then on each is
    /// finished exactly once, whatever happens.
    fn submit(&self, transfer: &Arc<TransferState>, kind: TransferKind, entries: &[Entry]) -> Result<()>;

    /// Does what can be done for a transfer without waiting.
    fn poll(&self, transfer: &Arc<TransferState>);

    /// Works or sleeps until the transfer is over or the deadline has passed.
    fn wait(&self, transfer: &Arc<TransferState>, deadline: Instant);

    /// Finishes every operation of the transfer that isn't, with that kind of error. No local memory is touched by it
    /// any more when this returns.
    fn cancel(&self, transfer: &Arc<TransferState>, kind: ErrorKind);

    /// Ends the link; what is under way fails with `Unavailable`.
    fn close(&self);
}
