//! Memory that transfers touch: the segment that a node lends, and what clients register. Only raw copies, never a
//! reference, since peers may read and write the same bytes at any moment.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::checksum::Checksum;
use kvstored_core::{Error, ErrorKind, Result};
use kvstored_transfer::{Region, RegionId, TransferEngine};
use parking_lot::{Condvar, Mutex, RwLock};

/// A run of bytes in memory that this process registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Address of the first byte.
    pub address: usize,
    /// Bytes.
    pub length: usize,
}

impl Piece {
    /// Bytes of all pieces together. Fails with `InvalidInput` past the end of numbers.
    pub fn total(pieces: &[Piece]) -> Result<u64> {
        let add = |sum: u64, piece: &Piece| sum.checked_add(piece.length as u64);
        pieces
            .iter()
            .try_fold(0, add)
            .ok_or_else(|| Error::invalid("the pieces' lengths overflow"))
    }
}

/// A registered region and where it lies in this process.
pub(crate) struct Memory {
    region: Region,
    base: usize,
    length: usize,
    /// Calls that may touch it without the engine's knowledge.
    users: Mutex<usize>,
    unused: Condvar,
}

impl Memory {
    /// Takes a region over.
    pub fn new(region: Region) -> Self {
        Self {
            base: region.address() as usize,
            length: region.length(),
            region,
            users: Mutex::new(0),
            unused: Condvar::new(),
        }
    }

    /// The engine's name of it.
    pub fn id(&self) -> RegionId {
        self.region.id()
    }

    /// Bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// A range of it. Fails with `InvalidInput` outside.
    pub fn piece(&self, offset: u64, length: u64) -> Result<Piece> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length as u64 => Ok(Piece {
                address: self.base + offset as usize,
                length: length as usize,
            }),
            _ => Err(Error::invalid(format!(
                "bytes {offset}+{length} are outside a region of {} bytes",
                self.length
            ))),
        }
    }

    fn wait_unused(&self, deadline: Instant) -> Result<()> {
        let mut users = self.users.lock();
        while *users > 0 {
            if self.unused.wait_until(&mut users, deadline).timed_out() {
                return Err(Error::new(ErrorKind::Busy, "a call still uses the memory"));
            }
        }
        Ok(())
    }

    fn contains(&self, piece: Piece) -> bool {
        let end = piece.address.checked_add(piece.length);
        piece.address >= self.base && end.is_some_and(|end| end <= self.base + self.length)
    }
}

/// Keeps registered memory from being unregistered while a call uses it.
pub(crate) struct InUse {
    memory: Arc<Memory>,
}

impl InUse {
    fn new(memory: Arc<Memory>) -> Self {
        *memory.users.lock() += 1;
        Self { memory }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut users = self.memory.users.lock();
        *users -= 1;
        if *users == 0 {
            self.memory.unused.notify_all();
        }
    }
}

/// All memory that a client may put from and get into.
pub(crate) struct Registry {
    engine: Arc<TransferEngine>,
    by_address: RwLock<BTreeMap<usize, Arc<Memory>>>,
}

impl Registry {
    pub fn new(engine: Arc<TransferEngine>) -> Self {
        Self {
            engine,
            by_address: RwLock::default(),
        }
    }

    /// Registers memory of the caller's.
    ///
    /// # Safety
    /// The bytes must stay valid for reads and writes until [`Registry::unregister`] has returned `Ok`, and nothing
    /// may hold references to bytes that a get writes or a put reads meanwhile.
    pub unsafe fn register(&self, address: usize, length: usize) -> Result<()> {
        // SAFETY: the caller's promise is what the engine asks for.
        let region = unsafe { self.engine.register(address as *mut u8, length) }?;
        self.insert(Memory::new(region))
    }

    /// Allocates and registers memory; it's freed when it's unregistered.
    pub fn allocate(&self, length: usize) -> Result<Piece> {
        let memory = Memory::new(self.engine.allocate(length)?);
        let piece = memory.piece(0, length as u64)?;
        self.insert(memory)?;
        Ok(piece)
    }

    /// Takes memory in that its owner unregisters: the owner must outlive all use of this registry, or keep it from being
    /// used.
    pub fn adopt(&self, memory: Arc<Memory>) -> Result<()> {
        self.insert_shared(memory)
    }

    fn insert(&self, memory: Memory) -> Result<()> {
        self.insert_shared(Arc::new(memory))
    }

    fn insert_shared(&self, memory: Arc<Memory>) -> Result<()> {
        let mut all = self.by_address.write();
        let end = memory.base + memory.length;
        let overlaps = all
            .range(..end)
            .next_back()
            .is_some_and(|(_, other)| other.base + other.length > memory.base);
        if overlaps {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "the memory is registered already",
            ));
        }
        all.insert(memory.base, memory);
        Ok(())
    }

    /// Ends a registration; transfers under way are over when it returns.
    pub fn unregister(&self, address: usize, deadline: Instant) -> Result<()> {
        let found = self.by_address.write().remove(&address);
        let memory = found
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "no memory is registered at that address"))?;
        let ended = memory
            .wait_unused(deadline)
            .and_then(|()| self.engine.unregister(memory.id(), deadline));
        if ended.is_err() {
            // it can be tried again
            self.by_address.write().insert(address, memory);
        }
        ended
    }

    /// The region that a piece lies in, and where in it. Fails with `InvalidInput` when it isn't registered.
    pub fn locate(&self, piece: Piece) -> Result<(RegionId, u64)> {
        let all = self.by_address.read();
        let memory = Self::find(&all, piece)?;
        Ok((memory.id(), (piece.address - memory.base) as u64))
    }

    /// Checks that all pieces lie in registered memory, and keeps it registered as long as `uses` holds what is added to
    /// it.
    pub fn enter(&self, pieces: &[Piece], uses: &mut Vec<InUse>) -> Result<()> {
        let all = self.by_address.read();
        for piece in pieces {
            let memory = Self::find(&all, *piece)?;
            if !uses.iter().any(|used| Arc::ptr_eq(&used.memory, memory)) {
                uses.push(InUse::new(memory.clone()));
            }
        }
        Ok(())
    }

    fn find(all: &BTreeMap<usize, Arc<Memory>>, piece: Piece) -> Result<&Arc<Memory>> {
        let found = all.range(..=piece.address).next_back().map(|(_, memory)| memory);
        found.filter(|memory| memory.contains(piece)).ok_or_else(|| {
            Error::invalid("the memory is not registered")
                .with("address", piece.address)
                .with("length", piece.length)
        })
    }
}

/// Copies registered pieces into one run of memory, and returns the checksum of what was copied.
///
/// # Safety
/// `destination` must be as long as all pieces together, valid, written by nobody else, and apart from the pieces, which
/// must be valid.
pub(crate) unsafe fn gather(destination: Piece, pieces: &[Piece]) -> u64 {
    let mut checksum = Checksum::new();
    let mut at = destination.address;
    for piece in pieces {
        // SAFETY: the caller vouches for both sides; `at` stays within the destination as lengths add up to its.
        unsafe { checksum.copy_raw(at as *mut u8, piece.address as *const u8, piece.length) };
        at += piece.length;
    }
    checksum.value()
}

/// Copies one run of memory into registered pieces, and returns the checksum of what was copied.
///
/// # Safety
/// As for [`gather`], with the sides exchanged; the pieces together must not be longer than the source.
pub(crate) unsafe fn scatter(source: Piece, pieces: &[Piece]) -> u64 {
    let mut checksum = Checksum::new();
    let mut at = source.address;
    for piece in pieces {
        // SAFETY: as in `gather`.
        unsafe { checksum.copy_raw(piece.address as *mut u8, at as *const u8, piece.length) };
        at += piece.length;
    }
    checksum.value()
}

/// The checksum of bytes where they lie.
///
/// # Safety
/// The pieces must be valid for reads, and nobody may write them meanwhile.
pub(crate) unsafe fn checksum(pieces: &[Piece]) -> u64 {
    let mut checksum = Checksum::new();
    for piece in pieces {
        // SAFETY: the caller vouches for the range.
        checksum.update(unsafe { std::slice::from_raw_parts(piece.address as *const u8, piece.length) });
    }
    checksum.value()
}

/// The first `length` bytes of some pieces. Fails with `InvalidInput` when they are fewer.
pub(crate) fn first_bytes(pieces: &[Piece], length: u64) -> Result<Vec<Piece>> {
    let mut left = length;
    let mut taken = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if left == 0 {
            break;
        }
        let part = left.min(piece.length as u64);
        taken.push(Piece {
            address: piece.address,
            length: part as usize,
        });
        left -= part;
    }
    if left > 0 {
        return Err(Error::invalid(format!(
            "the buffers are {left} bytes shorter than the object"
        )));
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_pieces_are_gathered_and_scattered_again() {
        let source: Vec<u8> = (0..=255).collect();
        let mut middle = vec![0u8; 200];
        let mut target = vec![0u8; 200];
        let piece = |bytes: &[u8]| Piece {
            address: bytes.as_ptr() as usize,
            length: bytes.len(),
        };
        let whole = Piece {
            address: middle.as_mut_ptr() as usize,
            length: 200,
        };
        // SAFETY: all of it is memory of this function, and nothing else runs.
        let (first, second, third) = unsafe {
            let first = gather(whole, &[piece(&source[..50]), piece(&source[100..250])]);
            let second = scatter(whole, &[piece(&target[..120]), piece(&target[120..])]);
            (first, second, checksum(&[whole]))
        };
        assert_eq!((first, second), (second, third));
        assert_eq!(target[..50], source[..50]);
        assert_eq!(target[50..], source[100..250]);
        target.clear();
    }

    #[test]
    fn first_bytes_cut_the_last_piece() {
        let piece = |address, length| Piece { address, length };
        let cut = first_bytes(&[piece(10, 5), piece(100, 5), piece(200, 5)], 7).unwrap();
        assert_eq!(cut, [piece(10, 5), piece(100, 2)]);
        let error = first_bytes(&[piece(10, 5)], 6).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
