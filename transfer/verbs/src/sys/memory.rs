//! Protection domains and registered memory.

use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result};

use super::device::Device;
use super::last_error;
use super::layout::{ACCESS_BIND_WINDOW, ACCESS_LOCAL_WRITE, RawDomain, RawRegion};

const ALIGNMENT: usize = 4096;

/// A protection domain: registrations, windows and queue pairs work together only within one.
pub struct Domain {
    device: Arc<Device>,
    raw: NonNull<RawDomain>,
}

// SAFETY: the library's objects may be used from any thread, and several at once.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    /// A new one.
    pub fn new(device: &Arc<Device>) -> Result<Arc<Self>> {
        // SAFETY: the context is open.
        let raw = unsafe { (device.library().alloc_pd)(device.context().as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("can't make a protection domain"))?;
        Ok(Arc::new(Self {
            device: device.clone(),
            raw,
        }))
    }

    /// The device it's on.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn raw(&self) -> NonNull<RawDomain> {
        self.raw
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: everything made in the domain holds it, so that nothing is left.
        if unsafe { (self.device.library().dealloc_pd)(self.raw.as_ptr()) } != 0 {
            tracing::warn!("a protection domain can't be freed");
        }
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Domain")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Memory that the device may touch for this process. Peers may not: that takes a [`super::Window`].
pub struct Registration {
    domain: Arc<Domain>,
    raw: NonNull<RawRegion>,
    address: u64,
    length: u64,
    /// Memory of its own, freed after it's let go.
    _memory: Option<Memory>,
}

// SAFETY: the library's objects may be used from any thread, and several at once; the memory itself is never referenced.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers memory, which pins it. Fails with `InvalidInput` for none, and as the kernel says, for instance with
    /// `NoSpace` past the limit of locked memory.
    ///
    /// # Safety
    /// The memory must be mapped for reading and writing until the last handle is gone, and nothing may form references to
    /// it while the device is at work on it.
    pub unsafe fn new(domain: &Arc<Domain>, address: *mut u8, length: usize) -> Result<Arc<Self>> {
        // SAFETY: the caller vouches for it.
        unsafe { Self::with_memory(domain, address, length, None) }
    }

    /// # Safety
    /// As for [`Registration::new`], unless the memory is given.
    unsafe fn with_memory(
        domain: &Arc<Domain>,
        address: *mut u8,
        length: usize,
        memory: Option<Memory>,
    ) -> Result<Arc<Self>> {
        let start = address.expose_provenance();
        if start == 0 || length == 0 || start.checked_add(length).is_none() {
            return Err(Error::invalid(format!("memory of {length} bytes at {start:#x}")));
        }
        let access = ACCESS_LOCAL_WRITE | ACCESS_BIND_WINDOW;
        // SAFETY: the domain is alive, and the caller vouches for the memory.
        let raw =
            unsafe { (domain.device.library().reg_mr)(domain.raw.as_ptr(), address.cast(), length, access) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            let error = std::io::Error::last_os_error();
            let message = format!("can't register {length} bytes for RDMA: {error}");
            match error.raw_os_error() {
                Some(libc::ENOMEM | libc::EAGAIN) => Error::new(ErrorKind::NoSpace, message),
                _ => Error::from_io(error, message),
            }
        })?;
        Ok(Arc::new(Self {
            domain: domain.clone(),
            raw,
            address: start as u64,
            length: length as u64,
            _memory: memory,
        }))
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The domain it was registered in.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// A range of it. Fails with `InvalidInput` outside.
    pub fn slice(self: &Arc<Self>, offset: u64, length: u64) -> Result<Slice> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(Slice {
                registration: self.clone(),
                address: self.address + offset,
                length,
            }),
            _ => Err(Error::invalid(format!(
                "bytes {offset}+{length} are outside a registration of {} bytes",
                self.length
            ))),
        }
    }

    pub(super) fn raw(&self) -> NonNull<RawRegion> {
        self.raw
    }

    /// The key that the device knows it by.
    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: the region lives as long as this.
        unsafe { (*self.raw.as_ptr()).local_key }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: work requests and windows that need it hold it, so that none is left.
        let code = unsafe { (self.domain.device.library().dereg_mr)(self.raw.as_ptr()) };
        if code != 0 {
            tracing::error!(
                code,
                bytes = self.length,
                "memory registered for RDMA can't be let go"
            );
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Registration")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// A range of registered memory, which stays registered while this lives.
#[derive(Clone, Debug)]
pub struct Slice {
    registration: Arc<Registration>,
    address: u64,
    length: u64,
}

impl Slice {
    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// A part of it. Fails with `InvalidInput` outside.
    pub fn part(&self, offset: u64, length: u64) -> Result<Self> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Error::invalid(format!(
                "bytes {offset}+{length} are outside a slice of {} bytes",
                self.length
            )));
        }
        Ok(Self {
            registration: self.registration.clone(),
            address: self.address + offset,
            length,
        })
    }

    /// What it's a range of.
    pub fn registration(&self) -> &Arc<Registration> {
        &self.registration
    }
}

struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it only owns an allocation.
unsafe impl Send for Memory {}
// SAFETY: as above; its bytes are only copied through raw pointers.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Memory of its own, zeroed, page-aligned and registered. It's freed when neither the buffer nor a slice of it is left.
pub struct Buffer {
    registration: Arc<Registration>,
}

impl Buffer {
    /// Allocates and registers.
    pub fn new(domain: &Arc<Domain>, length: usize) -> Result<Self> {
        let layout = Layout::from_size_align(length.max(1), ALIGNMENT)
            .map_err(|_| Error::invalid(format!("a buffer of {length} bytes")))?;
        // SAFETY: the layout has a size.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
            .ok_or_else(|| Error::new(ErrorKind::NoSpace, format!("no memory for {length} bytes")))?;
        let memory = Some(Memory { base, layout });
        // SAFETY: the registration owns the memory, which only raw copies touch.
        let registration =
            unsafe { Registration::with_memory(domain, base.as_ptr(), layout.size(), memory)? };
        Ok(Self { registration })
    }

    /// Its registration.
    pub fn registration(&self) -> &Arc<Registration> {
        &self.registration
    }

    /// Copies bytes out. Fails with `InvalidInput` outside.
    pub fn read(&self, offset: u64, destination: &mut [u8]) -> Result<()> {
        let source = self.at(offset, destination.len())?;
        // SAFETY: the range was checked, and no slice of the program's overlaps the buffer.
        unsafe { std::ptr::copy_nonoverlapping(source, destination.as_mut_ptr(), destination.len()) };
        Ok(())
    }

    /// Copies bytes in. Fails with `InvalidInput` outside.
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<()> {
        let destination = self.at(offset, source.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), destination, source.len()) };
        Ok(())
    }

    fn at(&self, offset: u64, length: usize) -> Result<*mut u8> {
        let slice = self.registration.slice(offset, length as u64)?;
        Ok(std::ptr::with_exposed_provenance_mut(slice.address as usize))
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Buffer")
            .field("length", &self.registration.length)
            .finish_non_exhaustive()
    }
}
