//! Reading and writing the memory of a peer that isn't shared: `process_vm_readv` and `process_vm_writev`.
//!
//! The kernel lets a process do that to another of the same user, unless a security module (Yama) or a
//! container forbids it: [`ForeignMemory::probe`] finds out. Whether an address may be touched at all is for
//! the peer to say, through its control page. The kernel takes processes by their number; that it's still the
//! same process is checked before each call and, for reads, after it, so bytes of another process that got
//! the number are never returned. A write leaves a gap of the length of one call, in which the peer would
//! have to die, be reaped, and its number come round again.
#![allow(unsafe_code)]

use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};
use rustix::io::Errno;

use crate::process::PeerProcess;

/// Bytes that one call moves, so that whoever waits for the end of a long transfer isn't kept for long.
const MOST_BYTES: usize = 1 << 20;
/// Pieces that one call takes; the kernel allows 1,024.
const MOST_PIECES: usize = 64;

/// A run of bytes here, and its counterpart in the peer's memory.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Address in this process.
    pub local: *mut u8,
    /// Address in the peer's.
    pub remote: u64,
    /// Bytes.
    pub length: usize,
}

/// The memory of a peer's process.
#[derive(Clone, Debug)]
pub struct ForeignMemory {
    process: Arc<PeerProcess>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

impl ForeignMemory {
    /// Touches nothing yet.
    pub fn new(process: Arc<PeerProcess>) -> Self {
        Self { process }
    }

    /// The process.
    pub fn process(&self) -> &Arc<PeerProcess> {
        &self.process
    }

    /// Whether the peer's memory can be read: compares what is at an address that the peer told with what it
    /// said is there.
    ///
    /// Fails with `PermissionDenied` where the kernel forbids it, and with `Mismatch` where something else is
    /// there.
    pub fn probe(&self, remote: u64, expected: [u8; 16]) -> Result<()> {
        let mut found = [0; 16];
        let piece = Piece {
            local: found.as_mut_ptr(),
            remote,
            length: found.len(),
        };
        // SAFETY: the array is ours, and nobody else touches it.
        unsafe { self.read(&[piece], || true) }?;
        if found == expected {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Mismatch,
                "the peer's memory holds something else",
            ))
        }
    }

    /// Copies from the peer's memory. `goes_on` is asked before each MiB at the latest.
    ///
    /// Fails with `Fenced` when it says no, with `NotFound` where the peer has no memory at an address, with
    /// `PermissionDenied` where the kernel forbids it, and with `Unavailable` when the process has exited.
    /// Some of the bytes may have been copied then.
    ///
    /// # Safety
    /// The local ranges must be valid for writes, and nothing may hold references to them.
    pub unsafe fn read(&self, pieces: &[Piece], goes_on: impl FnMut() -> bool) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.run(Direction::Read, pieces, goes_on) }
    }

    /// Copies to the peer's memory. Otherwise as [`ForeignMemory::read`].
    ///
    /// # Safety
    /// The local ranges must be valid for reads. What the bytes do to the peer is for the peer to allow.
    pub unsafe fn write(&self, pieces: &[Piece], goes_on: impl FnMut() -> bool) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.run(Direction::Write, pieces, goes_on) }
    }

    unsafe fn run(
        &self,
        direction: Direction,
        pieces: &[Piece],
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<()> {
        let mut rest = Rest::new(pieces)?;
        loop {
            let (local, remote) = rest.next();
            if local.is_empty() {
                return Ok(());
            }
            if !goes_on() {
                return Err(Error::new(ErrorKind::Fenced, "the peer takes its memory back"));
            }
            self.check_alive()?;
            // SAFETY: the caller promises the local ranges; the kernel checks the remote ones.
            let moved = unsafe { call(direction, self.process.pid(), &local, &remote) };
            if direction == Direction::Read {
                self.check_alive()?;
            }
            match moved {
                Ok(0) => return Err(Error::new(ErrorKind::NotFound, "the peer's memory ends there")),
                Ok(moved) => rest.advance(moved),
                Err(Errno::INTR) => {}
                Err(Errno::FAULT) => {
                    return Err(Error::new(ErrorKind::NotFound, "the peer has no memory there"));
                }
                Err(errno) => return Err(crate::time::os(errno, "a peer's memory can't be accessed")),
            }
        }
    }

    fn check_alive(&self) -> Result<()> {
        if self.process.has_exited() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the peer's process has exited",
            ));
        }
        Ok(())
    }
}

/// What is left of a list of pieces.
struct Rest<'a> {
    pieces: &'a [Piece],
    /// Bytes of the first piece that are done.
    done: usize,
}

impl<'a> Rest<'a> {
    /// Fails with `InvalidInput` for pieces past the end of an address space.
    fn new(pieces: &'a [Piece]) -> Result<Self> {
        for piece in pieces {
            let remote = usize::try_from(piece.remote)
                .ok()
                .and_then(|start| start.checked_add(piece.length));
            if remote.is_none() || piece.local.addr().checked_add(piece.length).is_none() {
                return Err(Error::invalid(format!(
                    "{} bytes at a peer's {:#x}",
                    piece.length, piece.remote
                )));
            }
        }
        let mut rest = Self { pieces, done: 0 };
        rest.advance(0);
        Ok(rest)
    }

    /// What the next call moves.
    fn next(&self) -> (Vec<libc::iovec>, Vec<libc::iovec>) {
        let (mut local, mut remote) = (Vec::new(), Vec::new());
        let (mut room, mut done) = (MOST_BYTES, self.done);
        for piece in self.pieces.iter().take(MOST_PIECES) {
            let length = (piece.length - done).min(room);
            if length > 0 {
                local.push(libc::iovec {
                    iov_base: piece.local.wrapping_add(done).cast(),
                    iov_len: length,
                });
                remote.push(libc::iovec {
                    // an address of another process: only a number here
                    iov_base: std::ptr::without_provenance_mut(piece.remote as usize + done),
                    iov_len: length,
                });
            }
            room -= length;
            done = 0;
            if room == 0 {
                break;
            }
        }
        (local, remote)
    }

    fn advance(&mut self, mut moved: usize) {
        while let Some((piece, rest)) = self.pieces.split_first() {
            let left = piece.length - self.done;
            if moved < left {
                self.done += moved;
                return;
            }
            moved -= left;
            self.done = 0;
            self.pieces = rest;
        }
    }
}

/// One call of the kernel; the number of bytes that it moved, which may be fewer than asked.
///
/// # Safety
/// The local ranges must be valid for the direction.
unsafe fn call(
    direction: Direction,
    pid: i32,
    local: &[libc::iovec],
    remote: &[libc::iovec],
) -> Result<usize, Errno> {
    let (here, there) = (local.as_ptr(), remote.as_ptr());
    let (here_count, there_count) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
    // SAFETY: the lists are as long as told; the kernel reads them, checks the remote ranges, and moves bytes
    // between those and the local ranges, which the caller vouches for.
    let moved = unsafe {
        match direction {
            Direction::Read => libc::process_vm_readv(pid, here, here_count, there, there_count, 0),
            Direction::Write => libc::process_vm_writev(pid, here, here_count, there, there_count, 0),
        }
    };
    usize::try_from(moved).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}
