//! Registered memory through which bytes go that lie elsewhere.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_pool::{Piece, PoolClient};
use parking_lot::{Condvar, Mutex};

/// Parts of the buffer begin at multiples of this.
const ALIGNMENT: usize = 4096;
/// How long giving a buffer back may take.
const UNREGISTER: Duration = Duration::from_secs(30);

/// A buffer of the pool's client, lent out in parts.
pub struct Staging {
    client: Arc<PoolClient>,
    runtime: Runtime,
    whole: Option<Piece>,
    /// Free runs, by their offset.
    free: Mutex<BTreeMap<usize, usize>>,
    freed: Condvar,
}

impl Staging {
    /// A buffer of that many bytes; none at all serves too, with memory that's made for each use.
    pub fn new(client: Arc<PoolClient>, bytes: usize, runtime: Runtime) -> Result<Arc<Self>> {
        let whole = if bytes < ALIGNMENT {
            None
        } else {
            Some(client.allocate(bytes)?)
        };
        let free = whole
            .iter()
            .map(|piece| (0, piece.length / ALIGNMENT * ALIGNMENT))
            .collect();
        Ok(Arc::new(Self {
            client,
            runtime,
            whole,
            free: Mutex::new(free),
            freed: Condvar::new(),
        }))
    }

    /// Memory for that many bytes. Waits for others to give theirs back; more than all of the buffer is made anew. Fails with
    /// `Busy` at the deadline, and with `NoSpace`.
    pub fn take(self: &Arc<Self>, bytes: usize, deadline: Instant) -> Result<Staged> {
        let rounded = bytes.max(1).checked_next_multiple_of(ALIGNMENT);
        let rounded = rounded.ok_or_else(|| Error::invalid(format!("{bytes} bytes at once")))?;
        let Some(whole) = self
            .whole
            .filter(|whole| rounded <= whole.length / ALIGNMENT * ALIGNMENT)
        else {
            let piece = self.client.allocate(bytes.max(1))?;
            return Ok(Staged {
                staging: self.clone(),
                piece,
                part: None,
            });
        };
        let mut free = self.free.lock();
        loop {
            let found = free.iter().find(|(_, length)| **length >= rounded);
            if let Some((offset, length)) = found.map(|(offset, length)| (*offset, *length)) {
                free.remove(&offset);
                if length > rounded {
                    free.insert(offset + rounded, length - rounded);
                }
                let piece = Piece {
                    address: whole.address + offset,
                    length: bytes.max(1),
                };
                return Ok(Staged {
                    staging: self.clone(),
                    piece,
                    part: Some((offset, rounded)),
                });
            }
            if self.freed.wait_until(&mut free, deadline).timed_out() {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("the local buffer of {} bytes is in use", whole.length),
                ));
            }
        }
    }

    fn give_back(&self, (offset, length): (usize, usize)) {
        let mut free = self.free.lock();
        let (mut offset, mut length) = (offset, length);
        if let Some((before, size)) = free.range(..offset).next_back().map(|(at, size)| (*at, *size))
            && before + size == offset
        {
            free.remove(&before);
            (offset, length) = (before, size + length);
        }
        if let Some(size) = free.remove(&(offset + length)) {
            length += size;
        }
        free.insert(offset, length);
        self.freed.notify_all();
    }
}

/// Memory that was taken; given back when dropped.
pub struct Staged {
    staging: Arc<Staging>,
    piece: Piece,
    /// Where it lies in the buffer; `None` for memory of its own.
    part: Option<(usize, usize)>,
}

impl Staged {
    /// A run of it.
    pub fn piece(&self, offset: usize, length: usize) -> Piece {
        debug_assert!(offset + length <= self.piece.length);
        Piece {
            address: self.piece.address + offset,
            length,
        }
    }

    /// Copies bytes of the caller's in. The caller in Python vouches for the address, and for the length that the run has.
    pub fn copy_in(&self, offset: usize, source: Piece) {
        let target = self.piece(offset, source.length);
        // SAFETY: the target was taken by this alone, and Python's caller vouches for the source.
        unsafe {
            std::ptr::copy_nonoverlapping(
                source.address as *const u8,
                target.address as *mut u8,
                target.length,
            );
        };
    }

    /// Copies bytes out to memory of the caller's, who vouches for it.
    pub fn copy_out(&self, offset: usize, target: Piece) {
        let source = self.piece(offset, target.length);
        // SAFETY: as in `copy_in`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                source.address as *const u8,
                target.address as *mut u8,
                target.length,
            );
        };
    }

    /// Copies bytes out to a slice of that length.
    pub fn read(&self, offset: usize, target: &mut [u8]) {
        let target = Piece {
            address: target.as_mut_ptr() as usize,
            length: target.len(),
        };
        self.copy_out(offset, target);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(part) = self.part {
            self.staging.give_back(part);
            return;
        }
        let deadline = self.staging.runtime.deadline(UNREGISTER);
        if let Err(error) = self.staging.client.unregister(self.piece.address, deadline) {
            // freed with the client at the latest
            tracing::warn!(%error, "a buffer is not given back");
        }
    }
}
