//! What a device may call: the log.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kvstored_plugin::abi;

use crate::callbacks::owned;

/// The table for a device: the log and nothing else. It lives for ever: a plugin may call at any time.
pub(crate) fn leak_table(plugin: &str) -> *const abi::Host {
    let name: &'static String = Box::leak(Box::new(plugin.to_owned()));
    Box::leak(Box::new(abi::Host {
        struct_size: size_of::<abi::Host>() as u32,
        abi_version: abi::ABI_VERSION,
        context: std::ptr::from_ref(name).cast_mut().cast(),
        log: Some(log),
        complete: None,
        stored: None,
        removed: None,
        describe: None,
    }))
}

unsafe extern "C" fn log(context: *mut c_void, level: u32, message: abi::Text) {
    if context.is_null() {
        return;
    }
    let logged = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the context is the leaked name, and the plugin lends the message.
        let (plugin, message) = unsafe { (&*context.cast_const().cast::<String>(), owned(message)) };
        match level {
            1 => tracing::error!(plugin, "{message}"),
            2 => tracing::warn!(plugin, "{message}"),
            3 => tracing::info!(plugin, "{message}"),
            _ => tracing::debug!(plugin, "{message}"),
        }
    }));
    if logged.is_err() {
        tracing::error!("a panic in what a plugin called");
    }
}
