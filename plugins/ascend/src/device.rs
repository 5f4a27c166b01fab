//! The device's contract over `libascendcl`.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::{Duration, Instant};

use kvstored_plugin::{Copy, Device, DeviceStatistics, Direction, Failure, Kind, Level, Log, Settings};

use crate::batches::Copier;
use crate::failures::failure;
use crate::library;
use crate::symbols::{
    EVENT_PROGRESS, EVENT_REACHED, EVENT_SYNC, EXPORT_WITHOUT_PID, Functions, HOST_REGISTER_MAPPED,
    HOST_REGISTER_PINNED, KEY_BYTES, MALLOC_HUGE_FIRST, MEMORY_HBM, OK, STREAM_FAST_LAUNCH, STREAM_FAST_SYNC,
    Status,
};

/// How often an event is looked at where the library can't wait for it with a timeout.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// An NPU.
pub struct AscendDevice {
    pub(crate) functions: Functions,
    pub(crate) number: u32,
    pub(crate) copier: Copier,
}

impl AscendDevice {
    fn check(&self, what: &str, status: Status) -> Result<(), Failure> {
        if status == OK {
            return Ok(());
        }
        Err(failure(&self.functions, what, status))
    }

    /// Calls that give a pointer.
    fn give(&self, what: &str, call: impl FnOnce(*mut *mut c_void) -> Status) -> Result<u64, Failure> {
        let mut pointer = std::ptr::null_mut();
        self.check(what, call(&raw mut pointer))?;
        Ok(pointer as u64)
    }

    fn missing<T>(what: &str) -> Result<T, Failure> {
        Err(Failure::new(
            Kind::Unsupported,
            format!("{what} is not in this version of libascendcl"),
        ))
    }
}

/// The library takes 32 bits; a longer time is the longest.
fn millis(timeout_ms: u64) -> i32 {
    timeout_ms.min(i32::MAX as u64) as i32
}

fn key_text(key: &[u8]) -> Result<CString, Failure> {
    CString::new(key).map_err(|_| Failure::new(Kind::InvalidInput, "a key with a zero in it"))
}

impl Device for AscendDevice {
    fn open(log: Log, settings: Settings) -> Result<Self, Failure> {
        settings.expect(&["device", "library"])?;
        let number: u32 = settings.parse("device", 0)?;
        let functions = library::load(settings.get("library"))?;
        let device = Self {
            functions,
            number,
            copier: Copier::default(),
        };
        let mut devices = 0;
        // SAFETY: the place is lent for the call.
        let status = unsafe { (functions.device_count)(&raw mut devices) };
        device.check("aclrtGetDeviceCount", status)?;
        if number >= devices {
            let message = format!("setting device = {number}, and there are {devices}");
            return Err(Failure::new(Kind::InvalidInput, message));
        }
        device.bind_thread()?;
        let (free, total) = device.memory()?;
        log.log(
            Level::Info,
            &format!("NPU {number} of {devices}: {free} of {total} bytes are free"),
        );
        Ok(device)
    }

    fn bind_thread(&self) -> Result<(), Failure> {
        // asked for each time: the engine may have made another one this thread's since
        // SAFETY: takes a number.
        let status = unsafe { (self.functions.set_device)(self.number as i32) };
        self.check("aclrtSetDevice", status)
    }

    fn memory(&self) -> Result<(u64, u64), Failure> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the places are lent for the call.
        let status = unsafe { (self.functions.memory_info)(MEMORY_HBM, &raw mut free, &raw mut total) };
        self.check("aclrtGetMemInfo", status)?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, Failure> {
        self.give("aclrtMalloc", |pointer| {
            // SAFETY: the place is lent for the call.
            unsafe { (self.functions.malloc)(pointer, bytes as usize, MALLOC_HUGE_FIRST) }
        })
    }

    unsafe fn release(&self, address: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the address.
        self.check("aclrtFree", unsafe {
            (self.functions.free)(address as *mut c_void)
        })
    }

    unsafe fn register_host(&self, address: *mut u8, bytes: u64) -> Result<(), Failure> {
        let address = address.cast();
        if let Some(register) = self.functions.host_register_v2 {
            // SAFETY: the caller vouches for the memory.
            let status = unsafe { register(address, bytes, HOST_REGISTER_MAPPED | HOST_REGISTER_PINNED) };
            return self.check("aclrtHostRegisterV2", status);
        }
        let Some(register) = self.functions.host_register else {
            return Self::missing("aclrtHostRegister");
        };
        self.give("aclrtHostRegister", |mapped| {
            // SAFETY: the caller vouches for the memory; 0 maps it for the device.
            unsafe { register(address, bytes, 0, mapped) }
        })
        .map(drop)
    }

    unsafe fn unregister_host(&self, address: *mut u8) -> Result<(), Failure> {
        let Some(unregister) = self.functions.host_unregister else {
            return Self::missing("aclrtHostUnregister");
        };
        // SAFETY: the caller vouches for the memory.
        self.check("aclrtHostUnregister", unsafe { unregister(address.cast()) })
    }

    fn create_stream(&self) -> Result<u64, Failure> {
        if let Some(create) = self.functions.create_stream_with_config {
            return self.give("aclrtCreateStreamWithConfig", |stream| {
                // SAFETY: the place is lent for the call.
                unsafe { create(stream, 0, STREAM_FAST_LAUNCH | STREAM_FAST_SYNC) }
            });
        }
        let Some(create) = self.functions.create_stream else {
            return Self::missing("aclrtCreateStream");
        };
        // SAFETY: the place is lent for the call.
        self.give("aclrtCreateStream", |stream| unsafe { create(stream) })
    }

    unsafe fn destroy_stream(&self, stream: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the stream.
        let status = unsafe { (self.functions.destroy_stream)(stream as *mut c_void) };
        self.check("aclrtDestroyStream", status)
    }

    unsafe fn copy(&self, stream: u64, direction: Direction, copies: &[Copy]) -> Result<(), Failure> {
        let stream = stream as *mut c_void;
        // SAFETY: the caller vouches for the stream and the ranges.
        unsafe {
            self.copier
                .copy(&self.functions, self.number, stream, direction, copies)
        }
    }

    unsafe fn synchronize_stream(&self, stream: u64, timeout_ms: u64) -> Result<(), Failure> {
        let stream = stream as *mut c_void;
        // SAFETY: the caller vouches for the stream.
        let status = unsafe { (self.functions.synchronize_stream)(stream, millis(timeout_ms)) };
        self.check("aclrtSynchronizeStreamWithTimeout", status)
    }

    unsafe fn abort_stream(&self, stream: u64) -> Result<(), Failure> {
        let Some(abort) = self.functions.abort_stream else {
            return Self::missing("aclrtStreamAbort");
        };
        // SAFETY: the caller vouches for the stream.
        self.check("aclrtStreamAbort", unsafe { abort(stream as *mut c_void) })
    }

    fn create_event(&self) -> Result<u64, Failure> {
        let flags = EVENT_SYNC | EVENT_PROGRESS;
        let create = self.functions.create_event_ex.or(self.functions.create_event);
        let Some(create) = create else {
            return Self::missing("aclrtCreateEventWithFlag");
        };
        // SAFETY: the place is lent for the call.
        self.give("aclrtCreateEventWithFlag", |event| unsafe {
            create(event, flags)
        })
    }

    unsafe fn destroy_event(&self, event: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the event.
        let status = unsafe { (self.functions.destroy_event)(event as *mut c_void) };
        self.check("aclrtDestroyEvent", status)
    }

    unsafe fn record_event(&self, stream: u64, event: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for both.
        let status = unsafe { (self.functions.record_event)(event as *mut c_void, stream as *mut c_void) };
        self.check("aclrtRecordEvent", status)
    }

    unsafe fn wait_event(&self, stream: u64, event: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for both.
        let status = unsafe { (self.functions.wait_event)(stream as *mut c_void, event as *mut c_void) };
        self.check("aclrtStreamWaitEvent", status)
    }

    unsafe fn query_event(&self, event: u64) -> Result<bool, Failure> {
        let mut status_of_event: c_int = 0;
        // SAFETY: the caller vouches for the event; the place is lent for the call.
        let status = unsafe { (self.functions.query_event)(event as *mut c_void, &raw mut status_of_event) };
        self.check("aclrtQueryEventStatus", status)?;
        Ok(status_of_event == EVENT_REACHED)
    }

    unsafe fn synchronize_event(&self, event: u64, timeout_ms: u64) -> Result<(), Failure> {
        if let Some(synchronize) = self.functions.synchronize_event {
            // SAFETY: the caller vouches for the event.
            let status = unsafe { synchronize(event as *mut c_void, millis(timeout_ms)) };
            return self.check("aclrtSynchronizeEventWithTimeout", status);
        }
        let begin = now();
        // SAFETY: the caller vouches for the event.
        while !unsafe { self.query_event(event) }? {
            if now().duration_since(begin) >= Duration::from_millis(timeout_ms) {
                let message = format!("an event was not reached in {timeout_ms} ms");
                return Err(Failure::new(Kind::TimedOut, message));
            }
            std::thread::park_timeout(LOOK_INTERVAL);
        }
        Ok(())
    }

    unsafe fn export_memory(&self, address: u64, bytes: u64) -> Result<Vec<u8>, Failure> {
        let Some(export) = self.functions.export_key else {
            return Self::missing("aclrtIpcMemGetExportKey");
        };
        let mut key = [0 as c_char; KEY_BYTES];
        // SAFETY: the caller vouches for the memory; the key has that much room.
        let status = unsafe {
            export(
                address as *mut c_void,
                bytes as usize,
                key.as_mut_ptr(),
                key.len(),
                EXPORT_WITHOUT_PID,
            )
        };
        self.check("aclrtIpcMemGetExportKey", status)?;
        let text = key.iter().take_while(|byte| **byte != 0);
        Ok(text.map(|byte| *byte as u8).collect())
    }

    fn import_memory(&self, key: &[u8]) -> Result<u64, Failure> {
        let Some(import) = self.functions.import_key else {
            return Self::missing("aclrtIpcMemImportByKey");
        };
        let key = key_text(key)?;
        self.give("aclrtIpcMemImportByKey", |address| {
            // SAFETY: place and key are lent for the call.
            unsafe { import(address, key.as_ptr(), 0) }
        })
    }

    unsafe fn close_import(&self, _address: u64, key: &[u8]) -> Result<(), Failure> {
        let Some(close) = self.functions.close_key else {
            return Self::missing("aclrtIpcMemClose");
        };
        let key = key_text(key)?;
        // SAFETY: the key is lent for the call; the caller vouches that nothing uses the memory.
        self.check("aclrtIpcMemClose", unsafe { close(key.as_ptr()) })
    }

    fn statistics(&self, statistics: &mut DeviceStatistics) {
        self.copier.counts.fill(statistics);
    }
}

#[allow(clippy::disallowed_methods)] // a plugin is given no clock
fn now() -> Instant {
    Instant::now()
}
