//! Events that end by themselves.

use std::sync::Arc;
use std::time::Duration;

use super::{Device, RawEvent};
use crate::error::Result;

/// A point of a stream that others may wait for.
pub struct Event {
    device: Arc<dyn Device>,
    raw: RawEvent,
}

impl Event {
    /// An event that isn't recorded.
    pub fn create(device: &Arc<dyn Device>) -> Result<Arc<Self>> {
        let raw = device
            .create_event()
            .map_err(|error| error.with("device", device.name()))?;
        Ok(Arc::new(Self {
            device: device.clone(),
            raw,
        }))
    }

    /// The handle, for the engine to wait for.
    pub fn raw(&self) -> RawEvent {
        self.raw
    }

    /// Whether its latest record has been reached.
    pub fn is_reached(&self) -> Result<bool> {
        // SAFETY: the event is ours and lives.
        unsafe { self.device.query_event(self.raw) }
    }

    /// Waits for its latest record. Fails with `TimedOut`.
    pub fn synchronize(&self, timeout: Duration) -> Result<()> {
        // SAFETY: the event is ours and lives.
        unsafe { self.device.synchronize_event(self.raw, timeout) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is ours and ended once; a stream that waits for it holds it.
        if let Err(error) = unsafe { self.device.destroy_event(self.raw) } {
            tracing::warn!(device = self.device.name(), %error, "event not destroyed");
        }
    }
}
