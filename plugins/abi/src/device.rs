//! The device's contract over a plugin.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvstored_core::device::{
    Copy, DeviceAddress, DeviceCounts, Direction, HostAddress, IpcKey, MemoryUsage, RawEvent, RawStream,
};
use kvstored_core::{Device, Error, ErrorKind, Result};
use kvstored_plugin::abi;

use crate::callbacks::owned;
use crate::device_functions::DeviceFunctions;
use crate::device_log::leak_table;
use crate::directory::PluginSettings;
use crate::library::{Loaded, PluginFacts};

/// The longest message of a plugin that is kept.
const MOST_MESSAGE_BYTES: usize = 1024;

thread_local! {
    /// The device that this thread is bound to, by its number.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

/// Numbers of devices, from 1.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

// both describe the same bytes, so that batches go through as they are
const _: () =
    assert!(size_of::<Copy>() == size_of::<abi::Copy>() && align_of::<Copy>() == align_of::<abi::Copy>());

/// A plugin as a device, named by the plugin and what it was told.
///
/// Calls go straight to the plugin, from whichever thread. One that gives back what can't be is asked nothing more.
pub struct PluginDevice {
    name: String,
    number: u64,
    facts: PluginFacts,
    functions: DeviceFunctions,
    device: *mut c_void,
    /// It broke the contract.
    out: AtomicBool,
}

// SAFETY: the interface allows every function of a device from any thread, many at a time.
unsafe impl Send for PluginDevice {}
// SAFETY: as above.
unsafe impl Sync for PluginDevice {}

impl PluginDevice {
    pub(crate) fn open(loaded: Loaded, settings: &PluginSettings) -> Result<Arc<Self>> {
        let Loaded { facts, device, .. } = loaded;
        let functions =
            device.ok_or_else(|| Error::invalid(format!("plugin {}: it has no device", facts.name)))?;
        let pairs: Vec<abi::Setting> = settings
            .settings
            .iter()
            .map(|(key, value)| abi::Setting {
                key: abi::Text::lend(key),
                value: abi::Text::lend(value),
            })
            .collect();
        let mut opened = Self {
            name: format!("Plugin({})", facts.name),
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            facts,
            functions,
            device: std::ptr::null_mut(),
            out: AtomicBool::new(false),
        };
        let host = leak_table(&opened.facts.name);
        let mut device = std::ptr::null_mut();
        // SAFETY: the table lives for ever; the settings are lent for the call.
        let status = unsafe { (functions.open)(host, pairs.as_ptr(), pairs.len() as u64, &raw mut device) };
        opened.outcome(status, "open")?;
        if device.is_null() {
            return Err(Error::invalid("the plugin opened no device").with("device", &opened.name));
        }
        opened.device = device;
        Ok(Arc::new(opened))
    }

    /// What the plugin says of itself.
    pub fn facts(&self) -> &PluginFacts {
        &self.facts
    }

    /// The plugin broke the contract: it's asked nothing more.
    fn breach(&self, what: &str) -> Error {
        if !self.out.swap(true, Ordering::AcqRel) {
            tracing::error!(
                device = self.name,
                what,
                "the plugin broke the contract and is not asked any more"
            );
        }
        self.refusal(what)
    }

    fn refusal(&self, what: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("the device is not asked: {what}"))
            .with("device", &self.name)
    }

    /// A status of the plugin as a result, with the plugin's words for it.
    fn outcome(&self, status: i32, what: &str) -> Result<()> {
        if status == abi::OK {
            return Ok(());
        }
        let known = u8::try_from(status - 1)
            .ok()
            .filter(|code| usize::from(*code) < ErrorKind::ALL.len());
        let Some(code) = known else {
            return Err(self.breach(&format!("{what} gave status {status}, which is none")));
        };
        let mut text = [0 as c_char; MOST_MESSAGE_BYTES];
        // SAFETY: the text has room for that many bytes.
        let length = unsafe { (self.functions.last_error)(text.as_mut_ptr(), text.len() as u64) };
        if length > text.len() as u64 {
            return Err(self.breach(&format!("its message has {length} bytes and room for fewer")));
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
        Err(Error::new(ErrorKind::from_code(code), message).with("device", &self.name))
    }

    /// Makes a call, unless the plugin is out, on a thread that the device knows.
    fn call(&self, what: &str, call: impl FnOnce(*mut c_void) -> i32) -> Result<()> {
        if self.out.load(Ordering::Acquire) {
            return Err(self.refusal("it broke the contract"));
        }
        if BOUND.get() != self.number {
            self.bind_thread()?;
        }
        self.outcome(call(self.device), what)
    }

    /// A call that gives a number other than 0.
    fn give(&self, what: &str, call: impl FnOnce(*mut c_void, *mut u64) -> i32) -> Result<u64> {
        let mut number = 0;
        self.call(what, |device| call(device, &raw mut number))?;
        if number == 0 {
            return Err(self.breach(&format!("{what} gave nothing")));
        }
        Ok(number)
    }

    fn unsupported<T>(&self, what: &str) -> Result<T> {
        Err(Error::new(ErrorKind::Unsupported, format!("the device can't {what}")).with("device", &self.name))
    }
}

/// A time for the plugin: at least a millisecond, so that a short one isn't none.
fn millis(timeout: Duration) -> u64 {
    (timeout.as_millis() as u64).max(1)
}

impl Device for PluginDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> Result<MemoryUsage> {
        let (mut free_bytes, mut total_bytes) = (0, 0);
        self.call("memory", |device| {
            // SAFETY: the device is open; the places are lent for the call.
            unsafe { (self.functions.memory)(device, &raw mut free_bytes, &raw mut total_bytes) }
        })?;
        Ok(MemoryUsage {
            free_bytes,
            total_bytes,
        })
    }

    fn bind_thread(&self) -> Result<()> {
        // SAFETY: the device is open.
        let status = unsafe { (self.functions.bind_thread)(self.device) };
        self.outcome(status, "bind_thread")?;
        BOUND.set(self.number);
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceAddress> {
        self.give("allocate", |device, address| {
            // SAFETY: the device is open; the place is lent for the call.
            unsafe { (self.functions.allocate)(device, bytes as u64, address) }
        })
        .map(DeviceAddress)
    }

    unsafe fn free(&self, address: DeviceAddress) -> Result<()> {
        // SAFETY: the device is open; the caller vouches for the address.
        self.call("release", |device| unsafe {
            (self.functions.release)(device, address.0)
        })
    }

    unsafe fn register_host(&self, address: HostAddress, bytes: usize) -> Result<()> {
        let Some(registering) = self.functions.registering else {
            return self.unsupported("register host memory");
        };
        self.call("register_host", |device| {
            // SAFETY: the device is open; the caller vouches for the memory.
            unsafe { (registering.register_host)(device, address.0 as *mut c_void, bytes as u64) }
        })
    }

    unsafe fn unregister_host(&self, address: HostAddress) -> Result<()> {
        let Some(registering) = self.functions.registering else {
            return self.unsupported("register host memory");
        };
        self.call("unregister_host", |device| {
            // SAFETY: as above.
            unsafe { (registering.unregister_host)(device, address.0 as *mut c_void) }
        })
    }

    fn create_stream(&self) -> Result<RawStream> {
        self.give("create_stream", |device, stream| {
            // SAFETY: the device is open; the place is lent for the call.
            unsafe { (self.functions.create_stream)(device, stream) }
        })
        .map(RawStream)
    }

    unsafe fn destroy_stream(&self, stream: RawStream) -> Result<()> {
        self.call("destroy_stream", |device| {
            // SAFETY: the device is open; the caller vouches for the stream.
            unsafe { (self.functions.destroy_stream)(device, stream.0) }
        })
    }

    unsafe fn copy(&self, stream: RawStream, direction: Direction, copies: &[Copy]) -> Result<()> {
        self.call("copy", |device| {
            let first = copies.as_ptr().cast::<abi::Copy>();
            // SAFETY: the device is open; the caller vouches for stream and ranges; the array is lent for the call, and
            // both types have the same three numbers in it.
            unsafe { (self.functions.copy)(device, stream.0, direction as u32, first, copies.len() as u64) }
        })
    }

    unsafe fn synchronize_stream(&self, stream: RawStream, timeout: Duration) -> Result<()> {
        self.call("synchronize_stream", |device| {
            // SAFETY: the device is open; the caller vouches for the stream.
            unsafe { (self.functions.synchronize_stream)(device, stream.0, millis(timeout)) }
        })
    }

    unsafe fn abort_stream(&self, stream: RawStream) -> Result<()> {
        let Some(abort) = self.functions.abort_stream else {
            return self.unsupported("abort a stream");
        };
        // SAFETY: the device is open; the caller vouches for the stream.
        self.call("abort_stream", |device| unsafe { abort(device, stream.0) })
    }

    fn create_event(&self) -> Result<RawEvent> {
        self.give("create_event", |device, event| {
            // SAFETY: the device is open; the place is lent for the call.
            unsafe { (self.functions.create_event)(device, event) }
        })
        .map(RawEvent)
    }

    unsafe fn destroy_event(&self, event: RawEvent) -> Result<()> {
        self.call("destroy_event", |device| {
            // SAFETY: the device is open; the caller vouches for the event.
            unsafe { (self.functions.destroy_event)(device, event.0) }
        })
    }

    unsafe fn record_event(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        self.call("record_event", |device| {
            // SAFETY: the device is open; the caller vouches for stream and event.
            unsafe { (self.functions.record_event)(device, stream.0, event.0) }
        })
    }

    unsafe fn wait_event(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        self.call("wait_event", |device| {
            // SAFETY: as above.
            unsafe { (self.functions.wait_event)(device, stream.0, event.0) }
        })
    }

    unsafe fn query_event(&self, event: RawEvent) -> Result<bool> {
        let mut reached = 0;
        self.call("query_event", |device| {
            // SAFETY: the device is open; the caller vouches for the event; the place is lent for the call.
            unsafe { (self.functions.query_event)(device, event.0, &raw mut reached) }
        })?;
        Ok(reached != 0)
    }

    unsafe fn synchronize_event(&self, event: RawEvent, timeout: Duration) -> Result<()> {
        self.call("synchronize_event", |device| {
            // SAFETY: the device is open; the caller vouches for the event.
            unsafe { (self.functions.synchronize_event)(device, event.0, millis(timeout)) }
        })
    }

    unsafe fn export_memory(&self, address: DeviceAddress, bytes: usize) -> Result<IpcKey> {
        let Some(sharing) = self.functions.sharing else {
            return self.unsupported("share memory");
        };
        let mut key = [0; abi::MOST_KEY_BYTES];
        let mut length = key.len() as u64;
        self.call("export_memory", |device| {
            // SAFETY: the device is open; the caller vouches for the allocation; the key has that much room.
            unsafe {
                (sharing.export_memory)(device, address.0, bytes as u64, key.as_mut_ptr(), &raw mut length)
            }
        })?;
        let key = key.get(..length as usize);
        key.ok_or_else(|| self.breach(&format!("a key of {length} bytes, more than there is room for")))
            .and_then(IpcKey::new)
    }

    fn import_memory(&self, key: &IpcKey) -> Result<DeviceAddress> {
        let Some(sharing) = self.functions.sharing else {
            return self.unsupported("share memory");
        };
        let key = key.as_bytes();
        self.give("import_memory", |device, address| {
            // SAFETY: the device is open; key and place are lent for the call.
            unsafe { (sharing.import_memory)(device, key.as_ptr(), key.len() as u64, address) }
        })
        .map(DeviceAddress)
    }

    unsafe fn close_import(&self, address: DeviceAddress, key: &IpcKey) -> Result<()> {
        let Some(sharing) = self.functions.sharing else {
            return self.unsupported("share memory");
        };
        let key = key.as_bytes();
        self.call("close_import", |device| {
            // SAFETY: the device is open; the caller vouches for the import; the key is lent for the call.
            unsafe { (sharing.close_import)(device, address.0, key.as_ptr(), key.len() as u64) }
        })
    }

    fn counts(&self) -> DeviceCounts {
        let mut told = abi::DeviceStatistics {
            struct_size: size_of::<abi::DeviceStatistics>() as u32,
            ..abi::DeviceStatistics::default()
        };
        let outcome = self.call("statistics", |device| {
            // SAFETY: the device is open; the struct is lent for the call and says its size.
            unsafe { (self.functions.statistics)(device, &raw mut told) }
        });
        if let Err(error) = outcome {
            tracing::debug!(%error, "no numbers of the device");
        }
        DeviceCounts {
            batch_calls: told.batch_calls,
            single_calls: told.single_calls,
            copies: told.copies,
            copied_bytes: told.copied_bytes,
        }
    }
}

impl Drop for PluginDevice {
    fn drop(&mut self) {
        if !self.device.is_null() && !self.out.load(Ordering::Acquire) {
            // SAFETY: the device is open, and nothing is called afterwards.
            unsafe { (self.functions.close)(self.device) }
        }
    }
}
