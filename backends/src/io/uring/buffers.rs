//! Arenas registered with the ring, so that the kernel needn't look up and pin their pages for every request.
//!
//! An arena is registered in chunks, each once as many bytes were moved through it as it has. By then its pages are
//! there: registering memory that was never touched would fault all of it in at once, for up to a second, with every
//! request waiting. The table holds the arena, so its memory outlives the registration; arenas that nobody else holds any more are dropped when another arena is
//! met. Whatever can't be registered is read and written the plain way.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use io_uring::Submitter;
use kvstored_core::Arena;

/// Bytes of a chunk: small enough that registering one is no long pause, large enough that few requests cross
/// a border. Tests have small chunks, so that their small arenas have borders.
const CHUNK_BYTES: usize = if cfg!(test) { 1 << 20 } else { 128 << 20 };

/// Bytes that are moved the plain way through a chunk before it's registered.
const WARMING_BYTES: usize = if cfg!(test) { 1 } else { CHUNK_BYTES };

/// Places in the ring's table of buffers.
const TABLE_ENTRIES: u16 = 4096;

struct RegisteredArena {
    arena: Arc<Arena>,
    /// Chunk number to place in the table.
    chunks: HashMap<usize, u16>,
    /// Bytes moved so far through chunks that aren't registered.
    warming: HashMap<usize, usize>,
}

/// The ring's table of buffers.
pub(super) struct RegisteredBuffers {
    /// By the arena's address, which is unique because the table holds the arena.
    arenas: HashMap<usize, RegisteredArena>,
    /// Places not taken; none at all where there's no table.
    free: Vec<u16>,
    /// The kernel takes no more memory for now.
    refused: bool,
    told: bool,
}

impl RegisteredBuffers {
    /// An empty table; one that stays empty if not wanted or refused.
    pub(super) fn new(submitter: &Submitter<'_>, wanted: bool) -> Self {
        let mut table = Self {
            arenas: HashMap::new(),
            free: Vec::new(),
            refused: false,
            told: false,
        };
        if wanted {
            match submitter.register_buffers_sparse(u32::from(TABLE_ENTRIES)) {
                Ok(()) => table.free = (0..TABLE_ENTRIES).rev().collect(),
                Err(error) => table.tell(&error),
            }
        }
        table
    }

    /// The place in the table of the chunk that holds the whole range, registering it if need be; `None` if the
    /// range has to go the plain way.
    pub(super) fn find(
        &mut self,
        submitter: &Submitter<'_>,
        arena: &Arc<Arena>,
        offset: usize,
        length: usize,
    ) -> Option<u16> {
        let chunk = offset / CHUNK_BYTES;
        if offset.checked_add(length.checked_sub(1)?)? / CHUNK_BYTES != chunk {
            return None;
        }
        let identity = Arc::as_ptr(arena) as usize;
        if !self.arenas.contains_key(&identity) {
            self.drop_unused(submitter);
        }
        if self.refused {
            return self.arenas.get(&identity)?.chunks.get(&chunk).copied();
        }
        let known = self.arenas.entry(identity).or_insert_with(|| RegisteredArena {
            arena: Arc::clone(arena),
            chunks: HashMap::new(),
            warming: HashMap::new(),
        });
        if let Some(place) = known.chunks.get(&chunk) {
            return Some(*place);
        }
        let moved = known.warming.entry(chunk).or_default();
        *moved += length;
        if *moved <= WARMING_BYTES {
            return None;
        }
        known.warming.remove(&chunk);
        let place = self.register(submitter, arena, chunk)?;
        self.arenas.get_mut(&identity)?.chunks.insert(chunk, place);
        Some(place)
    }

    fn register(&mut self, submitter: &Submitter<'_>, arena: &Arc<Arena>, chunk: usize) -> Option<u16> {
        let start = chunk.checked_mul(CHUNK_BYTES)?;
        // registering puts memory behind all of it
        let length = arena.claim(start.checked_add(CHUNK_BYTES)?).checked_sub(start)?;
        let base = arena.address(start, length).ok()?;
        let place = self.free.pop()?;
        match update(submitter, place, base, length) {
            Ok(()) => Some(place),
            Err(error) => {
                self.free.push(place);
                self.refused = true;
                self.tell(&error);
                None
            }
        }
    }

    fn tell(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(%error, "can't register memory with the kernel, going on without (is memlock low?)");
        }
    }

    /// Unregisters the arenas that only this table still holds. None of their bytes is in flight, because a
    /// request in flight holds its arena.
    fn drop_unused(&mut self, submitter: &Submitter<'_>) {
        let (free, refused) = (&mut self.free, &mut self.refused);
        self.arenas.retain(|_, known| {
            if Arc::strong_count(&known.arena) > 1 {
                return true;
            }
            known.chunks.retain(
                |_, place| match update(submitter, *place, std::ptr::null_mut(), 0) {
                    Ok(()) => {
                        free.push(*place);
                        *refused = false;
                        false
                    }
                    Err(error) => {
                        tracing::warn!(%error, "can't unregister memory");
                        true
                    }
                },
            );
            !known.chunks.is_empty()
        });
    }
}

/// Puts memory into a place of the table, or empties it with a null address.
fn update(submitter: &Submitter<'_>, place: u16, base: *mut u8, length: usize) -> io::Result<()> {
    let buffer = libc::iovec {
        iov_base: base.cast(),
        iov_len: length,
    };
    // SAFETY: the memory belongs to an arena that the table holds until the place is emptied or the ring is
    // gone (the table is dropped after the ring).
    unsafe { submitter.register_buffers_update(u32::from(place), &[buffer], None) }
}
