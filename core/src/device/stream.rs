//! Streams that own what they were given until they have passed it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{CopyBatch, Device, Event, RawEvent, RawStream};
use crate::error::Result;

/// How long a stream that goes away may take for what it still has.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a stream may still touch, with the number of the call that gave it.
#[derive(Default)]
struct Held {
    calls: u64,
    memory: Vec<(u64, Vec<Arc<dyn Any + Send + Sync>>)>,
}

/// A queue of a device that runs in order.
///
/// Memory of batches is held until a synchronization shows that the stream has passed them. A stream that goes away while
/// it doesn't answer leaves that memory allocated for ever: better lost than written to under its next owner.
pub struct Stream {
    device: Arc<dyn Device>,
    raw: RawStream,
    held: Mutex<Held>,
}

impl Stream {
    /// A new stream.
    pub fn create(device: &Arc<dyn Device>) -> Result<Self> {
        let raw = device
            .create_stream()
            .map_err(|error| error.with("device", device.name()))?;
        Ok(Self {
            device: device.clone(),
            raw,
            held: Mutex::default(),
        })
    }

    /// The handle, for the engine.
    pub fn raw(&self) -> RawStream {
        self.raw
    }

    /// The device that it's of.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Hands a batch over and returns; it fails as [`Device::copy`] does. Nothing may use what it writes before the
    /// stream is synchronized.
    pub fn copy(&self, batch: CopyBatch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut held = self.held.lock();
        // SAFETY: the stream is ours; ranges were checked when they were added, or vouched for, and what they lie in is
        // held until the stream has passed them.
        let outcome = unsafe { self.device.copy(self.raw, batch.direction(), batch.copies()) };
        // after an error some may be under way all the same
        held.keep(batch.into_held());
        outcome
    }

    /// Marks the stream's present end.
    pub fn record(&self, event: &Arc<Event>) -> Result<()> {
        self.held.lock().keep(vec![event.clone()]);
        // SAFETY: both are ours.
        unsafe { self.device.record_event(self.raw, event.raw()) }
    }

    /// Waits for an event of ours before what comes next, without a thread that waits.
    pub fn wait(&self, event: &Arc<Event>) -> Result<()> {
        self.held.lock().keep(vec![event.clone()]);
        // SAFETY: both are ours.
        unsafe { self.device.wait_event(self.raw, event.raw()) }
    }

    /// Waits for an event of the engine before what comes next.
    ///
    /// # Safety
    /// The event must be a live one of the device's runtime in this process, until the stream is synchronized.
    pub unsafe fn wait_raw(&self, event: RawEvent) -> Result<()> {
        // SAFETY: the stream is ours; the caller vouches for the event.
        unsafe { self.device.wait_event(self.raw, event) }
    }

    /// Waits until everything given by now is done, and lets go of its memory. Fails with `TimedOut`, and with what a copy
    /// failed with; then the memory is held on.
    pub fn synchronize(&self, timeout: Duration) -> Result<()> {
        let given = self.held.lock().calls;
        // SAFETY: the stream is ours.
        unsafe { self.device.synchronize_stream(self.raw, timeout) }?;
        let passed = self.held.lock().passed(given);
        drop(passed);
        Ok(())
    }

    /// Drops what the stream hasn't begun. Fails with `Unsupported` where the device can't.
    pub fn abort(&self) -> Result<()> {
        // SAFETY: the stream is ours.
        unsafe { self.device.abort_stream(self.raw) }
    }
}

impl Held {
    fn keep(&mut self, memory: Vec<Arc<dyn Any + Send + Sync>>) {
        self.calls += 1;
        self.memory.push((self.calls, memory));
    }

    /// Takes out what was given up to that call.
    fn passed(&mut self, call: u64) -> Vec<(u64, Vec<Arc<dyn Any + Send + Sync>>)> {
        let behind = self.memory.partition_point(|(number, _)| *number <= call);
        self.memory.drain(..behind).collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let held = self.held.get_mut();
        if !held.memory.is_empty() {
            // SAFETY: the stream is ours. Twice: the first may report a copy that failed, and is as good as passed then.
            let passed = unsafe {
                self.device.synchronize_stream(self.raw, FAREWELL).is_ok()
                    || self.device.synchronize_stream(self.raw, FAREWELL).is_ok()
            };
            if !passed {
                tracing::error!(
                    device = self.device.name(),
                    batches = held.memory.len(),
                    "stream given up with copies under way; their memory stays allocated"
                );
                // a stream that hangs would hang its end too
                std::mem::forget(std::mem::take(&mut held.memory));
                return;
            }
        }
        // SAFETY: the stream is ours and ended once.
        if let Err(error) = unsafe { self.device.destroy_stream(self.raw) } {
            tracing::warn!(device = self.device.name(), %error, "stream not destroyed");
        }
    }
}
