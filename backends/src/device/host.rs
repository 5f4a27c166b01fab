//! The host device: plain memory, and a thread for each stream. What it can't do is share memory with processes.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstored_core::device::{
    Copy, CopyBatch, DeviceAddress, DeviceCounts, Direction, HostAddress, MemoryUsage, RawEvent, RawStream,
};
use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Arena, Device, Error, ErrorKind, Result, Runtime};
use parking_lot::Mutex;

use super::event::HostEvent;
use super::stream::{HostStream, Task};
use crate::cache::map_arena;

/// Most streams and most events at once.
const MOST_HANDLES: usize = 4096;

/// Settings of the host device. Plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostDeviceSettings {
    /// Bytes that may be allocated.
    pub memory_bytes: u64,
    /// Whether to ask for huge pages.
    pub huge_pages: bool,
}

impl Default for HostDeviceSettings {
    fn default() -> Self {
        Self {
            memory_bytes: u64::MAX,
            huge_pages: true,
        }
    }
}

/// Allocations by their address.
#[derive(Default)]
struct Memory {
    allocations: BTreeMap<u64, Arc<Arena>>,
    used_bytes: u64,
}

impl Memory {
    /// The allocation that a range lies in.
    fn find(&self, address: u64, bytes: u64) -> Result<&Arc<Arena>> {
        let below = self.allocations.range(..=address).next_back();
        below
            .filter(|(base, arena)| {
                let end = address.checked_add(bytes);
                end.is_some_and(|end| end <= *base + arena.length() as u64)
            })
            .map(|(_, arena)| arena)
            .ok_or_else(|| Error::invalid(format!("{bytes} bytes at {address:#x} are not the device's")))
    }
}

struct Worker {
    stream: Arc<HostStream>,
    thread: ThreadHandle,
}

/// An event of somebody else's work.
pub struct EngineEvent {
    raw: RawEvent,
    event: Arc<HostEvent>,
    record: u64,
}

impl EngineEvent {
    /// The handle that streams wait with.
    pub fn raw(&self) -> RawEvent {
        self.raw
    }

    /// The work is done.
    pub fn reach(&self) {
        self.event.reach(self.record);
    }
}

/// Host memory that stands for a device.
pub struct HostDevice {
    settings: HostDeviceSettings,
    runtime: Runtime,
    memory: Mutex<Memory>,
    streams: Mutex<HashMap<u64, Worker>>,
    events: Mutex<HashMap<u64, Arc<HostEvent>>>,
    handles: AtomicU64,
    batch_calls: AtomicU64,
    copies: AtomicU64,
    copied_bytes: AtomicU64,
}

impl HostDevice {
    /// A device with nothing allocated.
    pub fn new(settings: HostDeviceSettings, runtime: Runtime) -> Arc<Self> {
        Arc::new(Self {
            settings,
            runtime,
            memory: Mutex::default(),
            streams: Mutex::default(),
            events: Mutex::default(),
            handles: AtomicU64::new(1),
            batch_calls: AtomicU64::new(0),
            copies: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
        })
    }

    /// An event that is recorded and not reached before it's told so: what an engine's event is to us.
    pub fn engine_event(&self) -> Result<EngineEvent> {
        let raw = self.create_event()?;
        let event = self.event(raw)?;
        let record = event.record();
        Ok(EngineEvent { raw, event, record })
    }

    fn handle(&self, kind: &str, present: usize) -> Result<u64> {
        if present >= MOST_HANDLES {
            return Err(Error::new(ErrorKind::Busy, format!("{present} {kind} are there")));
        }
        Ok(self.handles.fetch_add(1, Ordering::Relaxed))
    }

    fn stream(&self, raw: RawStream) -> Result<Arc<HostStream>> {
        let streams = self.streams.lock();
        let worker = streams.get(&raw.0);
        worker
            .map(|worker| worker.stream.clone())
            .ok_or_else(|| Error::invalid(format!("stream {} is none of the host device's", raw.0)))
    }

    fn event(&self, raw: RawEvent) -> Result<Arc<HostEvent>> {
        let events = self.events.lock();
        events
            .get(&raw.0)
            .cloned()
            .ok_or_else(|| Error::invalid(format!("event {} is none of the host device's", raw.0)))
    }

    /// The allocations that a batch touches, each once. Fails with `InvalidInput` for a range outside of all.
    fn touched(&self, direction: Direction, copies: &[Copy]) -> Result<Vec<Arc<Arena>>> {
        let memory = self.memory.lock();
        let mut touched: Vec<Arc<Arena>> = Vec::new();
        for copy in copies {
            let (from, to) = match direction {
                Direction::HostToDevice => (None, Some(copy.destination)),
                Direction::DeviceToHost => (Some(copy.source), None),
                Direction::DeviceToDevice => (Some(copy.source), Some(copy.destination)),
            };
            for address in [from, to].into_iter().flatten() {
                let arena = memory.find(address, copy.bytes)?;
                if !touched.iter().any(|known| Arc::ptr_eq(known, arena)) {
                    touched.push(arena.clone());
                }
            }
        }
        Ok(touched)
    }
}

impl Device for HostDevice {
    fn name(&self) -> &'static str {
        "host"
    }

    fn memory(&self) -> Result<MemoryUsage> {
        let used = self.memory.lock().used_bytes;
        Ok(MemoryUsage {
            free_bytes: self.settings.memory_bytes.saturating_sub(used),
            total_bytes: self.settings.memory_bytes,
        })
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceAddress> {
        let refused = || Error::new(ErrorKind::NoSpace, format!("{bytes} bytes are not free"));
        let mut memory = self.memory.lock();
        let used = memory.used_bytes.checked_add(bytes as u64);
        let used = used
            .filter(|used| bytes > 0 && *used <= self.settings.memory_bytes)
            .ok_or_else(refused)?;
        let mapping = map_arena(bytes, false, self.settings.huge_pages)?;
        let address = mapping.arena.base() as u64;
        memory.used_bytes = used;
        memory.allocations.insert(address, mapping.arena);
        Ok(DeviceAddress(address))
    }

    unsafe fn free(&self, address: DeviceAddress) -> Result<()> {
        let mut memory = self.memory.lock();
        let Some(arena) = memory.allocations.remove(&address.0) else {
            return Err(Error::invalid(format!("{:#x} is no allocation", address.0)));
        };
        memory.used_bytes -= arena.length() as u64;
        Ok(())
    }

    /// Nothing to do: the threads reach all of the host's memory.
    unsafe fn register_host(&self, _address: HostAddress, _bytes: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn unregister_host(&self, _address: HostAddress) -> Result<()> {
        Ok(())
    }

    fn create_stream(&self) -> Result<RawStream> {
        let mut streams = self.streams.lock();
        let handle = self.handle("streams", streams.len())?;
        let stream = Arc::new(HostStream::default());
        let working = stream.clone();
        let thread = self
            .runtime
            .spawner
            .spawn(&format!("host-stream-{handle}"), Box::new(move || working.run()))?;
        streams.insert(handle, Worker { stream, thread });
        Ok(RawStream(handle))
    }

    unsafe fn destroy_stream(&self, stream: RawStream) -> Result<()> {
        let worker = self.streams.lock().remove(&stream.0);
        let Some(worker) = worker else {
            return Err(Error::invalid(format!("stream {} is none", stream.0)));
        };
        // a thread that is still busy ends by itself
        if worker.stream.stop() {
            worker.thread.join();
        }
        Ok(())
    }

    unsafe fn copy(&self, stream: RawStream, direction: Direction, copies: &[Copy]) -> Result<()> {
        if copies.len() > CopyBatch::MAX_COPIES {
            return Err(Error::invalid(format!("a batch of {} copies", copies.len())));
        }
        let touched = self.touched(direction, copies)?;
        let bytes = copies.iter().map(|copy| copy.bytes).sum();
        self.stream(stream)?
            .give(Task::Copies(copies.to_vec(), touched))?;
        self.batch_calls.fetch_add(1, Ordering::Relaxed);
        self.copies.fetch_add(copies.len() as u64, Ordering::Relaxed);
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    unsafe fn synchronize_stream(&self, stream: RawStream, timeout: Duration) -> Result<()> {
        self.stream(stream)?.synchronize(timeout, &self.runtime)
    }

    unsafe fn abort_stream(&self, stream: RawStream) -> Result<()> {
        self.stream(stream)?.abort();
        Ok(())
    }

    fn create_event(&self) -> Result<RawEvent> {
        let mut events = self.events.lock();
        let handle = self.handle("events", events.len())?;
        events.insert(handle, Arc::default());
        Ok(RawEvent(handle))
    }

    unsafe fn destroy_event(&self, event: RawEvent) -> Result<()> {
        let known = self.events.lock().remove(&event.0);
        known
            .map(drop)
            .ok_or_else(|| Error::invalid(format!("event {} is none", event.0)))
    }

    unsafe fn record_event(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        let (stream, event) = (self.stream(stream)?, self.event(event)?);
        let record = event.record();
        // a record that can't be queued would be waited for in vain
        stream
            .give(Task::Record(event.clone(), record))
            .inspect_err(|_| event.reach(record))
    }

    unsafe fn wait_event(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        let (stream, event) = (self.stream(stream)?, self.event(event)?);
        match event.latest() {
            0 => Ok(()),
            record => stream.give(Task::Wait(event, record)),
        }
    }

    unsafe fn query_event(&self, event: RawEvent) -> Result<bool> {
        Ok(self.event(event)?.is_reached())
    }

    unsafe fn synchronize_event(&self, event: RawEvent, timeout: Duration) -> Result<()> {
        self.event(event)?.synchronize(timeout, &self.runtime)
    }

    fn counts(&self) -> DeviceCounts {
        DeviceCounts {
            batch_calls: self.batch_calls.load(Ordering::Relaxed),
            single_calls: 0,
            copies: self.copies.load(Ordering::Relaxed),
            copied_bytes: self.copied_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        for worker in self.streams.get_mut().values() {
            worker.stream.stop();
        }
    }
}
