//! Memory that peers may touch, by its address in this process.
#![allow(unsafe_code)]
//!
//! This is the one place of the engine that trusts addresses: whoever registers memory promises that it stays valid until it
//! has been unregistered, and that nobody uses bytes while a transfer writes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::{Region, RegionId, TransferEngine};
use parking_lot::RwLock;

/// Longest copy to and from Python's bytes.
const MOST_COPIED_BYTES: u64 = 1 << 32;

struct Range {
    region: Region,
    length: u64,
    /// The engine's own memory, which is freed when it's unregistered.
    managed: bool,
}

/// All registered ranges; none overlaps another.
pub struct Memory {
    engine: Arc<TransferEngine>,
    by_address: RwLock<BTreeMap<u64, Arc<Range>>>,
}

fn unregistered(address: u64) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("no memory is registered at {address:#x}"),
    )
}

impl Memory {
    pub fn new(engine: Arc<TransferEngine>) -> Self {
        Self {
            engine,
            by_address: RwLock::default(),
        }
    }

    /// Registers memory of the caller's. Fails with `AlreadyExists` where some of it is registered, and with `InvalidInput`
    /// for none.
    pub fn register(&self, address: u64, length: u64) -> Result<()> {
        let (Ok(start), Ok(bytes), Some(end)) = (
            usize::try_from(address),
            usize::try_from(length),
            address.checked_add(length),
        ) else {
            return Err(Error::invalid(format!(
                "memory of {length} bytes at {address:#x}"
            )));
        };
        let mut all = self.by_address.write();
        let before = all.range(..end).next_back();
        if before.is_some_and(|(start, range)| start + range.length > address) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("some of the {length} bytes at {address:#x} are registered already"),
            ));
        }
        // SAFETY: the caller in Python vouches for the memory until `unregister` has returned `Ok`.
        let region = unsafe { self.engine.register(start as *mut u8, bytes) }?;
        all.insert(
            address,
            Arc::new(Range {
                region,
                length,
                managed: false,
            }),
        );
        Ok(())
    }

    /// Memory of the engine's own.
    pub fn allocate(&self, length: u64) -> Result<u64> {
        let bytes =
            usize::try_from(length).map_err(|_| Error::invalid(format!("a buffer of {length} bytes")))?;
        let region = self.engine.allocate(bytes)?;
        let address = region.address() as u64;
        let range = Range {
            region,
            length,
            managed: true,
        };
        self.by_address.write().insert(address, Arc::new(range));
        Ok(address)
    }

    /// Ends a registration. Fails with `NotFound` where none begins at that address, and with `Busy` when the memory is still
    /// touched at the deadline.
    pub fn unregister(&self, address: u64, managed: bool, deadline: Instant) -> Result<()> {
        let found = self.by_address.read().get(&address).cloned();
        let range = found
            .filter(|range| range.managed == managed)
            .ok_or_else(|| unregistered(address))?;
        self.engine.unregister(range.region.id(), deadline)?;
        self.by_address.write().remove(&address);
        Ok(())
    }

    /// The range that holds all of these bytes, and where in it they begin. Fails with `InvalidInput` where none does.
    fn find(&self, address: u64, length: u64) -> Result<(Arc<Range>, u64)> {
        let all = self.by_address.read();
        let found = all.range(..=address).next_back();
        let (start, range) = found.ok_or_else(|| outside(address, length))?;
        let offset = address - start;
        match offset.checked_add(length) {
            Some(end) if end <= range.length => Ok((range.clone(), offset)),
            _ => Err(outside(address, length)),
        }
    }

    /// The engine's name of registered bytes. Fails with `InvalidInput` for others.
    pub fn locate(&self, address: u64, length: u64) -> Result<(RegionId, u64)> {
        self.find(address, length)
            .map(|(range, offset)| (range.region.id(), offset))
    }

    /// Copies registered bytes. Fails with `InvalidInput` for others.
    pub fn read(&self, address: u64, length: u64) -> Result<Vec<u8>> {
        if length > MOST_COPIED_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, format!("{length} bytes at once")));
        }
        let (_range, _) = self.find(address, length)?;
        let mut bytes = vec![0; length as usize];
        // SAFETY: the bytes are registered: the engine's own live as long as `_range`, and for others the caller in Python
        // vouches.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(bytes)
    }

    /// Overwrites registered bytes. Fails with `InvalidInput` for others.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let (_range, _) = self.find(address, bytes.len() as u64)?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }
}

fn outside(address: u64, length: u64) -> Error {
    Error::invalid(format!("the {length} bytes at {address:#x} are not registered"))
}
