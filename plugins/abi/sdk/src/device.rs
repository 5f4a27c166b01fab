//! What a device has to do.

use crate::abi;
use crate::failure::{Failure, Kind};
use crate::host::Log;
use crate::tier::Settings;

/// One copy of a batch.
pub type Copy = abi::Copy;

/// What a device has been asked for; leave `struct_size` as it is.
pub type DeviceStatistics = abi::DeviceStatistics;

/// From where to where a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From this process into the device.
    HostToDevice,
    /// From the device into this process.
    DeviceToHost,
    /// Within the device.
    DeviceToDevice,
}

fn unsupported<T>(what: &str) -> Result<T, Failure> {
    Err(Failure::new(
        Kind::Unsupported,
        format!("the device can't {what}"),
    ))
}

/// An accelerator: memory, streams that run copies in order, events.
///
/// Any thread may call anything at any time; each thread calls [`Device::bind_thread`] first. All but the two
/// `synchronize` functions return soon. Handles and addresses are numbers of the device's own choice.
///
/// The `unsafe` functions take handles on trust: the host passes what the device gave it and what is still alive, and
/// ranges that stay valid until the stream has passed the copies.
#[allow(clippy::missing_safety_doc)] // said once, above
pub trait Device: Send + Sync + Sized + 'static {
    /// Makes the device.
    fn open(log: Log, settings: Settings) -> Result<Self, Failure>;

    /// Makes the device the calling thread's.
    fn bind_thread(&self) -> Result<(), Failure>;

    /// Free and total bytes.
    fn memory(&self) -> Result<(u64, u64), Failure>;

    /// Allocates; [`Kind::NoSpace`] when there isn't as much.
    fn allocate(&self, bytes: u64) -> Result<u64, Failure>;

    /// Frees.
    unsafe fn release(&self, address: u64) -> Result<(), Failure>;

    /// Makes host memory known, so that copies from and to it run by themselves.
    unsafe fn register_host(&self, _address: *mut u8, _bytes: u64) -> Result<(), Failure> {
        unsupported("register host memory")
    }

    /// Takes that back.
    unsafe fn unregister_host(&self, _address: *mut u8) -> Result<(), Failure> {
        unsupported("register host memory")
    }

    /// A new stream.
    fn create_stream(&self) -> Result<u64, Failure>;

    /// Ends a stream.
    unsafe fn destroy_stream(&self, stream: u64) -> Result<(), Failure>;

    /// Hands copies to a stream in as few calls as possible, and returns before they are done.
    unsafe fn copy(&self, stream: u64, direction: Direction, copies: &[Copy]) -> Result<(), Failure>;

    /// Waits for all that the stream was given; [`Kind::TimedOut`]. Says what failed since the last time.
    unsafe fn synchronize_stream(&self, stream: u64, timeout_ms: u64) -> Result<(), Failure>;

    /// Drops what the stream hasn't begun.
    unsafe fn abort_stream(&self, _stream: u64) -> Result<(), Failure> {
        unsupported("abort a stream")
    }

    /// A new event.
    fn create_event(&self) -> Result<u64, Failure>;

    /// Ends an event.
    unsafe fn destroy_event(&self, event: u64) -> Result<(), Failure>;

    /// Marks the stream's present end.
    unsafe fn record_event(&self, stream: u64, event: u64) -> Result<(), Failure>;

    /// Lets the stream wait for the event's latest record, ours or the engine's.
    unsafe fn wait_event(&self, stream: u64, event: u64) -> Result<(), Failure>;

    /// Whether the event's latest record has been reached.
    unsafe fn query_event(&self, event: u64) -> Result<bool, Failure>;

    /// Waits for the event's latest record; [`Kind::TimedOut`].
    unsafe fn synchronize_event(&self, event: u64, timeout_ms: u64) -> Result<(), Failure>;

    /// A key by which another process may import an allocation; at most [`abi::MOST_KEY_BYTES`] bytes.
    unsafe fn export_memory(&self, _address: u64, _bytes: u64) -> Result<Vec<u8>, Failure> {
        unsupported("share memory")
    }

    /// Maps what another process exported.
    fn import_memory(&self, _key: &[u8]) -> Result<u64, Failure> {
        unsupported("share memory")
    }

    /// Unmaps it.
    unsafe fn close_import(&self, _address: u64, _key: &[u8]) -> Result<(), Failure> {
        unsupported("share memory")
    }

    /// Fills in the numbers.
    fn statistics(&self, statistics: &mut DeviceStatistics);
}
