//! libibverbs, opened at run time.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use kvstored_core::{Error, ErrorKind, Result};

use super::layout::{
    AsyncEvent, DeviceAttributes, Opaque, PairAttributes, PairSetup, PortAttributes, RawCompletions,
    RawContext, RawDevice, RawDomain, RawEventChannel, RawPair, RawRegion,
};

const NAME: &str = "libibverbs.so.1";
/// The library exports most calls twice; without a version one may get the one for binaries of 2006.
const VERSION: &CStr = c"IBVERBS_1.1";
/// Event channels never changed.
const FIRST_VERSION: &CStr = c"IBVERBS_1.0";

/// The calls that are used, resolved.
#[allow(clippy::struct_field_names, clippy::type_complexity)]
pub struct Library {
    pub get_device_list: unsafe extern "C" fn(*mut c_int) -> *mut *mut RawDevice,
    pub free_device_list: unsafe extern "C" fn(*mut *mut RawDevice),
    pub get_device_name: unsafe extern "C" fn(*mut RawDevice) -> *const c_char,
    pub open_device: unsafe extern "C" fn(*mut RawDevice) -> *mut RawContext,
    pub close_device: unsafe extern "C" fn(*mut RawContext) -> c_int,
    pub query_device: unsafe extern "C" fn(*mut RawContext, *mut DeviceAttributes) -> c_int,
    pub query_port: unsafe extern "C" fn(*mut RawContext, u8, *mut PortAttributes) -> c_int,
    pub query_gid: unsafe extern "C" fn(*mut RawContext, u8, c_int, *mut [u8; 16]) -> c_int,
    pub alloc_pd: unsafe extern "C" fn(*mut RawContext) -> *mut RawDomain,
    pub dealloc_pd: unsafe extern "C" fn(*mut RawDomain) -> c_int,
    pub reg_mr: unsafe extern "C" fn(*mut RawDomain, Opaque, usize, c_int) -> *mut RawRegion,
    pub dereg_mr: unsafe extern "C" fn(*mut RawRegion) -> c_int,
    pub create_comp_channel: unsafe extern "C" fn(*mut RawContext) -> *mut RawEventChannel,
    pub destroy_comp_channel: unsafe extern "C" fn(*mut RawEventChannel) -> c_int,
    pub create_cq: unsafe extern "C" fn(
        *mut RawContext,
        c_int,
        Opaque,
        *mut RawEventChannel,
        c_int,
    ) -> *mut RawCompletions,
    pub destroy_cq: unsafe extern "C" fn(*mut RawCompletions) -> c_int,
    pub get_cq_event:
        unsafe extern "C" fn(*mut RawEventChannel, *mut *mut RawCompletions, *mut Opaque) -> c_int,
    pub ack_cq_events: unsafe extern "C" fn(*mut RawCompletions, c_uint),
    pub create_qp: unsafe extern "C" fn(*mut RawDomain, *mut PairSetup) -> *mut RawPair,
    pub modify_qp: unsafe extern "C" fn(*mut RawPair, *mut PairAttributes, c_int) -> c_int,
    pub destroy_qp: unsafe extern "C" fn(*mut RawPair) -> c_int,
    pub get_async_event: unsafe extern "C" fn(*mut RawContext, *mut AsyncEvent) -> c_int,
    pub ack_async_event: unsafe extern "C" fn(*mut AsyncEvent),
    pub wc_status_str: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Library {
    /// The library, opened by the first call. Fails with `Unavailable` where it isn't installed or lacks a call, and then
    /// always does.
    pub fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
        LIBRARY
            .get_or_init(|| Self::open(NAME))
            .as_ref()
            .map_err(Clone::clone)
    }

    fn open(name: &str) -> Result<Self> {
        // SAFETY: the library's constructors only register providers; nothing of it is ever unloaded.
        let library = unsafe { libloading::os::unix::Library::new(name) }.map_err(|error| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the RDMA verbs library {name} can't be opened: {error}"),
            )
        })?;
        let symbols = Symbols(library.into_raw());
        // SAFETY: the types are those of the library's exports of these versions.
        let library = unsafe {
            Self {
                get_device_list: symbols.find(c"ibv_get_device_list", VERSION)?,
                free_device_list: symbols.find(c"ibv_free_device_list", VERSION)?,
                get_device_name: symbols.find(c"ibv_get_device_name", VERSION)?,
                open_device: symbols.find(c"ibv_open_device", VERSION)?,
                close_device: symbols.find(c"ibv_close_device", VERSION)?,
                query_device: symbols.find(c"ibv_query_device", VERSION)?,
                query_port: symbols.find(c"ibv_query_port", VERSION)?,
                query_gid: symbols.find(c"ibv_query_gid", VERSION)?,
                alloc_pd: symbols.find(c"ibv_alloc_pd", VERSION)?,
                dealloc_pd: symbols.find(c"ibv_dealloc_pd", VERSION)?,
                reg_mr: symbols.find(c"ibv_reg_mr", VERSION)?,
                dereg_mr: symbols.find(c"ibv_dereg_mr", VERSION)?,
                create_comp_channel: symbols.find(c"ibv_create_comp_channel", FIRST_VERSION)?,
                destroy_comp_channel: symbols.find(c"ibv_destroy_comp_channel", FIRST_VERSION)?,
                create_cq: symbols.find(c"ibv_create_cq", VERSION)?,
                destroy_cq: symbols.find(c"ibv_destroy_cq", VERSION)?,
                get_cq_event: symbols.find(c"ibv_get_cq_event", VERSION)?,
                ack_cq_events: symbols.find(c"ibv_ack_cq_events", VERSION)?,
                create_qp: symbols.find(c"ibv_create_qp", VERSION)?,
                modify_qp: symbols.find(c"ibv_modify_qp", VERSION)?,
                destroy_qp: symbols.find(c"ibv_destroy_qp", VERSION)?,
                get_async_event: symbols.find(c"ibv_get_async_event", VERSION)?,
                ack_async_event: symbols.find(c"ibv_ack_async_event", VERSION)?,
                wc_status_str: symbols.find(c"ibv_wc_status_str", VERSION)?,
            }
        };
        // Where the kernel doesn't copy pinned pages at a fork, this keeps a child from taking them away. It fails when
        // somebody has registered memory before, who then has decided.
        // SAFETY: the call takes nothing.
        unsafe {
            let init: unsafe extern "C" fn() -> c_int = symbols.find(c"ibv_fork_init", VERSION)?;
            let _ = init();
        }
        Ok(library)
    }
}

/// The library's handle, which is never closed.
struct Symbols(*mut c_void);

impl Symbols {
    /// # Safety
    /// `T` must be the symbol's type: a function pointer.
    unsafe fn find<T: Copy>(&self, name: &CStr, version: &CStr) -> Result<T> {
        const { assert!(size_of::<T>() == size_of::<*mut c_void>()) }
        // SAFETY: the handle is open, and both names end in a zero.
        let symbol = unsafe { libc::dlvsym(self.0, name.as_ptr(), version.as_ptr()) };
        if symbol.is_null() {
            let message = format!("the RDMA verbs library has no {}", name.to_string_lossy());
            return Err(
                Error::new(ErrorKind::Unavailable, message).with("version", version.to_string_lossy())
            );
        }
        // SAFETY: the caller vouches for the type, and the sizes were compared.
        Ok(unsafe { std::mem::transmute_copy(&symbol) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_named() {
        let error = Library::open("libkvstored-absent.so.1").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("libkvstored-absent.so.1"), "{error}");
    }

    #[test]
    fn a_library_without_the_calls_is_refused() {
        let error = Library::open("libc.so.6").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("ibv_get_device_list"), "{error}");
    }
}
