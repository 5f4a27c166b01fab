//! The functions of the C table, for a type that implements [`Device`]. No panic leaves them.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi;
use crate::device::{Device, Direction};
use crate::export::{owned, slice};
use crate::failure::{Failure, Kind};
use crate::host::Log;
use crate::tier::Settings;

thread_local! {
    /// Why the latest call on this thread failed.
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The table of a device's functions.
pub const fn device_vtable<D: Device>() -> abi::Device {
    abi::Device {
        struct_size: size_of::<abi::Device>() as u32,
        reserved: 0,
        open: Some(open::<D>),
        close: Some(close::<D>),
        last_error: Some(last_error),
        bind_thread: Some(bind_thread::<D>),
        memory: Some(memory::<D>),
        allocate: Some(allocate::<D>),
        release: Some(release::<D>),
        register_host: Some(register_host::<D>),
        unregister_host: Some(unregister_host::<D>),
        create_stream: Some(create_stream::<D>),
        destroy_stream: Some(destroy_stream::<D>),
        copy: Some(copy::<D>),
        synchronize_stream: Some(synchronize_stream::<D>),
        abort_stream: Some(abort_stream::<D>),
        create_event: Some(create_event::<D>),
        destroy_event: Some(destroy_event::<D>),
        record_event: Some(record_event::<D>),
        wait_event: Some(wait_event::<D>),
        query_event: Some(query_event::<D>),
        synchronize_event: Some(synchronize_event::<D>),
        export_memory: Some(export_memory::<D>),
        import_memory: Some(import_memory::<D>),
        close_import: Some(close_import::<D>),
        statistics: Some(statistics::<D>),
    }
}

/// Runs a call; a failure and a panic become a status and this thread's message.
pub(crate) fn guarded(body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(Failure::new(Kind::Internal, "the plugin panicked")));
    match outcome {
        Ok(()) => abi::OK,
        Err(failure) => {
            // a thread that is ending has no message
            let _ = LAST_ERROR.try_with(|last| failure.message().clone_into(&mut last.borrow_mut()));
            failure.kind() as i32
        }
    }
}

/// Runs a call of an open device.
///
/// # Safety
/// `device` must come from `open::<D>` and not have been closed.
unsafe fn with<D: Device>(device: *mut c_void, body: impl FnOnce(&D) -> Result<(), Failure>) -> i32 {
    // SAFETY: the caller vouches for it.
    guarded(|| body(unsafe { &*device.cast::<D>() }))
}

/// Runs a call that gives a number.
///
/// # Safety
/// As for [`with`], and `place` must be valid for a write.
unsafe fn giving<D: Device>(
    device: *mut c_void,
    place: *mut u64,
    body: impl FnOnce(&D) -> Result<u64, Failure>,
) -> i32 {
    // SAFETY: the caller vouches for both.
    unsafe {
        with(device, |device: &D| {
            *place = body(device)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn open<D: Device>(
    host: *const abi::Host,
    settings: *const abi::Setting,
    count: u64,
    device: *mut *mut c_void,
) -> i32 {
    guarded(|| {
        // SAFETY: the host passes its table.
        let log = unsafe { Log::copy(host) }
            .ok_or_else(|| Failure::new(Kind::Unsupported, "the host has another table"))?;
        // SAFETY: the host lends that many settings for the call.
        let pairs = unsafe { slice(settings, count) }
            .iter()
            // SAFETY: as above.
            .map(|setting| unsafe { (owned(setting.key), owned(setting.value)) })
            .collect();
        let opened = Box::new(D::open(log, Settings::new(pairs))?);
        // SAFETY: the host passes a place for the result.
        unsafe { *device = Box::into_raw(opened).cast() };
        Ok(())
    })
}

unsafe extern "C" fn close<D: Device>(device: *mut c_void) {
    guarded(|| {
        // SAFETY: it comes from `open`, and the host calls nothing afterwards.
        drop(unsafe { Box::from_raw(device.cast::<D>()) });
        Ok(())
    });
}

pub(crate) unsafe extern "C" fn last_error(text: *mut c_char, capacity: u64) -> u64 {
    let copied = LAST_ERROR.try_with(|last| {
        let last = last.borrow();
        let bytes = last.len().min(capacity as usize);
        // SAFETY: the host lends that many bytes.
        unsafe { std::ptr::copy_nonoverlapping(last.as_ptr(), text.cast::<u8>(), bytes) };
        bytes as u64
    });
    copied.unwrap_or(0)
}

unsafe extern "C" fn bind_thread<D: Device>(device: *mut c_void) -> i32 {
    // SAFETY: the host passes an open device.
    unsafe { with(device, D::bind_thread) }
}

unsafe extern "C" fn memory<D: Device>(
    device: *mut c_void,
    free_bytes: *mut u64,
    total_bytes: *mut u64,
) -> i32 {
    // SAFETY: the host passes an open device and places for the results.
    unsafe {
        with(device, |device: &D| {
            (*free_bytes, *total_bytes) = device.memory()?;
            Ok(())
        })
    }
}

unsafe extern "C" fn allocate<D: Device>(device: *mut c_void, bytes: u64, address: *mut u64) -> i32 {
    // SAFETY: the host passes an open device and a place for the result.
    unsafe { giving(device, address, |device: &D| device.allocate(bytes)) }
}

unsafe extern "C" fn release<D: Device>(device: *mut c_void, address: u64) -> i32 {
    // SAFETY: the host passes an open device and an address of it.
    unsafe { with(device, |device: &D| device.release(address)) }
}

unsafe extern "C" fn register_host<D: Device>(device: *mut c_void, address: *mut c_void, bytes: u64) -> i32 {
    // SAFETY: the host passes an open device and memory of its own.
    unsafe { with(device, |device: &D| device.register_host(address.cast(), bytes)) }
}

unsafe extern "C" fn unregister_host<D: Device>(device: *mut c_void, address: *mut c_void) -> i32 {
    // SAFETY: the host passes an open device and memory that it registered.
    unsafe { with(device, |device: &D| device.unregister_host(address.cast())) }
}

unsafe extern "C" fn create_stream<D: Device>(device: *mut c_void, stream: *mut u64) -> i32 {
    // SAFETY: the host passes an open device and a place for the result.
    unsafe { giving(device, stream, D::create_stream) }
}

unsafe extern "C" fn destroy_stream<D: Device>(device: *mut c_void, stream: u64) -> i32 {
    // SAFETY: the host passes an open device and a stream of it.
    unsafe { with(device, |device: &D| device.destroy_stream(stream)) }
}

unsafe extern "C" fn copy<D: Device>(
    device: *mut c_void,
    stream: u64,
    direction: u32,
    copies: *const abi::Copy,
    count: u64,
) -> i32 {
    // SAFETY: the host passes an open device and a stream of it, lends the array for the call and the memory for longer.
    unsafe {
        with(device, |device: &D| {
            let direction = match direction {
                abi::HOST_TO_DEVICE => Direction::HostToDevice,
                abi::DEVICE_TO_HOST => Direction::DeviceToHost,
                abi::DEVICE_TO_DEVICE => Direction::DeviceToDevice,
                other => return Err(Failure::new(Kind::InvalidInput, format!("direction {other}"))),
            };
            device.copy(stream, direction, slice(copies, count))
        })
    }
}

unsafe extern "C" fn synchronize_stream<D: Device>(device: *mut c_void, stream: u64, timeout_ms: u64) -> i32 {
    // SAFETY: the host passes an open device and a stream of it.
    unsafe { with(device, |device: &D| device.synchronize_stream(stream, timeout_ms)) }
}

unsafe extern "C" fn abort_stream<D: Device>(device: *mut c_void, stream: u64) -> i32 {
    // SAFETY: as above.
    unsafe { with(device, |device: &D| device.abort_stream(stream)) }
}

unsafe extern "C" fn create_event<D: Device>(device: *mut c_void, event: *mut u64) -> i32 {
    // SAFETY: the host passes an open device and a place for the result.
    unsafe { giving(device, event, D::create_event) }
}

unsafe extern "C" fn destroy_event<D: Device>(device: *mut c_void, event: u64) -> i32 {
    // SAFETY: the host passes an open device and an event of it.
    unsafe { with(device, |device: &D| device.destroy_event(event)) }
}

unsafe extern "C" fn record_event<D: Device>(device: *mut c_void, stream: u64, event: u64) -> i32 {
    // SAFETY: the host passes an open device, a stream and an event of it.
    unsafe { with(device, |device: &D| device.record_event(stream, event)) }
}

unsafe extern "C" fn wait_event<D: Device>(device: *mut c_void, stream: u64, event: u64) -> i32 {
    // SAFETY: the host passes an open device, a stream of it and a live event.
    unsafe { with(device, |device: &D| device.wait_event(stream, event)) }
}

unsafe extern "C" fn query_event<D: Device>(device: *mut c_void, event: u64, reached: *mut u32) -> i32 {
    // SAFETY: the host passes an open device, a live event and a place for the result.
    unsafe {
        with(device, |device: &D| {
            *reached = u32::from(device.query_event(event)?);
            Ok(())
        })
    }
}

unsafe extern "C" fn synchronize_event<D: Device>(device: *mut c_void, event: u64, timeout_ms: u64) -> i32 {
    // SAFETY: the host passes an open device and a live event.
    unsafe { with(device, |device: &D| device.synchronize_event(event, timeout_ms)) }
}

unsafe extern "C" fn export_memory<D: Device>(
    device: *mut c_void,
    address: u64,
    bytes: u64,
    key: *mut u8,
    key_bytes: *mut u64,
) -> i32 {
    // SAFETY: the host passes an open device, an allocation of it and room for the key.
    unsafe {
        with(device, |device: &D| {
            let made = device.export_memory(address, bytes)?;
            if made.len() as u64 > *key_bytes {
                let message = format!("a key of {} bytes, and room for {}", made.len(), *key_bytes);
                return Err(Failure::new(Kind::TooLarge, message));
            }
            std::ptr::copy_nonoverlapping(made.as_ptr(), key, made.len());
            *key_bytes = made.len() as u64;
            Ok(())
        })
    }
}

unsafe extern "C" fn import_memory<D: Device>(
    device: *mut c_void,
    key: *const u8,
    key_bytes: u64,
    address: *mut u64,
) -> i32 {
    // SAFETY: the host passes an open device, lends the key and passes a place for the result.
    unsafe {
        giving(device, address, |device: &D| {
            device.import_memory(slice(key, key_bytes))
        })
    }
}

unsafe extern "C" fn close_import<D: Device>(
    device: *mut c_void,
    address: u64,
    key: *const u8,
    key_bytes: u64,
) -> i32 {
    // SAFETY: the host passes an open device and what it imported, and lends the key.
    unsafe {
        with(device, |device: &D| {
            device.close_import(address, slice(key, key_bytes))
        })
    }
}

unsafe extern "C" fn statistics<D: Device>(
    device: *mut c_void,
    statistics: *mut abi::DeviceStatistics,
) -> i32 {
    // SAFETY: the host passes an open device, and a struct that says how many of its bytes are there.
    unsafe {
        with(device, |device: &D| {
            let given = (*statistics).struct_size;
            let mut filled = abi::DeviceStatistics::default();
            device.statistics(&mut filled);
            filled.struct_size = given;
            let bytes = size_of::<abi::DeviceStatistics>().min(given as usize);
            std::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), statistics.cast::<u8>(), bytes);
            Ok(())
        })
    }
}
