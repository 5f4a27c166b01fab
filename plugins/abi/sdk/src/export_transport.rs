//! The table of functions of a [`Transport`].

use std::ffi::c_void;

use crate::abi;
use crate::export::{owned, slice};
use crate::export_device::{guarded, last_error};
use crate::failure::{Failure, Kind};
use crate::host::Log;
use crate::tier::Settings;
use crate::transport::{Completer, MoveDirection, Transport};

/// An open transport.
struct Opened<T> {
    transport: T,
    completer: Completer,
}

/// The table of a transport's functions.
pub const fn transport_vtable<T: Transport>() -> abi::Transport {
    abi::Transport {
        struct_size: size_of::<abi::Transport>() as u32,
        reserved: 0,
        open: Some(open::<T>),
        close: Some(close::<T>),
        last_error: Some(last_error),
        address: Some(address::<T>),
        register_memory: Some(register_memory::<T>),
        unregister_memory: Some(unregister_memory::<T>),
        connect: Some(connect::<T>),
        disconnect: Some(disconnect::<T>),
        submit: Some(submit::<T>),
    }
}

/// Runs a call of an open transport.
///
/// # Safety
/// `transport` must come from `open::<T>` and not have been closed.
unsafe fn with<T: Transport>(
    transport: *mut c_void,
    body: impl FnOnce(&Opened<T>) -> Result<(), Failure>,
) -> i32 {
    // SAFETY: the caller vouches for it.
    guarded(|| body(unsafe { &*transport.cast::<Opened<T>>() }))
}

unsafe extern "C" fn open<T: Transport>(
    host: *const abi::Host,
    settings: *const abi::Setting,
    count: u64,
    transport: *mut *mut c_void,
) -> i32 {
    guarded(|| {
        let unknown = || Failure::new(Kind::Unsupported, "the host has another table");
        // SAFETY: the host passes its table.
        let (log, completer) = unsafe { (Log::copy(host), Completer::copy(host)) };
        let (log, completer) = (log.ok_or_else(unknown)?, completer.ok_or_else(unknown)?);
        // SAFETY: the host lends that many settings for the call.
        let pairs = unsafe { slice(settings, count) }
            .iter()
            // SAFETY: as above.
            .map(|setting| unsafe { (owned(setting.key), owned(setting.value)) })
            .collect();
        let opened = Box::new(Opened {
            transport: T::open(log, Settings::new(pairs))?,
            completer,
        });
        // SAFETY: the host passes a place for the result.
        unsafe { *transport = Box::into_raw(opened).cast() };
        Ok(())
    })
}

unsafe extern "C" fn close<T: Transport>(transport: *mut c_void) {
    guarded(|| {
        // SAFETY: it comes from `open`, and the host calls nothing afterwards.
        drop(unsafe { Box::from_raw(transport.cast::<Opened<T>>()) });
        Ok(())
    });
}

unsafe extern "C" fn address<T: Transport>(transport: *mut c_void, bytes: *mut u8, length: *mut u64) -> i32 {
    // SAFETY: the host passes an open transport and that much room.
    unsafe {
        with(transport, |opened: &Opened<T>| {
            let made = opened.transport.address()?;
            if made.len() as u64 > *length {
                let message = format!("an address of {} bytes, and room for {}", made.len(), *length);
                return Err(Failure::new(Kind::TooLarge, message));
            }
            std::ptr::copy_nonoverlapping(made.as_ptr(), bytes, made.len());
            *length = made.len() as u64;
            Ok(())
        })
    }
}

unsafe extern "C" fn register_memory<T: Transport>(
    transport: *mut c_void,
    address: *mut c_void,
    bytes: u64,
    exposed: u32,
    memory: *mut u64,
) -> i32 {
    // SAFETY: the host passes an open transport, memory that stays valid, and a place for the result.
    unsafe {
        with(transport, |opened: &Opened<T>| {
            let exposed = exposed != abi::EXPOSED_TO_NOBODY;
            *memory = opened.transport.register_memory(address.cast(), bytes, exposed)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn unregister_memory<T: Transport>(transport: *mut c_void, memory: u64) -> i32 {
    // SAFETY: the host passes an open transport and memory of it.
    unsafe {
        with(transport, |opened: &Opened<T>| {
            opened.transport.unregister_memory(memory)
        })
    }
}

unsafe extern "C" fn connect<T: Transport>(
    transport: *mut c_void,
    address: *const u8,
    length: u64,
    timeout_ms: u64,
    connection: *mut u64,
) -> i32 {
    // SAFETY: the host passes an open transport, lends the address and passes a place for the result.
    unsafe {
        with(transport, |opened: &Opened<T>| {
            *connection = opened.transport.connect(slice(address, length), timeout_ms)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn disconnect<T: Transport>(transport: *mut c_void, connection: u64) -> i32 {
    // SAFETY: the host passes an open transport and a connection of it.
    unsafe {
        with(transport, |opened: &Opened<T>| {
            opened.transport.disconnect(connection)
        })
    }
}

unsafe extern "C" fn submit<T: Transport>(
    transport: *mut c_void,
    connection: u64,
    direction: u32,
    moves: *const abi::Move,
    count: u64,
    ticket: u64,
) -> i32 {
    // SAFETY: the host passes an open transport, an open connection of it, and lends the moves.
    unsafe {
        with(transport, |opened: &Opened<T>| {
            let direction = match direction {
                abi::FROM_PEER => MoveDirection::FromPeer,
                abi::TO_PEER => MoveDirection::ToPeer,
                other => {
                    let message = format!("direction {other} is none");
                    return Err(Failure::new(Kind::InvalidInput, message));
                }
            };
            let moves = slice(moves, count);
            let bytes = moves.iter().map(|one| one.bytes).sum();
            let completion = opened.completer.completion(ticket, bytes);
            // from here on the batch is ended by its completion, also if this panics: not by the status too
            let begun = std::panic::AssertUnwindSafe(|| {
                opened.transport.submit(connection, direction, moves, completion);
            });
            let _ = std::panic::catch_unwind(begun);
            Ok(())
        })
    }
}
