//! Accelerators as the engine sees them: memory that the host can't touch, and copies that run by themselves.
//!
//! [`Device`] is what a driver has to do, in raw handles and addresses: it fits a C interface one to one. Everything
//! above it uses the owning handles, which check bounds, keep memory alive while a copy may touch it and free what they
//! own: [`DeviceMemory`], [`HostRegistration`], [`Stream`], [`Event`], [`ImportedMemory`].
//!
//! - A **stream** runs what it's given in order. Streams run side by side.
//! - A **batch** of copies is one call, however many tensors it has.
//! - An **event** marks a point of a stream. Another stream waits for it without a thread that waits, also for an
//!   event of the engine whose memory we copy, by its raw handle.
#![allow(unsafe_code)]

mod address;
mod batch;
mod event;
mod memory;
mod stream;

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

pub use address::{Copy, DeviceAddress, Direction, HostAddress, IpcKey, RawEvent, RawStream};
pub use batch::CopyBatch;
pub use event::Event;
pub use memory::{DeviceMemory, HostRegistration, ImportedMemory};
pub use stream::Stream;

/// Memory of a device at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// What nobody has allocated.
    pub free_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

/// What a driver has done. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// Calls that handed a batch of copies to the device.
    pub batch_calls: u64,
    /// Calls that handed a single copy to it, because it takes no batches.
    pub single_calls: u64,
    /// Copies, in whichever calls.
    pub copies: u64,
    /// Bytes of those copies.
    pub copied_bytes: u64,
}

/// One accelerator, or host memory that stands for one.
///
/// Any thread may call any function at any time, and each but the two `synchronize` ones returns soon. A call on a
/// thread that hasn't called [`Device::bind_thread`] binds it first where the device has contexts per thread.
///
/// Raw handles are valid from the call that made them to the one that ends them, and only with the device that made
/// them; events, and streams that one is recorded in, may also be the engine's own. That is what the `unsafe` functions ask of their callers.
///
/// What goes wrong: `NoSpace` for want of device memory, `Busy` for a full queue, `TimedOut` for a deadline, `InvalidInput`
/// for an address that isn't the device's, `Unsupported` for what it can't do, `Unavailable` for a device that is lost,
/// and `Io` for a copy that failed. A copy that fails once it was handed over shows at the next synchronization of its
/// stream.
pub trait Device: Send + Sync + 'static {
    /// The device in logs and metrics, e.g. `ascend:0`.
    fn name(&self) -> &str;

    /// Free and total memory.
    fn memory(&self) -> Result<MemoryUsage>;

    /// Makes the device the current one of this thread. Cheap where it is so already.
    fn bind_thread(&self) -> Result<()> {
        Ok(())
    }

    /// Allocates device memory, aligned to at least 512 bytes. Its content is undefined.
    fn allocate(&self, bytes: usize) -> Result<DeviceAddress>;

    /// Frees device memory.
    ///
    /// # Safety
    /// `address` must come from [`Device::allocate`], once, and no copy that touches it may be under way.
    unsafe fn free(&self, address: DeviceAddress) -> Result<()>;

    /// Makes host memory known, so that copies from and to it run asynchronously and at full speed. Optional: without
    /// it copies are right and slower.
    ///
    /// # Safety
    /// The memory must stay mapped until it's unregistered.
    unsafe fn register_host(&self, address: HostAddress, bytes: usize) -> Result<()>;

    /// Takes [`Device::register_host`] back.
    ///
    /// # Safety
    /// `address` must have been registered, and no copy that touches the memory may be under way.
    unsafe fn unregister_host(&self, address: HostAddress) -> Result<()>;

    /// A new stream.
    fn create_stream(&self) -> Result<RawStream>;

    /// Ends a stream. What it was given runs to its end, in time or not.
    ///
    /// # Safety
    /// The stream must be one of this device and not be used again.
    unsafe fn destroy_stream(&self, stream: RawStream) -> Result<()>;

    /// Hands copies to a stream in as few calls to the device as it allows: one, up to its limit. Returns before they
    /// are done, unless the host's memory isn't registered. After an error some may have been handed over.
    ///
    /// # Safety
    /// The stream must be one of this device. Each range must be valid on its side of `direction` until the stream has
    /// passed the copies, and nothing else may write to what they read or touch what they write.
    unsafe fn copy(&self, stream: RawStream, direction: Direction, copies: &[Copy]) -> Result<()>;

    /// Waits until a stream has done all it was given by now. Fails with `TimedOut`, and with what failed since the last
    /// synchronization.
    ///
    /// # Safety
    /// The stream must be one of this device.
    unsafe fn synchronize_stream(&self, stream: RawStream, timeout: Duration) -> Result<()>;

    /// Drops what a stream hasn't begun. `Unsupported` where the device can't.
    ///
    /// # Safety
    /// The stream must be one of this device.
    unsafe fn abort_stream(&self, _stream: RawStream) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "the device aborts no streams"))
    }

    /// A new event, not recorded.
    fn create_event(&self) -> Result<RawEvent>;

    /// Ends an event.
    ///
    /// # Safety
    /// The event must come from [`Device::create_event`] and not be used again; no stream may wait for it.
    unsafe fn destroy_event(&self, event: RawEvent) -> Result<()>;

    /// Marks the present end of a stream, ours or the engine's.
    ///
    /// # Safety
    /// The stream must be of this device, or a live one of its runtime in this process; the event must be of this device.
    unsafe fn record_event(&self, stream: RawStream, event: RawEvent) -> Result<()>;

    /// Lets a stream wait, before what it's given next, for the latest record of an event, ours or the engine's. An event
    /// that was never recorded isn't waited for. (What the two below say of such an event is up to the device.)
    ///
    /// # Safety
    /// The stream must be of this device; the event must be a live one of its runtime in this process.
    unsafe fn wait_event(&self, stream: RawStream, event: RawEvent) -> Result<()>;

    /// Whether the latest record of an event has been reached.
    ///
    /// # Safety
    /// As for [`Device::wait_event`].
    unsafe fn query_event(&self, event: RawEvent) -> Result<bool>;

    /// Waits for the latest record of an event. Fails with `TimedOut`.
    ///
    /// # Safety
    /// As for [`Device::wait_event`].
    unsafe fn synchronize_event(&self, event: RawEvent, timeout: Duration) -> Result<()>;

    /// A key by which another process of this machine may import an allocation.
    ///
    /// # Safety
    /// `address` must come from [`Device::allocate`] with that many bytes.
    unsafe fn export_memory(&self, _address: DeviceAddress, _bytes: usize) -> Result<IpcKey> {
        Err(Error::new(ErrorKind::Unsupported, "the device shares no memory"))
    }

    /// Maps what another process exported. Copies into it are seen there.
    fn import_memory(&self, _key: &IpcKey) -> Result<DeviceAddress> {
        Err(Error::new(ErrorKind::Unsupported, "the device shares no memory"))
    }

    /// Unmaps what was imported.
    ///
    /// # Safety
    /// Address and key must belong to one [`Device::import_memory`], and no copy that touches it may be under way.
    unsafe fn close_import(&self, _address: DeviceAddress, _key: &IpcKey) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "the device shares no memory"))
    }

    /// What was copied, and in how many calls.
    fn counts(&self) -> DeviceCounts;
}
