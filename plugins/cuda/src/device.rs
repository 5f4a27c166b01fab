//! The device's contract over the CUDA driver.

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_plugin::{Copy, Device, DeviceStatistics, Direction, Failure, Kind, Level, Log, Settings};
use libloading::Library;

use crate::batches::Copier;
use crate::failures::failure;
use crate::signal::{Signal, reached};
use crate::symbols::{
    EVENT_DISABLE_TIMING, Functions, HOST_REGISTER_PORTABLE, IPC_LAZY_PEER_ACCESS, IpcHandle, NOT_READY, OK,
    STREAM_NON_BLOCKING, Status,
};

const FILES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
/// A stream that has failed calls nobody back, so it's looked at now and then.
const GLANCE: Duration = Duration::from_millis(50);
/// How often an event is looked at.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// A GPU, by its primary context: the one that engines use too.
pub struct CudaDevice {
    functions: Functions,
    device: c_int,
    context: *mut c_void,
    copier: Copier,
}

// SAFETY: the context may be made current on any thread, and the driver takes calls from many at a time.
unsafe impl Send for CudaDevice {}
// SAFETY: as above.
unsafe impl Sync for CudaDevice {}

fn load(given: Option<&str>) -> Result<Functions, Failure> {
    let mut complaints = Vec::new();
    let candidates = given.map_or_else(|| FILES.to_vec(), |given| vec![given]);
    for candidate in candidates {
        // SAFETY: its initialisers run here; the operator has installed it, or named it.
        match unsafe { Library::new(candidate) } {
            Ok(library) => {
                // its threads and callbacks outlive any use that we know of
                let library = ManuallyDrop::new(library);
                // SAFETY: it's the driver's library by its name, and never unloaded.
                return unsafe { Functions::of(&library) }.map_err(|symbol| {
                    Failure::new(
                        Kind::Unsupported,
                        format!("{candidate} has no {symbol}: it's too old"),
                    )
                });
            }
            Err(error) => {
                // the loader's own reason says most
                let reason = std::error::Error::source(&error);
                complaints.push(reason.map_or_else(|| error.to_string(), ToString::to_string));
            }
        }
    }
    Err(Failure::new(
        Kind::Unavailable,
        format!("libcuda can't be loaded: {}", complaints.join("; ")),
    ))
}

impl CudaDevice {
    fn check(&self, what: &str, status: Status) -> Result<(), Failure> {
        if status == OK {
            return Ok(());
        }
        Err(failure(&self.functions, what, status))
    }

    fn give(&self, what: &str, call: impl FnOnce(*mut *mut c_void) -> Status) -> Result<u64, Failure> {
        let mut pointer = std::ptr::null_mut();
        self.check(what, call(&raw mut pointer))?;
        Ok(pointer as u64)
    }

    fn missing<T>(what: &str) -> Result<T, Failure> {
        Err(Failure::new(
            Kind::Unsupported,
            format!("{what} is not in this version of libcuda"),
        ))
    }

    fn start(&mut self, number: c_int) -> Result<c_int, Failure> {
        let mut devices = 0;
        // SAFETY: takes a number; the place is lent for the call.
        unsafe {
            self.check("cuInit", (self.functions.initialize)(0))?;
            self.check(
                "cuDeviceGetCount",
                (self.functions.device_count)(&raw mut devices),
            )?;
        }
        if !(0..devices).contains(&number) {
            let message = format!("setting device = {number}, and there are {devices}");
            return Err(Failure::new(Kind::InvalidInput, message));
        }
        let (mut context, mut handle) = (std::ptr::null_mut(), 0);
        // SAFETY: the places are lent for the calls.
        unsafe {
            self.check("cuDeviceGet", (self.functions.device)(&raw mut handle, number))?;
            self.check(
                "cuDevicePrimaryCtxRetain",
                (self.functions.retain_context)(&raw mut context, handle),
            )?;
        }
        (self.context, self.device) = (context, handle);
        self.bind_thread()?;
        Ok(devices)
    }
}

impl Device for CudaDevice {
    fn open(log: Log, settings: Settings) -> Result<Self, Failure> {
        settings.expect(&["device", "library"])?;
        let number: c_int = settings.parse("device", 0)?;
        let mut device = Self {
            functions: load(settings.get("library"))?,
            device: 0,
            context: std::ptr::null_mut(),
            copier: Copier::default(),
        };
        let devices = device.start(number)?;
        let (free, total) = device.memory()?;
        log.log(
            Level::Info,
            &format!("GPU {number} of {devices}: {free} of {total} bytes are free"),
        );
        Ok(device)
    }

    fn bind_thread(&self) -> Result<(), Failure> {
        // SAFETY: the context is retained.
        let status = unsafe { (self.functions.set_context)(self.context) };
        self.check("cuCtxSetCurrent", status)
    }

    fn memory(&self) -> Result<(u64, u64), Failure> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the places are lent for the call.
        let status = unsafe { (self.functions.memory_info)(&raw mut free, &raw mut total) };
        self.check("cuMemGetInfo", status)?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, Failure> {
        let mut address = 0;
        // SAFETY: the place is lent for the call.
        let status = unsafe { (self.functions.allocate)(&raw mut address, bytes as usize) };
        self.check("cuMemAlloc", status)?;
        Ok(address)
    }

    unsafe fn release(&self, address: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the address.
        self.check("cuMemFree", unsafe { (self.functions.free)(address) })
    }

    unsafe fn register_host(&self, address: *mut u8, bytes: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the memory.
        let status =
            unsafe { (self.functions.host_register)(address.cast(), bytes as usize, HOST_REGISTER_PORTABLE) };
        self.check("cuMemHostRegister", status)
    }

    unsafe fn unregister_host(&self, address: *mut u8) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the memory.
        let status = unsafe { (self.functions.host_unregister)(address.cast()) };
        self.check("cuMemHostUnregister", status)
    }

    fn create_stream(&self) -> Result<u64, Failure> {
        self.give("cuStreamCreate", |stream| {
            // SAFETY: the place is lent for the call.
            unsafe { (self.functions.create_stream)(stream, STREAM_NON_BLOCKING) }
        })
    }

    unsafe fn destroy_stream(&self, stream: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the stream.
        let status = unsafe { (self.functions.destroy_stream)(stream as *mut c_void) };
        self.check("cuStreamDestroy", status)
    }

    unsafe fn copy(&self, stream: u64, direction: Direction, copies: &[Copy]) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the stream and the ranges.
        unsafe {
            self.copier.copy(
                &self.functions,
                self.device,
                stream as *mut c_void,
                direction,
                copies,
            )
        }
    }

    unsafe fn synchronize_stream(&self, stream: u64, timeout_ms: u64) -> Result<(), Failure> {
        let stream = stream as *mut c_void;
        let (begin, timeout) = (now(), Duration::from_millis(timeout_ms));
        let signal = Arc::new(Signal::default());
        let lent = signal.lend();
        // SAFETY: the caller vouches for the stream; what is lent is used once, when the stream comes to it.
        let status = unsafe { (self.functions.launch_host_function)(stream, reached, lent) };
        if status != OK {
            // SAFETY: nobody has it.
            unsafe { Signal::take_back(lent) };
            return Err(failure(&self.functions, "cuLaunchHostFunc", status));
        }
        loop {
            let left = timeout.saturating_sub(now().duration_since(begin));
            let came = signal.wait(left.min(GLANCE));
            // SAFETY: the caller vouches for the stream.
            match unsafe { (self.functions.query_stream)(stream) } {
                OK => return Ok(()),
                // the function that tells us is itself the last of the stream for another moment
                NOT_READY if came => return Ok(()),
                NOT_READY if left.is_zero() => {
                    let message = format!("a stream was not done in {timeout_ms} ms");
                    return Err(Failure::new(Kind::TimedOut, message));
                }
                NOT_READY => {}
                status => return Err(failure(&self.functions, "the stream", status)),
            }
        }
    }

    fn create_event(&self) -> Result<u64, Failure> {
        self.give("cuEventCreate", |event| {
            // SAFETY: the place is lent for the call.
            unsafe { (self.functions.create_event)(event, EVENT_DISABLE_TIMING) }
        })
    }

    unsafe fn destroy_event(&self, event: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for the event.
        let status = unsafe { (self.functions.destroy_event)(event as *mut c_void) };
        self.check("cuEventDestroy", status)
    }

    unsafe fn record_event(&self, stream: u64, event: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for both.
        let status = unsafe { (self.functions.record_event)(event as *mut c_void, stream as *mut c_void) };
        self.check("cuEventRecord", status)
    }

    unsafe fn wait_event(&self, stream: u64, event: u64) -> Result<(), Failure> {
        // SAFETY: the caller vouches for both.
        let status = unsafe { (self.functions.wait_event)(stream as *mut c_void, event as *mut c_void, 0) };
        self.check("cuStreamWaitEvent", status)
    }

    unsafe fn query_event(&self, event: u64) -> Result<bool, Failure> {
        // SAFETY: the caller vouches for the event.
        match unsafe { (self.functions.query_event)(event as *mut c_void) } {
            OK => Ok(true),
            NOT_READY => Ok(false),
            status => Err(failure(&self.functions, "cuEventQuery", status)),
        }
    }

    unsafe fn synchronize_event(&self, event: u64, timeout_ms: u64) -> Result<(), Failure> {
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

    unsafe fn export_memory(&self, address: u64, _bytes: u64) -> Result<Vec<u8>, Failure> {
        let Some(export) = self.functions.export_memory else {
            return Self::missing("cuIpcGetMemHandle");
        };
        let mut handle = IpcHandle { bytes: [0; 64] };
        // SAFETY: the caller vouches for the memory; the place is lent for the call.
        let status = unsafe { export(&raw mut handle, address) };
        self.check("cuIpcGetMemHandle", status)?;
        Ok(handle.bytes.to_vec())
    }

    fn import_memory(&self, key: &[u8]) -> Result<u64, Failure> {
        let Some(import) = self.functions.import_memory else {
            return Self::missing("cuIpcOpenMemHandle");
        };
        let bytes = <[u8; 64]>::try_from(key).map_err(|_| {
            Failure::new(
                Kind::InvalidInput,
                format!("a key of {} bytes and not 64", key.len()),
            )
        })?;
        let mut address = 0;
        // SAFETY: the place is lent for the call.
        let status = unsafe { import(&raw mut address, IpcHandle { bytes }, IPC_LAZY_PEER_ACCESS) };
        self.check("cuIpcOpenMemHandle", status)?;
        Ok(address)
    }

    unsafe fn close_import(&self, address: u64, _key: &[u8]) -> Result<(), Failure> {
        let Some(close) = self.functions.close_memory else {
            return Self::missing("cuIpcCloseMemHandle");
        };
        // SAFETY: the caller vouches for the import.
        self.check("cuIpcCloseMemHandle", unsafe { close(address) })
    }

    fn statistics(&self, statistics: &mut DeviceStatistics) {
        self.copier.fill(statistics);
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        if !self.context.is_null() {
            // SAFETY: retained once, and released once; nothing of the device is used afterwards.
            unsafe { (self.functions.release_context)(self.device) };
        }
    }
}

#[allow(clippy::disallowed_methods)] // a plugin is given no clock
fn now() -> Instant {
    Instant::now()
}
