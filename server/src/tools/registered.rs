//! A buffer that a transfer engine may move bytes from and to, as an engine's KV cache is registered.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, Result, Runtime};
use kvstored_transfer::{Region, TransferEngine};

use super::buffer::Buffer;

/// How long whatever still touches the memory gets to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Registered memory. It's given back when the registration has ended, and never if that can't be had.
pub struct Registered {
    region: Region,
    buffer: Option<Buffer>,
    engine: Arc<TransferEngine>,
    runtime: Runtime,
}

impl Registered {
    /// Registers a buffer.
    pub fn new(buffer: Buffer, engine: &Arc<TransferEngine>, runtime: &Runtime) -> Result<Self> {
        // SAFETY: the buffer is owned from here on, nobody has a reference to its bytes, and it's dropped only after
        // `unregister` has returned `Ok`.
        let region = unsafe { engine.register(buffer.address() as *mut u8, buffer.len()) }?;
        Ok(Self {
            region,
            buffer: Some(buffer),
            engine: engine.clone(),
            runtime: runtime.clone(),
        })
    }

    /// The engine's name for it.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Copies bytes in, while no transfer touches them. Fails with `InvalidInput` past the end.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<()> {
        let target = self.place(offset, source.len())?;
        // SAFETY: `place` checked that the bytes lie in the buffer, which lives as long as this; nobody has a reference to
        // them.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target, source.len()) };
        Ok(())
    }

    /// Copies bytes out, while no transfer touches them. Fails with `InvalidInput` past the end.
    pub fn read(&self, offset: usize, destination: &mut [u8]) -> Result<()> {
        let source = self.place(offset, destination.len())?;
        // SAFETY: as for writing.
        unsafe { std::ptr::copy_nonoverlapping(source, destination.as_mut_ptr(), destination.len()) };
        Ok(())
    }

    fn place(&self, offset: usize, length: usize) -> Result<*mut u8> {
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.region.length());
        if end.is_none() {
            let bytes = self.region.length();
            return Err(Error::invalid(format!("{length} bytes at {offset} of {bytes}")));
        }
        // SAFETY: within the mapping, or at its end.
        Ok(unsafe { self.region.address().add(offset) })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let deadline = self.runtime.deadline(PATIENCE);
        if let Err(error) = self.engine.unregister(self.region.id(), deadline) {
            tracing::warn!(%error, "registered memory is kept until the process ends");
            std::mem::forget(self.buffer.take());
        }
    }
}
