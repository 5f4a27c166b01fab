//! Streams: a queue and a thread each.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::copies::{Piece, perform};
use crate::event::{Event, event};
use crate::runtime::current;
use crate::statuses::{OK, OUT_OF_MEMORY, PARAMETER, STREAM_TIMEOUT, Status, status};

/// What a stream does.
pub(crate) enum Task {
    Copies(Vec<Piece>),
    Record(Arc<Event>, u64),
    Wait(Arc<Event>, u64),
    /// A function of the caller's, and what it's called with.
    Call(HostFunction, usize),
}

/// A function that a stream calls.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    given: u64,
    ended: u64,
    /// The first failure since the last synchronization.
    failed: Status,
    stopping: bool,
}

/// What a stream's handle points to.
#[derive(Default)]
pub(crate) struct Stream {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Stream {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn give(&self, task: Task) {
        let mut queue = self.lock();
        queue.tasks.push_back(task);
        queue.given += 1;
        drop(queue);
        self.changed.notify_all();
    }

    /// Waits for what was given by now.
    pub fn synchronize(&self, timeout: Duration) -> Status {
        let queue = self.lock();
        let wanted = queue.given;
        let waited = self
            .changed
            .wait_timeout_while(queue, timeout, |queue| queue.ended < wanted);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if queue.ended < wanted {
            return STREAM_TIMEOUT;
        }
        std::mem::replace(&mut queue.failed, OK)
    }

    fn run(&self) {
        loop {
            let task = {
                let mut queue = self.lock();
                loop {
                    if let Some(task) = queue.tasks.pop_front() {
                        break task;
                    }
                    if queue.stopping {
                        return;
                    }
                    queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let outcome = match task {
                Task::Copies(pieces) => perform(&pieces),
                Task::Record(event, record) => {
                    event.reach(record);
                    OK
                }
                Task::Wait(event, record) => {
                    event.wait(record);
                    OK
                }
                Task::Call(function, argument) => {
                    // SAFETY: whoever gave the function vouches for it.
                    unsafe { function(std::ptr::with_exposed_provenance_mut(argument)) };
                    OK
                }
            };
            let mut queue = self.lock();
            queue.ended += 1;
            if queue.failed == OK {
                queue.failed = outcome;
            }
            drop(queue);
            self.changed.notify_all();
        }
    }
}

/// The stream behind a handle, on a thread that has a device.
///
/// # Safety
/// The handle must be one of ours that hasn't been destroyed.
pub(crate) unsafe fn stream(handle: *mut c_void) -> Result<Arc<Stream>, Status> {
    current()?;
    if handle.is_null() {
        return Err(PARAMETER);
    }
    let pointer = handle.cast_const().cast::<Stream>();
    // SAFETY: the handle holds one count, and this is another.
    unsafe {
        Arc::increment_strong_count(pointer);
        Ok(Arc::from_raw(pointer))
    }
}

/// A new stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtCreateStreamWithConfig(
    handle: *mut *mut c_void,
    _priority: u32,
    _flags: u32,
) -> Status {
    status(current().and_then(|_| {
        let stream = Arc::new(Stream::default());
        let working = stream.clone();
        std::thread::Builder::new()
            .name("emulated-stream".into())
            .spawn(move || working.run())
            .map_err(|_| OUT_OF_MEMORY)?;
        // SAFETY: the caller passes a place for the result.
        unsafe { *handle = Arc::into_raw(stream).cast_mut().cast() };
        Ok(())
    }))
}

/// The plain form.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtCreateStream(handle: *mut *mut c_void) -> Status {
    // SAFETY: the caller passes a place for the result.
    unsafe { aclrtCreateStreamWithConfig(handle, 0, 0) }
}

/// Ends a stream once it has done what it was given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtDestroyStream(handle: *mut c_void) -> Status {
    if handle.is_null() {
        return PARAMETER;
    }
    // SAFETY: the caller vouches for the handle, whose count this is.
    let stream = unsafe { Arc::from_raw(handle.cast_const().cast::<Stream>()) };
    stream.lock().stopping = true;
    stream.changed.notify_all();
    OK
}

/// Waits for a stream, that long at most.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtSynchronizeStreamWithTimeout(handle: *mut c_void, timeout_ms: i32) -> Status {
    let timeout = u64::try_from(timeout_ms).map_or(Duration::from_hours(1), Duration::from_millis);
    // SAFETY: the caller vouches for the handle.
    match unsafe { stream(handle) } {
        Ok(stream) => stream.synchronize(timeout),
        Err(status) => status,
    }
}

/// Drops what a stream hasn't begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtStreamAbort(handle: *mut c_void) -> Status {
    // SAFETY: the caller vouches for the handle.
    status(unsafe { stream(handle) }.map(|stream| {
        let mut queue = stream.lock();
        let dropped = std::mem::take(&mut queue.tasks);
        queue.ended += dropped.len() as u64;
        drop(queue);
        stream.changed.notify_all();
        for task in dropped {
            if let Task::Record(event, record) = task {
                event.reach(record);
            }
        }
    }))
}

/// Whether a stream has something to do: 0 if not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtStreamQuery(handle: *mut c_void, busy: *mut i32) -> Status {
    // SAFETY: the caller vouches for the handle and passes a place for the result.
    status(unsafe {
        stream(handle).and_then(|stream| {
            let queue = stream.lock();
            *busy = i32::from(queue.ended < queue.given);
            match queue.failed {
                OK => Ok(()),
                failed => Err(failed),
            }
        })
    })
}

/// Has a stream call a function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtLaunchHostFunc(
    handle: *mut c_void,
    function: HostFunction,
    argument: *mut c_void,
) -> Status {
    // SAFETY: the caller vouches for the handle and for the function.
    status(unsafe { stream(handle) }.map(|stream| {
        stream.give(Task::Call(function, argument.expose_provenance()));
    }))
}

/// Marks a stream's present end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtRecordEvent(event_handle: *mut c_void, handle: *mut c_void) -> Status {
    // SAFETY: the caller vouches for both handles.
    status(unsafe {
        stream(handle).and_then(|stream| {
            let event = event(event_handle)?;
            let record = event.record();
            stream.give(Task::Record(event, record));
            Ok(())
        })
    })
}

/// Lets a stream wait for an event's latest record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtStreamWaitEvent(handle: *mut c_void, event_handle: *mut c_void) -> Status {
    // SAFETY: the caller vouches for both handles.
    status(unsafe {
        stream(handle).and_then(|stream| {
            let event = event(event_handle)?;
            let record = event.latest();
            stream.give(Task::Wait(event, record));
            Ok(())
        })
    })
}
