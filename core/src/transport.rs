//! One-sided transports as the transfer layer sees them: memory that is registered, connections, and batches of moves.
//!
//! [`MemoryTransport`] is what a driver of an interconnect has to do, in raw addresses and handles: it fits a C interface
//! one to one. It decides nothing about who may touch what. Whoever uses it lets only that side move bytes which has
//! checked the right to.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;

/// The longest address of a transport, in bytes.
pub const MOST_ADDRESS_BYTES: usize = 256;

/// Which way bytes go, seen from who moves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MoveDirection {
    /// From the peer's memory to ours.
    FromPeer = 1,
    /// From our memory to the peer's.
    ToPeer = 2,
}

/// One run of bytes to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Move {
    /// Address in this process.
    pub local: u64,
    /// Address in the peer's process.
    pub remote: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Who may touch registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Only moves of this process.
    Own,
    /// Moves of this process, and those of everybody who connects.
    Peers,
}

/// Registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawMemory(pub u64);

/// A connection to a peer's transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawConnection(pub u64);

/// Hears what became of a batch: once, on any thread, also before `submit` has returned. It must not wait.
pub type Moved = Box<dyn FnOnce(Result<()>) + Send>;

/// An interconnect that moves bytes between processes without the peer's doing.
///
/// Any thread may call any function at any time. `connect`, `disconnect` and the two about memory may take as long as the
/// driver does; the others return soon. Handles are valid from the call that made them to the one that ends them.
pub trait MemoryTransport: Send + Sync + 'static {
    /// What both ends must have in common to reach each other.
    fn name(&self) -> &str;

    /// What a peer needs to connect, at most [`MOST_ADDRESS_BYTES`]. The same as long as the transport is open.
    /// `Unsupported` if it only connects to others.
    fn address(&self) -> Result<Vec<u8>>;

    /// Makes memory known. Connections made before needn't know of it.
    ///
    /// # Safety
    /// The memory must stay valid until it's unregistered.
    unsafe fn register(&self, address: usize, bytes: u64, exposure: Exposure) -> Result<RawMemory>;

    /// Takes that back. When this returns `Ok`, no move of any peer touches the memory any more, nor does one begin; moves
    /// of this process must be over before. After an error the memory may still be touched.
    ///
    /// # Safety
    /// The handle must be one that `register` gave and that wasn't taken back.
    unsafe fn unregister(&self, memory: RawMemory) -> Result<()>;

    /// Connects with a peer by its address, to move bytes between its exposed memory and ours, as registered at this time.
    fn connect(&self, address: &[u8], timeout: Duration) -> Result<RawConnection>;

    /// Ends a connection. When this returns `Ok`, all its batches have been heard of, and none touches memory on either side
    /// any more. After an error they may.
    ///
    /// # Safety
    /// The handle must be one that `connect` gave and that wasn't disconnected successfully.
    unsafe fn disconnect(&self, connection: RawConnection) -> Result<()>;

    /// Begins to move a batch. `done` is called when none of its memory is touched any more, whatever it came to.
    ///
    /// # Safety
    /// The connection must be open, and the local ranges registered and valid until `done` is called.
    unsafe fn submit(&self, connection: RawConnection, direction: MoveDirection, moves: &[Move], done: Moved);
}

type Open = dyn Fn() -> Result<Arc<dyn MemoryTransport>> + Send + Sync;

/// Opens a transport when it's first needed. Clones open the same.
#[derive(Clone)]
pub struct TransportFactory {
    open: Arc<Open>,
}

impl TransportFactory {
    /// Opens it by that function, which fails with `Unavailable` or `Unsupported` where it can't be had.
    pub fn new(open: impl Fn() -> Result<Arc<dyn MemoryTransport>> + Send + Sync + 'static) -> Self {
        Self { open: Arc::new(open) }
    }

    /// Opens it.
    pub fn open(&self) -> Result<Arc<dyn MemoryTransport>> {
        (self.open)()
    }
}

impl fmt::Debug for TransportFactory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TransportFactory(…)")
    }
}
