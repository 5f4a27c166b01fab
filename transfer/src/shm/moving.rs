//! The copies between this process's registered memory and a peer's.
//!
//! Neither side's memory is ever referred to: it may change while it's copied. A [`Span`]'s guard keeps local memory valid,
//! a mapping keeps shared memory valid, and a peer's private memory is the kernel's to check.
#![allow(unsafe_code)]

use kvstored_core::checksum::Checksum;
use kvstored_core::{Error, ErrorKind, Result};
use kvstored_shm::copy::{Stores, copy_with};
use kvstored_shm::{ForeignMemory, PeerMemory, Sharing};

use crate::memory::Span;
use crate::transfer::TransferKind;

/// A region of a peer's, as this process reaches it.
#[derive(Debug)]
pub(super) enum PeerRegion {
    /// Its memory is mapped here.
    Shared(PeerMemory),
    /// The kernel copies from and to it.
    Private {
        memory: ForeignMemory,
        address: u64,
        length: u64,
    },
}

impl PeerRegion {
    /// Moves a span's bytes from or to `offset` of the region. `goes_on` is asked before each MiB; `stores` suits the whole
    /// transfer. Bytes that pass through this thread's hands are appended to `checksum`; the answer is whether they did.
    ///
    /// Fails with `InvalidInput` outside the region, with `Fenced` when it's not to go on, and as the kernel does.
    pub fn run(
        &self,
        kind: TransferKind,
        span: &Span,
        offset: u64,
        stores: Stores,
        checksum: Option<&mut Checksum>,
        goes_on: impl FnMut() -> bool,
    ) -> Result<bool> {
        let local = std::ptr::with_exposed_provenance_mut::<u8>(span.address());
        let length = span.length();
        match self {
            Self::Shared(memory) => {
                if kind == TransferKind::Write && memory.access() != Sharing::ReadWrite {
                    return Err(Error::new(
                        ErrorKind::PermissionDenied,
                        "the memory is shared for reading",
                    ));
                }
                let remote = memory.address(offset, length)?;
                let (to, from) = match kind {
                    TransferKind::Read => (local, remote),
                    TransferKind::Write => (remote, local),
                };
                // SAFETY: the span's guard keeps the local range valid, `address` has checked the mapped one, and whoever
                // registered memory has promised to hold no references to it.
                unsafe { copy_with(stores, to, from, length, checksum, goes_on) }.map(|()| true)
            }
            Self::Private {
                memory,
                address,
                length: whole,
            } => {
                let inside = offset.checked_add(length as u64).is_some_and(|end| end <= *whole);
                let remote = address.checked_add(offset).filter(|_| inside);
                let piece = kvstored_shm::foreign::Piece {
                    local,
                    remote: remote.ok_or_else(|| Error::invalid("the range is outside the peer's region"))?,
                    length,
                };
                match kind {
                    // SAFETY: the span's guard keeps the local range valid, and nothing refers to it.
                    TransferKind::Read => unsafe { memory.read(&[piece], goes_on) },
                    // SAFETY: as above; the peer's side has allowed the range.
                    TransferKind::Write => unsafe { memory.write(&[piece], goes_on) },
                }
                .map(|()| false)
            }
        }
    }
}
