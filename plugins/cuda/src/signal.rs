//! Waiting for a stream without spinning, for a bounded time: the driver has no such call of its own.

use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Set by the stream when it comes to it.
#[derive(Default)]
pub(crate) struct Signal {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// What to hand to the stream together with [`reached`]: a use of the signal that ends there.
    pub fn lend(self: &Arc<Self>) -> *mut c_void {
        Arc::into_raw(self.clone()).cast_mut().cast()
    }

    /// Takes a use back that no stream was given after all.
    ///
    /// # Safety
    /// The pointer must come from [`Signal::lend`], and [`reached`] never be called with it.
    pub unsafe fn take_back(lent: *mut c_void) {
        // SAFETY: the caller vouches for it.
        drop(unsafe { Arc::from_raw(lent.cast_const().cast::<Self>()) });
    }

    /// Waits that long at most. Returns whether the stream has come to it.
    pub fn wait(&self, timeout: Duration) -> bool {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(set, timeout, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The function that the stream calls.
///
/// # Safety
/// The pointer must come from [`Signal::lend`] and be used once.
pub(crate) unsafe extern "C" fn reached(lent: *mut c_void) {
    // SAFETY: the caller vouches for it.
    let signal = unsafe { Arc::from_raw(lent.cast_const().cast::<Signal>()) };
    *signal.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
    signal.changed.notify_all();
}
