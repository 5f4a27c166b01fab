//! What a plugin may call, from any thread and at any time.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kvstored_core::Namespace;
use kvstored_plugin::abi;

use crate::describe::{MOST_BYTES, described};
use crate::shared::Shared;

/// The longest message of a plugin that is kept.
const MOST_MESSAGE_BYTES: u64 = 1024;
/// Most keys in one call of a plugin.
const MOST_KEYS: u64 = 1 << 20;

/// The table for a plugin. It lives for ever, and so does what is behind it.
pub(crate) fn leak_table(shared: &Arc<Shared>) -> *const abi::Host {
    Box::leak(Box::new(abi::Host {
        struct_size: size_of::<abi::Host>() as u32,
        abi_version: abi::ABI_VERSION,
        context: Arc::into_raw(shared.clone()).cast_mut().cast(),
        log: Some(log),
        complete: Some(complete),
        stored: Some(stored),
        removed: Some(removed),
        describe: Some(describe),
    }))
}

/// Runs what a plugin called; no panic goes back to it.
///
/// # Safety
/// `context` must be the one of a leaked table.
unsafe fn called(context: *mut c_void, body: impl FnOnce(&Shared)) {
    if context.is_null() {
        return;
    }
    // SAFETY: the table's context is an Arc that is never dropped.
    let shared = unsafe { &*context.cast_const().cast::<Shared>() };
    if catch_unwind(AssertUnwindSafe(|| body(shared))).is_err() {
        tracing::error!(tier = %shared.name, "a panic in what a plugin called");
    }
}

/// # Safety
/// `text` must be valid for reads of its length.
pub(crate) unsafe fn owned(text: abi::Text) -> String {
    if text.data.is_null() || text.length == 0 {
        return String::new();
    }
    let length = text.length.min(MOST_MESSAGE_BYTES) as usize;
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { std::slice::from_raw_parts(text.data.cast::<u8>(), length) };
    let clean = String::from_utf8_lossy(bytes);
    clean
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// # Safety
/// `first` must be aligned and valid for reads of `count` keys.
unsafe fn keys<'a>(first: *const abi::Key, count: u64) -> &'a [abi::Key] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts(first, count as usize) }
}

unsafe extern "C" fn log(context: *mut c_void, level: u32, message: abi::Text) {
    // SAFETY: the plugin passes the table's context and lends the message.
    unsafe {
        called(context, |shared| {
            let message = owned(message);
            let tier = shared.name.as_str();
            match level {
                1 => {
                    tracing::error!(tier, "{message}");
                    *shared.last_complaint.lock() = message;
                }
                2 => tracing::warn!(tier, "{message}"),
                3 => tracing::info!(tier, "{message}"),
                _ => tracing::debug!(tier, "{message}"),
            }
        });
    }
}

unsafe extern "C" fn complete(
    context: *mut c_void,
    ticket: u64,
    status: i32,
    transferred: u64,
    message: abi::Text,
) {
    // SAFETY: the plugin passes the table's context and lends the message.
    unsafe {
        called(context, |shared| {
            shared.completed(ticket, status, transferred, &owned(message));
        });
    }
}

unsafe extern "C" fn stored(context: *mut c_void, first: *const abi::Key, count: u64) {
    // SAFETY: the plugin passes the table's context and lends the keys.
    unsafe { named(context, first, count, true) }
}

unsafe extern "C" fn removed(context: *mut c_void, first: *const abi::Key, count: u64) {
    // SAFETY: the plugin passes the table's context and lends the keys.
    unsafe { named(context, first, count, false) }
}

/// # Safety
/// As the plugin's calls promise: the table's context, and that many keys.
unsafe fn named(context: *mut c_void, first: *const abi::Key, count: u64, here: bool) {
    // SAFETY: the caller vouches for it.
    unsafe {
        called(context, |shared| {
            if count > MOST_KEYS || (count > 0 && (first.is_null() || !first.is_aligned())) {
                shared.breach(&format!("it named {count} blocks in one call, at {first:p}"));
            } else {
                shared.told(keys(first, count), here);
            }
        });
    }
}

unsafe extern "C" fn describe(context: *mut c_void, info: *const abi::Namespace) {
    /// What a plugin of 1.1 has of it, and more than any later version has.
    const SIZES: std::ops::RangeInclusive<usize> = size_of::<abi::Namespace>()..=4096;
    // SAFETY: the plugin passes the table's context and lends the namespace, whose first field is its size.
    unsafe {
        called(context, |shared| {
            if info.is_null() || !info.is_aligned() || !SIZES.contains(&((*info).struct_size as usize)) {
                shared.breach(&format!("it described a namespace that can't be, at {info:p}"));
                return;
            }
            let (digest, text) = (Namespace((*info).digest), (*info).description);
            if text.data.is_null() || text.length > MOST_BYTES {
                tracing::warn!(tier = %shared.name, namespace = %digest, bytes = text.length, "a namespace without a \
                    description that can be read");
                return;
            }
            let bytes = std::slice::from_raw_parts(text.data.cast::<u8>(), text.length as usize);
            match described(bytes, &digest) {
                Ok(info) => shared.described(info),
                Err(error) => {
                    tracing::warn!(tier = %shared.name, %error, "what the plugin says of a namespace isn't taken");
                }
            }
        });
    }
}
