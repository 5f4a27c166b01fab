//! What a tier or a device can tell its host.

use std::ffi::c_void;

use crate::abi;
use crate::export::sized;
use crate::failure::Failure;
use crate::tier::NamespaceInfo;

/// How much a log message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Level {
    /// Something failed that somebody should look at.
    Error = 1,
    /// Something is odd.
    Warning = 2,
    /// Something happened.
    Info = 3,
    /// Details.
    Debug = 4,
}

/// The program that loaded the plugin. Valid for ever and from any thread.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// A copy that is never freed, so that every operation can have it without copying it.
    table: &'static abi::Host,
}

// SAFETY: the interface allows the functions from any thread, and the context is only handed back to them.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// Copies the host's table.
    ///
    /// # Safety
    /// `table` must point to a host's table, whose functions stay valid for ever.
    pub(crate) unsafe fn copy(table: *const abi::Host) -> Option<Self> {
        // all that version 1.0 has
        const NEEDED: usize = std::mem::offset_of!(abi::Host, describe);
        if table.is_null() {
            return None;
        }
        // SAFETY: the first field is there in every version.
        if (unsafe { (*table).struct_size } as usize) < NEEDED {
            return None;
        }
        // SAFETY: the table has as many bytes as it says.
        let table = unsafe { sized(table) };
        let whole = table.log.is_some()
            && table.complete.is_some()
            && table.stored.is_some()
            && table.removed.is_some();
        whole.then(|| Self {
            table: Box::leak(Box::new(table)),
        })
    }

    /// Writes a line to the host's log.
    pub fn log(&self, level: Level, message: &str) {
        if let Some(log) = self.table.log {
            // SAFETY: the message is lent for the call.
            unsafe { log(self.table.context, level as u32, abi::Text::lend(message)) }
        }
    }

    /// Says that blocks are here that the host didn't write in this run.
    pub fn stored(&self, keys: &[abi::Key]) {
        if let Some(stored) = self.table.stored {
            // SAFETY: the keys are lent for the call.
            unsafe { stored(self.table.context, keys.as_ptr(), keys.len() as u64) }
        }
    }

    /// Says that blocks have left by the tier's own doing.
    pub fn removed(&self, keys: &[abi::Key]) {
        if let Some(removed) = self.table.removed {
            // SAFETY: the keys are lent for the call.
            unsafe { removed(self.table.context, keys.as_ptr(), keys.len() as u64) }
        }
    }

    /// Says what a namespace is of which blocks are here from an earlier run, so that they count for its tenant's quota
    /// before anybody opens it. Best said before its blocks are told. Hosts before 1.2 don't hear of it.
    pub fn describe(&self, info: &NamespaceInfo) {
        if let Some(describe) = self.table.describe {
            let described = abi::Namespace {
                struct_size: size_of::<abi::Namespace>() as u32,
                shards: 0,
                digest: info.digest,
                image_bytes: info.image_bytes,
                payload_bytes: info.payload_bytes,
                tenant: abi::Text::lend(&info.tenant),
                model: abi::Text::lend(&info.model),
                description: abi::Text::lend(&info.description),
            };
            // SAFETY: the struct and its texts are lent for the call.
            unsafe { describe(self.table.context, &raw const described) }
        }
    }

    pub(crate) fn complete(&self, ticket: u64, outcome: Result<u64, &Failure>) {
        let (status, transferred, message) = match outcome {
            Ok(transferred) => (abi::OK, transferred, ""),
            Err(failure) => (failure.kind() as i32, 0, failure.message()),
        };
        if let Some(complete) = self.table.complete {
            // SAFETY: the message is lent for the call; the ticket is used once, by the operation that owns it.
            unsafe {
                complete(
                    self.table.context,
                    ticket,
                    status,
                    transferred,
                    abi::Text::lend(message),
                );
            }
        }
    }
}

/// The host's log, which is all that a device is given. Valid for ever and from any thread.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    context: *mut c_void,
    log: unsafe extern "C" fn(*mut c_void, u32, abi::Text),
}

// SAFETY: the interface allows the function from any thread, and the context is only handed back to it.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

impl Log {
    /// Copies what a device uses of the host's table.
    ///
    /// # Safety
    /// `table` must point to a host's table, whose functions stay valid for ever.
    pub(crate) unsafe fn copy(table: *const abi::Host) -> Option<Self> {
        const NEEDED: usize = std::mem::offset_of!(abi::Host, complete);
        if table.is_null() {
            return None;
        }
        // SAFETY: the first field is there in every version.
        if (unsafe { (*table).struct_size } as usize) < NEEDED {
            return None;
        }
        // SAFETY: the table has both fields.
        let (context, log) = unsafe { ((*table).context, (*table).log) };
        log.map(|log| Self { context, log })
    }

    /// Writes a line to the host's log.
    pub fn log(&self, level: Level, message: &str) {
        // SAFETY: the message is lent for the call.
        unsafe { (self.log)(self.context, level as u32, abi::Text::lend(message)) }
    }
}
