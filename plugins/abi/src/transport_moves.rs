//! Batches that a transport has under way, and what it may call.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvstored_core::transport::Moved;
use kvstored_core::{Error, ErrorKind, Result};
use kvstored_plugin::abi;
use parking_lot::Mutex;

use crate::callbacks::owned;

/// A batch under way.
pub(crate) struct Batch {
    pub connection: u64,
    pub bytes: u64,
    pub done: Moved,
}

/// What a transport was given and hasn't ended, by ticket.
pub(crate) struct Moves {
    pub name: String,
    batches: Mutex<HashMap<u64, Batch>>,
    next: AtomicU64,
    /// It broke the contract.
    out: AtomicBool,
}

impl Moves {
    pub fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            batches: Mutex::default(),
            next: AtomicU64::new(1),
            out: AtomicBool::new(false),
        })
    }

    /// The table for a plugin. It lives for ever, and so does what is behind it.
    pub fn leak_table(self: &Arc<Self>) -> *const abi::Host {
        Box::leak(Box::new(abi::Host {
            struct_size: size_of::<abi::Host>() as u32,
            abi_version: abi::ABI_VERSION,
            context: Arc::into_raw(self.clone()).cast_mut().cast(),
            log: Some(log),
            complete: Some(complete),
            stored: None,
            removed: None,
            describe: None,
        }))
    }

    pub fn is_out(&self) -> bool {
        self.out.load(Ordering::Acquire)
    }

    /// The plugin broke the contract: it's asked nothing more.
    pub fn breach(&self, what: &str) -> Error {
        if !self.out.swap(true, Ordering::AcqRel) {
            tracing::error!(
                transport = self.name,
                what,
                "the plugin broke the contract and is not asked any more"
            );
        }
        self.refusal(what)
    }

    pub fn refusal(&self, what: &str) -> Error {
        let message = format!("the transport is not asked: {what}");
        Error::new(ErrorKind::Unavailable, message).with("transport", &self.name)
    }

    /// Keeps a batch; returns its ticket.
    pub fn begin(&self, batch: Batch) -> u64 {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        self.batches.lock().insert(ticket, batch);
        ticket
    }

    /// Takes a batch back.
    pub fn take(&self, ticket: u64) -> Option<Batch> {
        self.batches.lock().remove(&ticket)
    }

    /// How many batches a connection has.
    pub fn count(&self, connection: u64) -> usize {
        let batches = self.batches.lock();
        batches
            .values()
            .filter(|batch| batch.connection == connection)
            .count()
    }

    fn ended(&self, ticket: u64, status: i32, transferred: u64, message: &str) {
        let Some(batch) = self.take(ticket) else {
            self.breach("it ended a batch twice, or one that it doesn't have");
            return;
        };
        let result = match kind_of(status) {
            Status::Ok if transferred == batch.bytes => Ok(()),
            Status::Ok if transferred < batch.bytes => Err(Error::new(
                ErrorKind::Io,
                format!("{transferred} of {} bytes were moved", batch.bytes),
            )),
            Status::Ok => Err(self.breach("it moved more bytes than it was asked to")),
            Status::Failed(kind) => Err(Error::new(kind, message)),
            Status::None => Err(self.breach(&format!("a batch ended with status {status}, which is none"))),
        };
        // what broke the contract may touch memory that it says it doesn't: nobody is told that it's free
        if self.is_out() {
            std::mem::forget(batch.done);
            return;
        }
        (batch.done)(result.map_err(|error| error.with("transport", &self.name)));
    }
}

pub(crate) enum Status {
    Ok,
    Failed(ErrorKind),
    /// It isn't one.
    None,
}

pub(crate) fn kind_of(status: i32) -> Status {
    if status == abi::OK {
        return Status::Ok;
    }
    let code = u8::try_from(status.wrapping_sub(1)).ok();
    match code.filter(|code| usize::from(*code) < ErrorKind::ALL.len()) {
        Some(code) => Status::Failed(ErrorKind::from_code(code)),
        None => Status::None,
    }
}

/// Runs what a plugin called; no panic goes back to it.
///
/// # Safety
/// `context` must be the one of a leaked table.
unsafe fn called(context: *mut c_void, body: impl FnOnce(&Moves) -> Result<()>) {
    if context.is_null() {
        return;
    }
    // SAFETY: the table's context is an Arc that is never dropped.
    let moves = unsafe { &*context.cast_const().cast::<Moves>() };
    if catch_unwind(AssertUnwindSafe(|| body(moves))).is_err() {
        tracing::error!(transport = %moves.name, "a panic in what a plugin called");
    }
}

unsafe extern "C" fn log(context: *mut c_void, level: u32, message: abi::Text) {
    // SAFETY: the table's context, and the plugin lends the message.
    unsafe {
        called(context, |moves| {
            let (transport, message) = (&moves.name, owned(message));
            match level {
                1 => tracing::error!(transport, "{message}"),
                2 => tracing::warn!(transport, "{message}"),
                3 => tracing::info!(transport, "{message}"),
                _ => tracing::debug!(transport, "{message}"),
            }
            Ok(())
        });
    }
}

unsafe extern "C" fn complete(
    context: *mut c_void,
    ticket: u64,
    status: i32,
    transferred: u64,
    message: abi::Text,
) {
    // SAFETY: the table's context, and the plugin lends the message.
    unsafe {
        called(context, |moves| {
            moves.ended(ticket, status, transferred, &owned(message));
            Ok(())
        });
    }
}
