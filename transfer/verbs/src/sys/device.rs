//! Devices, their ports, and what the kernel reports of them.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};

use super::layout::{
    AsyncEvent, CAPABILITY_WINDOW_2A, CAPABILITY_WINDOW_2B, DeviceAttributes, EVENT_DEVICE_FATAL,
    EVENT_PORT_ERROR, LAYER_ETHERNET, PORT_ACTIVE, PortAttributes, RawContext, RawDevice,
};
use super::library::Library;
use super::{check, last_error};

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Work requests of one queue.
    pub work_requests: u32,
    /// Completions of one completion queue.
    pub completions: u32,
    /// RDMA reads by peers that one queue pair answers at once.
    pub reads_in: u8,
    /// RDMA reads of peers' memory that one queue pair has under way at once.
    pub reads_out: u8,
    /// Memory windows of type 2, which hold for one queue pair and end at once; 0 where there are none.
    pub windows: u32,
    /// Ports, counted from 1.
    pub ports: u8,
}

/// How a port is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Whether its link is up.
    pub is_active: bool,
    /// Whether it's Ethernet (RoCE) and not InfiniBand.
    pub is_ethernet: bool,
    /// The largest packet, as the ABI numbers them: 1 for 256 bytes to 5 for 4096.
    pub mtu: u8,
    /// Its address on an InfiniBand fabric.
    pub lid: u16,
    /// Entries of its table of GIDs.
    pub gids: u32,
}

/// Something that the kernel reports of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The device is gone, with all that was made on it.
    Fatal,
    /// A port's link went down.
    PortDown,
    /// Something that needs no answer here: queue pairs' own errors come as completions too.
    Other,
}

/// An open device.
pub struct Device {
    library: &'static Library,
    context: NonNull<RawContext>,
    name: String,
}

// SAFETY: the library's objects may be used from any thread, and several at once.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// The list of devices, freed when dropped.
struct List {
    library: &'static Library,
    first: *mut *mut RawDevice,
    count: usize,
}

impl List {
    fn get() -> Result<Self> {
        let library = Library::get()?;
        let mut count = 0;
        // SAFETY: the count is valid for writing.
        let first = unsafe { (library.get_device_list)(&raw mut count) };
        if first.is_null() {
            let error = std::io::Error::last_os_error();
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("no RDMA devices: {error}"),
            ));
        }
        let count = usize::try_from(count).unwrap_or(0);
        Ok(Self {
            library,
            first,
            count,
        })
    }

    fn devices(&self) -> impl Iterator<Item = (*mut RawDevice, String)> + '_ {
        (0..self.count).map(|index| {
            // SAFETY: the list has that many entries and lives as long as this.
            let device = unsafe { *self.first.add(index) };
            // SAFETY: the device is one of the list; its name ends in a zero and lives as long.
            let name = unsafe { CStr::from_ptr((self.library.get_device_name)(device)) };
            (device, name.to_string_lossy().into_owned())
        })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the list came from the library and is freed once. Opened devices stay.
        unsafe { (self.library.free_device_list)(self.first) }
    }
}

impl Device {
    /// The names of all devices. Fails with `Unavailable` without the library or the kernel's part.
    pub fn names() -> Result<Vec<String>> {
        Ok(List::get()?.devices().map(|(_, name)| name).collect())
    }

    /// Opens a device. Fails with `NotFound` when there is none of that name.
    pub fn open(name: &str) -> Result<Arc<Self>> {
        let list = List::get()?;
        let found = list.devices().find(|(_, candidate)| candidate == name);
        let (device, name) = found
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such RDMA device").with("device", name))?;
        // SAFETY: the device is one of the list, which still lives.
        let context = NonNull::new(unsafe { (list.library.open_device)(device) })
            .ok_or_else(|| last_error("can't open an RDMA device").with("device", &name))?;
        let device = Self {
            library: list.library,
            context,
            name,
        };
        // an event that isn't there must not hold up the thread that looks
        let flags =
            rustix::fs::fcntl_getfl(&device).map_err(|errno| Error::from_io(errno.into(), "fcntl"))?;
        rustix::fs::fcntl_setfl(&device, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(|errno| Error::from_io(errno.into(), "fcntl"))?;
        Ok(Arc::new(device))
    }

    /// Its name, as under `/sys/class/infiniband`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn library(&self) -> &'static Library {
        self.library
    }

    pub(super) fn context(&self) -> NonNull<RawContext> {
        self.context
    }

    /// What it can do.
    pub fn limits(&self) -> Result<Limits> {
        // SAFETY: zeros are a value of these plain numbers.
        let mut attributes: DeviceAttributes = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open and the structure has the library's size.
        let code = unsafe { (self.library.query_device)(self.context.as_ptr(), &raw mut attributes) };
        check(code, "can't ask an RDMA device")?;
        let number = |value: i32| u32::try_from(value).unwrap_or(0);
        let reads = |value: i32| u8::try_from(value.clamp(0, 128)).unwrap_or(0);
        let has_windows = attributes.capabilities & (CAPABILITY_WINDOW_2A | CAPABILITY_WINDOW_2B) != 0;
        Ok(Limits {
            work_requests: number(attributes.max_work_requests),
            completions: number(attributes.max_completions),
            reads_in: reads(attributes.max_reads_in),
            reads_out: reads(attributes.max_reads_out),
            windows: if has_windows {
                number(attributes.max_windows)
            } else {
                0
            },
            ports: attributes.ports,
        })
    }

    /// How a port is. Ports count from 1.
    pub fn port(&self, number: u8) -> Result<Port> {
        // SAFETY: zeros are a value of these plain numbers.
        let mut attributes: PortAttributes = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open and the structure is at least as long as what the library writes.
        let code = unsafe { (self.library.query_port)(self.context.as_ptr(), number, &raw mut attributes) };
        check(code, "can't ask an RDMA port").map_err(|error| error.with("port", number))?;
        Ok(Port {
            is_active: attributes.state == PORT_ACTIVE,
            is_ethernet: attributes.link_layer == LAYER_ETHERNET,
            mtu: u8::try_from(attributes.active_mtu).unwrap_or(0),
            lid: attributes.lid,
            gids: u32::try_from(attributes.gids).unwrap_or(0),
        })
    }

    /// An entry of a port's table of GIDs; zeros where it's empty.
    pub fn gid(&self, port: u8, index: u8) -> Result<[u8; 16]> {
        let mut gid = [0; 16];
        // SAFETY: the context is open and a GID is 16 bytes.
        let code =
            unsafe { (self.library.query_gid)(self.context.as_ptr(), port, i32::from(index), &raw mut gid) };
        check(code, "can't read a GID")?;
        Ok(gid)
    }

    /// Takes the next event that the kernel reports, if there is one. The device's descriptor is readable when there is.
    pub fn take_event(&self) -> Option<DeviceEvent> {
        // SAFETY: zeros are a value of it: a null pointer and a number.
        let mut event: AsyncEvent = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, and its descriptor doesn't block.
        if unsafe { (self.library.get_async_event)(self.context.as_ptr(), &raw mut event) } != 0 {
            return None;
        }
        let kind = match event.kind {
            EVENT_DEVICE_FATAL => DeviceEvent::Fatal,
            EVENT_PORT_ERROR => DeviceEvent::PortDown,
            _ => DeviceEvent::Other,
        };
        // SAFETY: the event came from the call above, and is acknowledged once. Until it is, what it concerns can't go.
        unsafe { (self.library.ack_async_event)(&raw mut event) };
        Some(kind)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open, and its descriptor with it, as long as this lives.
        unsafe { BorrowedFd::borrow_raw((*self.context.as_ptr()).event_fd) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything made on the device holds it, so that nothing is left.
        if unsafe { (self.library.close_device)(self.context.as_ptr()) } != 0 {
            tracing::warn!(device = self.name, "an RDMA device can't be closed");
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Device")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
