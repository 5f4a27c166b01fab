//! Memory: the device's, which the host can't touch, and the host's that is known.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{MemfdFlags, Mode, OFlags, fstat, ftruncate, memfd_create, open};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::faults::MEMORY_MIB;
use crate::runtime::current;
use crate::statuses::{OK, OUT_OF_MEMORY, PARAMETER, Status, status};

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Allocated on a device.
    Device,
    /// Of another process, on a device.
    Imported,
    /// The host's, known by registration or allocated here.
    Host,
}

/// A range of addresses.
pub(crate) struct Region {
    pub kind: Kind,
    device: u32,
    length: usize,
    /// Where its bytes can be reached.
    readable: usize,
    file: Option<OwnedFd>,
}

#[derive(Default)]
struct Regions {
    by_address: BTreeMap<usize, Region>,
    used: BTreeMap<u32, u64>,
}

static REGIONS: RwLock<Option<Regions>> = RwLock::new(None);

fn regions() -> RwLockReadGuard<'static, Option<Regions>> {
    REGIONS.read().unwrap_or_else(PoisonError::into_inner)
}

fn change() -> RwLockWriteGuard<'static, Option<Regions>> {
    REGIONS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Looks addresses up, several under one lock.
pub(crate) struct Lookup(RwLockReadGuard<'static, Option<Regions>>);

impl Lookup {
    pub fn new() -> Self {
        Self(regions())
    }

    /// Where the bytes of a range can be reached, and what they are; `None` for the kind of memory that isn't known. Fails
    /// for a range that leaves its region.
    pub fn find(&self, address: usize, bytes: usize) -> Result<(usize, Option<Kind>), Status> {
        let known = self.0.as_ref().and_then(|regions| {
            let (base, region) = regions.by_address.range(..=address).next_back()?;
            (address < base + region.length).then_some((*base, region))
        });
        let Some((base, region)) = known else {
            return Ok((address, None));
        };
        let offset = address - base;
        if offset.checked_add(bytes).is_none_or(|end| end > region.length) {
            return Err(PARAMETER);
        }
        Ok((region.readable + offset, Some(region.kind)))
    }
}

/// Maps a file twice: once so that nobody can touch it, and once for copies.
fn map_device(file: OwnedFd, length: usize, kind: Kind, device: u32) -> Result<usize, Status> {
    let map = |protection| {
        // SAFETY: a fresh mapping touches no existing memory.
        unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
    };
    let address = map(ProtFlags::empty()).map_err(|_| OUT_OF_MEMORY)? as usize;
    let readable = map(ProtFlags::READ | ProtFlags::WRITE).map_err(|_| OUT_OF_MEMORY)? as usize;
    // SAFETY: advice about our own fresh mapping.
    let _ = unsafe { madvise(readable as *mut c_void, length, Advice::LinuxHugepage) };
    let region = Region {
        kind,
        device,
        length,
        readable,
        file: Some(file),
    };
    change()
        .get_or_insert_default()
        .by_address
        .insert(address, region);
    Ok(address)
}

fn unmap(address: usize, region: &Region) {
    if region.file.is_some() {
        for base in [address, region.readable] {
            // SAFETY: mapped above with this length; the table doesn't have it any more.
            let _ = unsafe { munmap(base as *mut c_void, region.length) };
        }
    }
}

fn take(address: usize, kind: Kind) -> Option<Region> {
    let mut regions = change();
    let regions = regions.as_mut()?;
    if regions.by_address.get(&address)?.kind != kind {
        return None;
    }
    let region = regions.by_address.remove(&address)?;
    if kind == Kind::Device
        && let Some(used) = regions.used.get_mut(&region.device)
    {
        *used -= region.length as u64;
    }
    Some(region)
}

/// Free and total bytes of this thread's device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtGetMemInfo(_kind: c_int, free: *mut usize, total: *mut usize) -> Status {
    status(current().map(|device| {
        let all = MEMORY_MIB.get() << 20;
        let used = regions()
            .as_ref()
            .and_then(|regions| regions.used.get(&device).copied())
            .unwrap_or(0);
        // SAFETY: the caller passes places for the results.
        unsafe { (*free, *total) = (all.saturating_sub(used) as usize, all as usize) };
    }))
}

/// Allocates on this thread's device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMalloc(address: *mut *mut c_void, bytes: usize, _policy: c_int) -> Status {
    const ALIGNMENT: usize = 2 << 20;
    status(current().and_then(|device| {
        if bytes == 0 || bytes > isize::MAX as usize {
            return Err(PARAMETER);
        }
        let length = bytes.next_multiple_of(ALIGNMENT);
        {
            let mut regions = change();
            let used = regions.get_or_insert_default().used.entry(device).or_default();
            if *used + length as u64 > MEMORY_MIB.get() << 20 {
                return Err(OUT_OF_MEMORY);
            }
            *used += length as u64;
        }
        let file = memfd_create("emulated-device-memory", MemfdFlags::CLOEXEC).map_err(|_| OUT_OF_MEMORY)?;
        ftruncate(&file, length as u64).map_err(|_| OUT_OF_MEMORY)?;
        let mapped = map_device(file, length, Kind::Device, device)?;
        // SAFETY: the caller passes a place for the result.
        unsafe { *address = mapped as *mut c_void };
        Ok(())
    }))
}

/// Frees.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtFree(address: *mut c_void) -> Status {
    match take(address as usize, Kind::Device) {
        Some(region) => {
            unmap(address as usize, &region);
            OK
        }
        None => PARAMETER,
    }
}

fn register(address: *mut c_void, bytes: u64) -> Result<(), Status> {
    const PAGE: usize = 4096;
    let device = current()?;
    let address = address as usize;
    if address == 0 || bytes == 0 || !address.is_multiple_of(PAGE) {
        return Err(PARAMETER);
    }
    let region = Region {
        kind: Kind::Host,
        device,
        length: bytes as usize,
        readable: address,
        file: None,
    };
    let mut regions = change();
    let regions = regions.get_or_insert_default();
    if regions.by_address.contains_key(&address) {
        return Err(PARAMETER);
    }
    regions.by_address.insert(address, region);
    Ok(())
}

/// Makes the host's memory known.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtHostRegister(
    address: *mut c_void,
    bytes: u64,
    _kind: c_int,
    mapped: *mut *mut c_void,
) -> Status {
    status(register(address, bytes).map(|()| {
        // SAFETY: the caller passes a place for the result.
        unsafe { *mapped = address };
    }))
}

/// The same, without an address for the device.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtHostRegisterV2(address: *mut c_void, bytes: u64, _flags: u32) -> Status {
    status(register(address, bytes))
}

/// Takes that back.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtHostUnregister(address: *mut c_void) -> Status {
    take(address as usize, Kind::Host).map_or(PARAMETER, |_| OK)
}

/// A key by which another process may map an allocation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtIpcMemGetExportKey(
    address: *mut c_void,
    bytes: usize,
    key: *mut c_char,
    room: usize,
    _flags: u64,
) -> Status {
    let regions = regions();
    let region = regions
        .as_ref()
        .and_then(|regions| regions.by_address.get(&(address as usize)))
        .filter(|region| region.kind == Kind::Device && bytes <= region.length);
    let Some(file) = region.and_then(|region| region.file.as_ref()) else {
        return PARAMETER;
    };
    let text = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    if text.len() >= room {
        return PARAMETER;
    }
    // SAFETY: the caller passes that much room.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), key.cast::<u8>(), text.len());
        *key.add(text.len()) = 0;
    }
    OK
}

/// Maps what another process exported.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtIpcMemImportByKey(
    address: *mut *mut c_void,
    key: *const c_char,
    _flags: u64,
) -> Status {
    status(current().and_then(|device| {
        // SAFETY: the caller passes a text that is ended by a zero.
        let key = unsafe { CStr::from_ptr(key) };
        let file = open(key, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|_| PARAMETER)?;
        let length = fstat(&file).map_err(|_| PARAMETER)?.st_size as usize;
        let mapped = map_device(file, length, Kind::Imported, device)?;
        IMPORTS
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((key.to_bytes().to_vec(), mapped));
        // SAFETY: the caller passes a place for the result.
        unsafe { *address = mapped as *mut c_void };
        Ok(())
    }))
}

/// Imports by their keys.
static IMPORTS: RwLock<Vec<(Vec<u8>, usize)>> = RwLock::new(Vec::new());

/// Unmaps it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtIpcMemClose(key: *const c_char) -> Status {
    // SAFETY: the caller passes a text that is ended by a zero.
    let key = unsafe { CStr::from_ptr(key) }.to_bytes();
    let mut imports = IMPORTS.write().unwrap_or_else(PoisonError::into_inner);
    // the exporter may close its key too
    if let Some(at) = imports.iter().position(|(known, _)| known == key) {
        let (_, address) = imports.remove(at);
        if let Some(region) = take(address, Kind::Imported) {
            unmap(address, &region);
        }
    }
    OK
}
