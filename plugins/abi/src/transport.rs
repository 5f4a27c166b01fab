//! The transport's contract over a plugin.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::transport::{
    Exposure, MOST_ADDRESS_BYTES, Move, MoveDirection, Moved, RawConnection, RawMemory,
};
use kvstored_core::{Error, MemoryTransport, Result};
use kvstored_plugin::abi;

use crate::callbacks::owned;
use crate::directory::PluginSettings;
use crate::library::{Loaded, PluginFacts};
use crate::transport_functions::TransportFunctions;
use crate::transport_moves::{Batch, Moves, Status, kind_of};

/// The longest message of a plugin that is kept.
const MOST_MESSAGE_BYTES: usize = 1024;

// both describe the same bytes, so that batches go through as they are
const _: () =
    assert!(size_of::<Move>() == size_of::<abi::Move>() && align_of::<Move>() == align_of::<abi::Move>());
const _: () = assert!(MOST_ADDRESS_BYTES == abi::MOST_ADDRESS_BYTES);

/// A plugin as a transport, named by the plugin.
///
/// Calls go straight to the plugin, from whichever thread. One that gives back what can't be is asked nothing more, and
/// what it has under way is never said to be over.
pub struct PluginTransport {
    facts: PluginFacts,
    functions: TransportFunctions,
    transport: *mut c_void,
    moves: Arc<Moves>,
}

// SAFETY: the interface allows every function of a transport from any thread, many at a time.
unsafe impl Send for PluginTransport {}
// SAFETY: as above.
unsafe impl Sync for PluginTransport {}

impl PluginTransport {
    pub(crate) fn open(loaded: Loaded, settings: &PluginSettings) -> Result<Arc<Self>> {
        let Loaded { facts, transport, .. } = loaded;
        let functions =
            transport.ok_or_else(|| Error::invalid(format!("plugin {}: it has no transport", facts.name)))?;
        let pairs: Vec<abi::Setting> = settings
            .settings
            .iter()
            .map(|(key, value)| abi::Setting {
                key: abi::Text::lend(key),
                value: abi::Text::lend(value),
            })
            .collect();
        let moves = Moves::new(facts.name.clone());
        let mut opened = Self {
            facts,
            functions,
            transport: std::ptr::null_mut(),
            moves,
        };
        let host = opened.moves.leak_table();
        let mut transport = std::ptr::null_mut();
        // SAFETY: the table lives for ever; the settings are lent for the call.
        let status =
            unsafe { (functions.open)(host, pairs.as_ptr(), pairs.len() as u64, &raw mut transport) };
        opened.outcome(status, "open")?;
        if transport.is_null() {
            return Err(Error::invalid("the plugin opened no transport").with("transport", opened.name()));
        }
        opened.transport = transport;
        Ok(Arc::new(opened))
    }

    /// What the plugin says of itself.
    pub fn facts(&self) -> &PluginFacts {
        &self.facts
    }

    /// A status of the plugin as a result, with the plugin's words for it.
    fn outcome(&self, status: i32, what: &str) -> Result<()> {
        let kind = match kind_of(status) {
            Status::Ok => return Ok(()),
            Status::Failed(kind) => kind,
            Status::None => {
                let what = format!("{what} gave status {status}, which is none");
                return Err(self.moves.breach(&what));
            }
        };
        let mut text = [0 as c_char; MOST_MESSAGE_BYTES];
        // SAFETY: the text has room for that many bytes.
        let length = unsafe { (self.functions.last_error)(text.as_mut_ptr(), text.len() as u64) };
        if length > text.len() as u64 {
            let what = format!("its message has {length} bytes and room for fewer");
            return Err(self.moves.breach(&what));
        }
        let lent = abi::Text {
            data: text.as_ptr(),
            length,
        };
        // SAFETY: that many bytes of the text are there.
        let message = unsafe { owned(lent) };
        let message = if message.is_empty() {
            format!("{what} failed")
        } else {
            format!("{what}: {message}")
        };
        Err(Error::new(kind, message).with("transport", self.name()))
    }

    /// Makes a call, unless the plugin is out.
    fn call(&self, what: &str, call: impl FnOnce(*mut c_void) -> i32) -> Result<()> {
        if self.moves.is_out() {
            return Err(self.moves.refusal("it broke the contract"));
        }
        self.outcome(call(self.transport), what)
    }

    /// A call that gives a number other than 0.
    fn give(&self, what: &str, call: impl FnOnce(*mut c_void, *mut u64) -> i32) -> Result<u64> {
        let mut number = 0;
        self.call(what, |transport| call(transport, &raw mut number))?;
        if number == 0 {
            return Err(self.moves.breach(&format!("{what} gave nothing")));
        }
        Ok(number)
    }
}

impl MemoryTransport for PluginTransport {
    fn name(&self) -> &str {
        &self.facts.name
    }

    fn address(&self) -> Result<Vec<u8>> {
        let mut bytes = [0; MOST_ADDRESS_BYTES];
        let mut length = bytes.len() as u64;
        self.call("address", |transport| {
            // SAFETY: the transport is open; there is that much room.
            unsafe { (self.functions.address)(transport, bytes.as_mut_ptr(), &raw mut length) }
        })?;
        let written = bytes.get(..length as usize).map(<[u8]>::to_vec);
        written.ok_or_else(|| self.moves.breach(&format!("an address of {length} bytes")))
    }

    unsafe fn register(&self, address: usize, bytes: u64, exposure: Exposure) -> Result<RawMemory> {
        let exposed = match exposure {
            Exposure::Own => abi::EXPOSED_TO_NOBODY,
            Exposure::Peers => abi::EXPOSED_TO_PEERS,
        };
        let address = std::ptr::with_exposed_provenance_mut(address);
        self.give("register_memory", |transport, memory| {
            // SAFETY: the transport is open; the caller vouches for the memory; the place is lent for the call.
            unsafe { (self.functions.register_memory)(transport, address, bytes, exposed, memory) }
        })
        .map(RawMemory)
    }

    unsafe fn unregister(&self, memory: RawMemory) -> Result<()> {
        self.call("unregister_memory", |transport| {
            // SAFETY: the transport is open; the caller vouches for the handle.
            unsafe { (self.functions.unregister_memory)(transport, memory.0) }
        })
    }

    fn connect(&self, address: &[u8], timeout: Duration) -> Result<RawConnection> {
        let timeout_ms = (timeout.as_millis() as u64).max(1);
        let (start, length) = (address.as_ptr(), address.len() as u64);
        self.give("connect", |transport, connection| {
            // SAFETY: the transport is open; address and place are lent for the call.
            unsafe { (self.functions.connect)(transport, start, length, timeout_ms, connection) }
        })
        .map(RawConnection)
    }

    unsafe fn disconnect(&self, connection: RawConnection) -> Result<()> {
        self.call("disconnect", |transport| {
            // SAFETY: the transport is open; the caller vouches for the connection.
            unsafe { (self.functions.disconnect)(transport, connection.0) }
        })?;
        match self.moves.count(connection.0) {
            0 => Ok(()),
            left => {
                let what = format!("it ended a connection and left {left} batches");
                Err(self.moves.breach(&what))
            }
        }
    }

    unsafe fn submit(
        &self,
        connection: RawConnection,
        direction: MoveDirection,
        moves: &[Move],
        done: Moved,
    ) {
        if self.moves.is_out() {
            return done(Err(self.moves.refusal("it broke the contract")));
        }
        let bytes = moves.iter().map(|one| one.bytes).sum();
        let ticket = self.moves.begin(Batch {
            connection: connection.0,
            bytes,
            done,
        });
        let begun = self.call("submit", |transport| {
            let first = moves.as_ptr().cast::<abi::Move>();
            let (direction, count) = (direction as u32, moves.len() as u64);
            // SAFETY: the transport is open; the caller vouches for connection and ranges; the array is lent for the
            // call, and both types have the same three numbers in it.
            unsafe { (self.functions.submit)(transport, connection.0, direction, first, count, ticket) }
        });
        if let Err(error) = begun {
            match self.moves.take(ticket) {
                // nothing was begun, if its word can be relied on
                Some(batch) if !self.moves.is_out() => (batch.done)(Err(error)),
                Some(batch) => std::mem::forget(batch.done),
                None => {
                    self.moves.breach("it refused a batch and ended it");
                }
            }
        }
    }
}

impl Drop for PluginTransport {
    fn drop(&mut self) {
        if !self.transport.is_null() && !self.moves.is_out() {
            // SAFETY: the transport is open, and not used afterwards.
            unsafe { (self.functions.close)(self.transport) };
        }
    }
}
