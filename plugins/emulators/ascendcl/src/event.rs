//! Events: which of their records have been reached.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::runtime::current;
use crate::statuses::{EVENT_TIMEOUT, OK, PARAMETER, Status, status};

#[derive(Default)]
struct Records {
    recorded: u64,
    reached: u64,
}

/// What an event's handle points to.
#[derive(Default)]
pub(crate) struct Event {
    records: Mutex<Records>,
    changed: Condvar,
}

impl Event {
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new record's number.
    pub fn record(&self) -> u64 {
        let mut records = self.lock();
        records.recorded += 1;
        records.recorded
    }

    /// The latest record's number.
    pub fn latest(&self) -> u64 {
        self.lock().recorded
    }

    /// A stream has come to a record.
    pub fn reach(&self, record: u64) {
        let mut records = self.lock();
        records.reached = records.reached.max(record);
        drop(records);
        self.changed.notify_all();
    }

    /// Waits for a record, however long it takes.
    pub fn wait(&self, record: u64) {
        let mut records = self.lock();
        while records.reached < record {
            records = self.changed.wait(records).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the latest record, that long at most.
    fn synchronize(&self, timeout: Duration) -> Status {
        let records = self.lock();
        let wanted = records.recorded;
        let waited = self
            .changed
            .wait_timeout_while(records, timeout, |records| records.reached < wanted);
        let (records, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if records.reached < wanted {
            EVENT_TIMEOUT
        } else {
            OK
        }
    }
}

/// The event behind a handle.
///
/// # Safety
/// The handle must be one of ours that hasn't been destroyed.
pub(crate) unsafe fn event(handle: *mut c_void) -> Result<Arc<Event>, Status> {
    if handle.is_null() {
        return Err(PARAMETER);
    }
    let pointer = handle.cast_const().cast::<Event>();
    // SAFETY: the handle holds one count, and this is another.
    unsafe {
        Arc::increment_strong_count(pointer);
        Ok(Arc::from_raw(pointer))
    }
}

/// A new event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtCreateEventExWithFlag(handle: *mut *mut c_void, _flags: u32) -> Status {
    status(current().map(|_| {
        let created = Arc::into_raw(Arc::new(Event::default()));
        // SAFETY: the caller passes a place for the result.
        unsafe { *handle = created.cast_mut().cast() };
    }))
}

/// The older form.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtCreateEventWithFlag(handle: *mut *mut c_void, flags: u32) -> Status {
    // SAFETY: the caller passes a place for the result.
    unsafe { aclrtCreateEventExWithFlag(handle, flags) }
}

/// Ends an event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtDestroyEvent(handle: *mut c_void) -> Status {
    if handle.is_null() {
        return PARAMETER;
    }
    // SAFETY: the caller vouches for the handle, whose count this is.
    drop(unsafe { Arc::from_raw(handle.cast_const().cast::<Event>()) });
    OK
}

/// Whether the latest record has been reached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtQueryEventStatus(handle: *mut c_void, reached: *mut c_int) -> Status {
    // SAFETY: the caller vouches for the handle and passes a place for the result.
    status(unsafe {
        event(handle).map(|event| {
            let records = event.lock();
            *reached = c_int::from(records.recorded > 0 && records.reached >= records.recorded);
        })
    })
}

/// Waits for the latest record, that long at most.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtSynchronizeEventWithTimeout(handle: *mut c_void, timeout_ms: i32) -> Status {
    let timeout = u64::try_from(timeout_ms).map_or(Duration::from_hours(1), Duration::from_millis);
    // SAFETY: the caller vouches for the handle.
    match unsafe { event(handle) } {
        Ok(event) => event.synchronize(timeout),
        Err(status) => status,
    }
}
