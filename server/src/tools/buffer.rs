//! Memory that stands for an engine's KV cache: page-aligned, in huge pages where there are any.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use kvstored_client::{
    Client, DumpRequest, LoadOrder, LoadRequest, NamespaceHandle, Task, TaskReport, TensorAddress,
};
use kvstored_core::runtime::Clock;
use kvstored_core::{BlockHash, Durability, Error, ErrorKind, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A private mapping, aligned to 2 MiB, zeroed and faulted in.
pub struct Buffer {
    mapping: NonNull<c_void>,
    mapping_bytes: usize,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the buffer alone and is accessed through its borrows only.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Maps `bytes` (at least one) and touches every page, so that no later access pays for a fault.
    pub fn new(bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1);
        let mapping_bytes = bytes
            .checked_next_multiple_of(HUGE_PAGE_BYTES)
            .and_then(|rounded| rounded.checked_add(HUGE_PAGE_BYTES))
            .ok_or_else(|| Error::invalid(format!("a buffer of {bytes} bytes can't exist")))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh anonymous mapping touches no existing memory.
        let address = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapping_bytes,
                protection,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|errno| Error::from_io(errno.into(), format!("can't map a buffer of {bytes} bytes")))?;
        let mapping = NonNull::new(address).ok_or_else(|| Error::internal("mmap returned null"))?;
        let skipped = address
            .cast::<u8>()
            .align_offset(HUGE_PAGE_BYTES)
            .min(HUGE_PAGE_BYTES);
        // SAFETY: the mapping is longer by one huge page than what is used of it.
        let start = unsafe { mapping.cast::<u8>().add(skipped) };
        let mut buffer = Self {
            mapping,
            mapping_bytes,
            start,
            bytes,
        };
        // SAFETY: advice about our own fresh mapping; where the kernel declines, small pages serve as well.
        let advised = unsafe { madvise(address, mapping_bytes, Advice::LinuxHugepage) };
        if let Err(error) = advised {
            tracing::debug!(%error, "no huge pages for a buffer");
        }
        buffer.as_mut_slice().fill(0);
        Ok(buffer)
    }

    /// Usable bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none; never so.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The whole buffer.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped, initialised (zeroed by the kernel) and borrowed from the buffer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The whole buffer, to write to.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }
}

/// A tensor's place in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Its bytes.
    pub bytes: u32,
}

/// What to move between a buffer and the store.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// A run of one prompt in prefix order.
    pub hashes: Vec<BlockHash>,
    /// Shards of each block.
    pub shards: Range<usize>,
    /// For each block, each shard of the range, each tensor of the shard.
    pub pieces: Vec<Piece>,
    /// When to give up.
    pub timeout: Duration,
}

impl Buffer {
    /// Loads blocks into the buffer and waits for the end.
    pub fn load(
        &mut self,
        client: &Client,
        namespace: &NamespaceHandle,
        transfer: Transfer,
    ) -> Result<TaskReport> {
        let timeout = transfer.timeout;
        let task = self.begin_load(client, namespace, transfer, LoadOrder::BlockMajor)?;
        self.finish(&task, timeout)
    }

    /// Loads blocks shard by shard, waiting for each shard in turn as an engine would that computes layer by
    /// layer. Says, besides, when the first shard was there.
    pub fn load_by_shard(
        &mut self,
        client: &Client,
        namespace: &NamespaceHandle,
        transfer: Transfer,
        clock: &dyn Clock,
    ) -> Result<(TaskReport, Option<Instant>)> {
        let (timeout, shards) = (transfer.timeout, transfer.shards.clone());
        let task = self.begin_load(client, namespace, transfer, LoadOrder::ShardMajor)?;
        let mut first = None;
        for shard in shards {
            if task.wait_shard(shard, timeout).is_err() {
                break;
            }
            first.get_or_insert_with(|| clock.now());
        }
        let report = self.finish(&task, timeout)?;
        Ok((report, first))
    }

    fn begin_load(
        &mut self,
        client: &Client,
        namespace: &NamespaceHandle,
        transfer: Transfer,
        order: LoadOrder,
    ) -> Result<Task> {
        let request = LoadRequest {
            tensors: self.addresses(&transfer.pieces)?,
            hashes: transfer.hashes,
            shards: transfer.shards,
            order,
            timeout: Some(transfer.timeout),
        };
        // SAFETY: every tensor lies in this buffer, which is borrowed exclusively until `finish` has seen the
        // task end or has given the memory up for good.
        unsafe { client.load(namespace, request) }
    }

    /// Dumps blocks from the buffer and waits until they are as safe as asked.
    pub fn dump(
        &mut self,
        client: &Client,
        namespace: &NamespaceHandle,
        transfer: Transfer,
        parent: Option<BlockHash>,
        durability: Durability,
    ) -> Result<TaskReport> {
        let timeout = transfer.timeout;
        let request = DumpRequest {
            tensors: self.addresses(&transfer.pieces)?,
            hashes: transfer.hashes,
            parent,
            durability,
            timeout: Some(timeout),
        };
        // SAFETY: as in `begin_load`.
        let task = unsafe { client.dump(namespace, request) }?;
        self.finish(&task, timeout)
    }

    fn addresses(&self, pieces: &[Piece]) -> Result<Vec<TensorAddress>> {
        let address = |piece: &Piece| match piece.offset.checked_add(piece.bytes as usize) {
            Some(end) if end <= self.bytes => Ok(TensorAddress {
                address: self.address() + piece.offset,
                bytes: piece.bytes,
            }),
            _ => Err(Error::internal(format!(
                "{piece:?} is outside a buffer of {} bytes",
                self.bytes
            ))),
        };
        pieces.iter().map(address).collect()
    }

    /// Waits for the end of a task that uses this buffer's memory. A task that doesn't even end when cancelled
    /// keeps the memory, and the buffer gets new one.
    fn finish(&mut self, task: &Task, timeout: Duration) -> Result<TaskReport> {
        const GRACE: Duration = Duration::from_secs(20);
        if let Ok(report) = task.wait(timeout.saturating_add(GRACE)) {
            return Ok(report);
        }
        task.cancel();
        if task.wait(GRACE).is_err() {
            match Self::new(self.bytes) {
                Ok(fresh) => std::mem::forget(std::mem::replace(self, fresh)),
                // without memory to go on with, and with a task that writes to what there is, only this is safe
                Err(_) => std::process::abort(),
            }
        }
        Err(Error::new(
            ErrorKind::TimedOut,
            format!("a task didn't end within {} s", timeout.as_secs()),
        ))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this address and length; all borrows have ended.
        if let Err(error) = unsafe { munmap(self.mapping.as_ptr(), self.mapping_bytes) } {
            tracing::warn!(%error, "buffer not unmapped");
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Buffer")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_writable_to_its_last_byte() {
        for bytes in [1, 4096, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 17] {
            let mut buffer = Buffer::new(bytes).unwrap();
            assert_eq!(buffer.len(), bytes);
            assert_eq!(buffer.address() % HUGE_PAGE_BYTES, 0);
            assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
            *buffer.as_mut_slice().last_mut().unwrap() = 7;
            assert_eq!(buffer.as_slice()[bytes - 1], 7);
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Buffer::new(usize::MAX).is_err());
        assert!(Buffer::new(usize::MAX / 4).is_err());
    }
}
