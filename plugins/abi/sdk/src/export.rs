//! The functions of the C table, for a type that implements [`Tier`]. No panic leaves them.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi;
use crate::failure::{Failure, Kind};
use crate::host::{Host, Level};
use crate::operation::Operation;
use crate::tier::{NamespaceInfo, Settings, Tier};

/// Most operations that a place is reserved for before they are looked at.
const MOST_RESERVED: usize = 1024;

/// What the C side's `void *tier` points to.
struct Opened<T> {
    host: Host,
    tier: T,
}

/// The table of a tier's functions.
pub const fn vtable<T: Tier>() -> abi::Tier {
    abi::Tier {
        struct_size: size_of::<abi::Tier>() as u32,
        keeps: T::KEEPS as u32,
        open: Some(open::<T>),
        open_namespace: Some(open_namespace::<T>),
        submit: Some(submit::<T>),
        remove: Some(remove::<T>),
        purge: Some(purge::<T>),
        statistics: Some(statistics::<T>),
        drain: Some(drain::<T>),
        close: Some(close::<T>),
    }
}

/// Runs a call; a failure and a panic go to the host's log and become a status.
fn guarded(host: Option<&Host>, what: &str, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(Failure::new(Kind::Internal, "the plugin panicked")));
    match outcome {
        Ok(()) => abi::OK,
        Err(failure) => {
            if let Some(host) = host {
                host.log(Level::Error, &format!("{what}: {}", failure.message()));
            }
            failure.kind() as i32
        }
    }
}

/// # Safety
/// `text` must be valid for reads of its length.
pub(crate) unsafe fn owned(text: abi::Text) -> String {
    if text.data.is_null() || text.length == 0 {
        return String::new();
    }
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { std::slice::from_raw_parts(text.data.cast::<u8>(), text.length as usize) };
    String::from_utf8_lossy(bytes).into_owned()
}

/// # Safety
/// `first` must be valid for reads of `count` values, or `count` 0.
pub(crate) unsafe fn slice<'a, V>(first: *const V, count: u64) -> &'a [V] {
    if count == 0 || first.is_null() {
        return &[];
    }
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts(first, count as usize) }
}

/// What the host lends, with zeros for fields that an older host doesn't have.
///
/// # Safety
/// `lent` must be valid for reads of the bytes that its first field, a `u32`, says; `V` must be one for which zeros are
/// valid.
pub(crate) unsafe fn sized<V: Copy>(lent: *const V) -> V {
    // SAFETY: the caller vouches for the size in front.
    let size = unsafe { lent.cast::<u32>().read() } as usize;
    if size >= size_of::<V>() {
        // SAFETY: the caller vouches for that many bytes.
        return unsafe { lent.read() };
    }
    let mut copy = std::mem::MaybeUninit::<V>::zeroed();
    // SAFETY: the caller vouches for that many bytes, which are fewer than there's room for, and for the zeros behind.
    unsafe {
        std::ptr::copy_nonoverlapping(lent.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), size);
        copy.assume_init()
    }
}

/// # Safety
/// `tier` must come from `open::<T>` and not have been closed.
unsafe fn opened<'a, T>(tier: *mut c_void) -> &'a Opened<T> {
    // SAFETY: the caller vouches for it.
    unsafe { &*tier.cast::<Opened<T>>() }
}

unsafe extern "C" fn open<T: Tier>(
    host: *const abi::Host,
    settings: *const abi::Setting,
    count: u64,
    tier: *mut *mut c_void,
) -> i32 {
    // SAFETY: the host passes its table.
    let Some(host) = (unsafe { Host::copy(host) }) else {
        return Kind::Unsupported as i32;
    };
    guarded(Some(&host), "open", || {
        // SAFETY: the host lends that many settings for the call.
        let pairs = unsafe { slice(settings, count) }
            .iter()
            // SAFETY: as above.
            .map(|setting| unsafe { (owned(setting.key), owned(setting.value)) })
            .collect();
        let opened = Opened {
            tier: T::open(host, Settings::new(pairs))?,
            host,
        };
        // SAFETY: the host passes a place for the result.
        unsafe { *tier = Box::into_raw(Box::new(opened)).cast() };
        Ok(())
    })
}

unsafe extern "C" fn open_namespace<T: Tier>(tier: *mut c_void, info: *const abi::Namespace) -> i32 {
    // SAFETY: the host passes an open tier and lends the description.
    let (opened, info) = unsafe { (opened::<T>(tier), sized(info)) };
    guarded(Some(&opened.host), "open_namespace", || {
        opened.tier.open_namespace(&NamespaceInfo {
            digest: info.digest,
            image_bytes: info.image_bytes,
            payload_bytes: info.payload_bytes,
            // SAFETY: the host lends the text for the call.
            tenant: unsafe { owned(info.tenant) },
            // SAFETY: as above.
            model: unsafe { owned(info.model) },
            // SAFETY: as above.
            description: unsafe { owned(info.description) },
        })
    })
}

unsafe extern "C" fn submit<T: Tier>(tier: *mut c_void, operations: *const abi::Operation, count: u64) {
    // SAFETY: the host passes an open tier.
    let opened = unsafe { opened::<T>(tier) };
    let mut next = operations;
    // all are taken over first: one that a panic drops fails instead of being forgotten
    let mut taken = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(MOST_RESERVED));
    for _ in 0..count {
        // SAFETY: the host lends that many, each with its size in front.
        let operation = unsafe { sized(next) };
        // SAFETY: each is taken over once, here.
        taken.push(unsafe { Operation::take(opened.host, &operation) });
        // SAFETY: the next one lies behind, or nobody looks.
        next = unsafe { next.byte_add(operation.struct_size as usize) };
    }
    guarded(Some(&opened.host), "submit", || {
        opened.tier.submit_batch(taken);
        Ok(())
    });
}

unsafe extern "C" fn remove<T: Tier>(tier: *mut c_void, keys: *const abi::Key, count: u64) -> i32 {
    // SAFETY: the host passes an open tier and lends the keys.
    let (opened, keys) = unsafe { (opened::<T>(tier), slice(keys, count)) };
    guarded(Some(&opened.host), "remove", || opened.tier.remove(keys))
}

unsafe extern "C" fn purge<T: Tier>(tier: *mut c_void, namespace_digest: *const u8) -> i32 {
    // SAFETY: the host passes an open tier and lends 32 bytes.
    let (opened, digest) = unsafe { (opened::<T>(tier), *namespace_digest.cast::<[u8; 32]>()) };
    guarded(Some(&opened.host), "purge", || opened.tier.purge(&digest))
}

unsafe extern "C" fn statistics<T: Tier>(tier: *mut c_void, statistics: *mut abi::Statistics) -> i32 {
    // SAFETY: the host passes an open tier.
    let opened = unsafe { opened::<T>(tier) };
    guarded(Some(&opened.host), "statistics", || {
        // SAFETY: the first field is there in every version.
        let given = unsafe { (*statistics).struct_size };
        let mut filled = abi::Statistics {
            struct_size: given,
            ..abi::Statistics::default()
        };
        opened.tier.statistics(&mut filled);
        filled.struct_size = given;
        let bytes = size_of::<abi::Statistics>().min(given as usize);
        // SAFETY: the host lends `struct_size` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), statistics.cast::<u8>(), bytes);
        };
        Ok(())
    })
}

unsafe extern "C" fn drain<T: Tier>(tier: *mut c_void, timeout_ms: u64) -> i32 {
    // SAFETY: the host passes an open tier.
    let opened = unsafe { opened::<T>(tier) };
    guarded(Some(&opened.host), "drain", || opened.tier.drain(timeout_ms))
}

unsafe extern "C" fn close<T: Tier>(tier: *mut c_void) {
    // SAFETY: it comes from `open`, and the host calls nothing afterwards.
    let opened = unsafe { Box::from_raw(tier.cast::<Opened<T>>()) };
    let host = opened.host;
    guarded(Some(&host), "close", || {
        drop(opened);
        Ok(())
    });
}
