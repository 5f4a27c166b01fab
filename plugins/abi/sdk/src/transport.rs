//! What a transport has to do.

use std::ffi::c_void;

use crate::abi;
use crate::failure::{Failure, Kind};
use crate::host::Log;
use crate::tier::Settings;

/// One run of bytes to move.
pub type Move = abi::Move;

/// Which way bytes go, seen from who moves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveDirection {
    /// From the peer's memory to ours.
    FromPeer,
    /// From our memory to the peer's.
    ToPeer,
}

type Complete = unsafe extern "C" fn(*mut c_void, u64, i32, u64, abi::Text);

/// The right and the duty to end a batch, once. One that is dropped ends with [`Kind::Internal`].
#[derive(Debug)]
pub struct Completion {
    context: *mut c_void,
    complete: Complete,
    ticket: u64,
    bytes: u64,
    ended: bool,
}

// SAFETY: the interface allows the function from any thread, and the context is only handed back to it.
unsafe impl Send for Completion {}

impl Completion {
    fn end(&mut self, status: i32, transferred: u64, message: &str) {
        if !std::mem::replace(&mut self.ended, true) {
            // SAFETY: the message is lent for the call; the ticket is used once.
            unsafe {
                (self.complete)(
                    self.context,
                    self.ticket,
                    status,
                    transferred,
                    abi::Text::lend(message),
                );
            }
        }
    }

    /// All of it was moved, and its memory isn't touched any more.
    pub fn succeed(mut self) {
        self.end(abi::OK, self.bytes, "");
    }

    /// It failed, and its memory isn't touched any more.
    pub fn fail(mut self, failure: &Failure) {
        self.end(failure.kind() as i32, 0, failure.message());
    }

    /// As [`Completion::succeed`] or [`Completion::fail`].
    pub fn finish(self, outcome: Result<(), Failure>) {
        match outcome {
            Ok(()) => self.succeed(),
            Err(failure) => self.fail(&failure),
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.end(Kind::Internal as i32, 0, "the transport dropped it");
    }
}

/// Makes the completions of batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completer {
    context: *mut c_void,
    complete: Complete,
}

// SAFETY: as for a completion.
unsafe impl Send for Completer {}
// SAFETY: as above.
unsafe impl Sync for Completer {}

impl Completer {
    /// Copies what a transport uses of the host's table.
    ///
    /// # Safety
    /// `table` must point to a host's table, whose functions stay valid for ever.
    pub(crate) unsafe fn copy(table: *const abi::Host) -> Option<Self> {
        const NEEDED: usize = std::mem::offset_of!(abi::Host, stored);
        // SAFETY: the first field is there in every version.
        if table.is_null() || (unsafe { (*table).struct_size } as usize) < NEEDED {
            return None;
        }
        // SAFETY: the table has both fields.
        let (context, complete) = unsafe { ((*table).context, (*table).complete) };
        complete.map(|complete| Self { context, complete })
    }

    pub(crate) fn completion(&self, ticket: u64, bytes: u64) -> Completion {
        Completion {
            context: self.context,
            complete: self.complete,
            ticket,
            bytes,
            ended: false,
        }
    }
}

/// An interconnect: registered memory, connections, and batches of moves that the peer does nothing for.
///
/// Any thread may call anything at any time. Handles are numbers other than 0, of the transport's own choice.
///
/// The `unsafe` functions take handles and ranges on trust: the host passes what the transport gave it and what is still
/// open, and memory that stays valid until it's unregistered.
#[allow(clippy::missing_safety_doc)] // said once, above
pub trait Transport: Send + Sync + Sized + 'static {
    /// Makes the transport.
    fn open(log: Log, settings: Settings) -> Result<Self, Failure>;

    /// What peers need to connect, at most [`abi::MOST_ADDRESS_BYTES`]; [`Kind::Unsupported`] if they can't.
    fn address(&self) -> Result<Vec<u8>, Failure>;

    /// Makes memory known; `exposed` says whether peers' moves may touch it.
    unsafe fn register_memory(&self, address: *mut u8, bytes: u64, exposed: bool) -> Result<u64, Failure>;

    /// Takes that back. Once this returns `Ok`, no peer touches the memory any more.
    unsafe fn unregister_memory(&self, memory: u64) -> Result<(), Failure>;

    /// Connects with a peer by its address. Moves may use what is registered on both sides now.
    fn connect(&self, address: &[u8], timeout_ms: u64) -> Result<u64, Failure>;

    /// Ends a connection. Before this returns `Ok`, all its batches are completed, and nothing touches their memory.
    unsafe fn disconnect(&self, connection: u64) -> Result<(), Failure>;

    /// Begins to move a batch and returns soon; `completion` is ended when none of its memory is touched any more.
    unsafe fn submit(
        &self,
        connection: u64,
        direction: MoveDirection,
        moves: &[Move],
        completion: Completion,
    );
}
