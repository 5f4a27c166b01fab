//! The fallback engine: a small pool of threads that call pread and pwrite.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Result, Runtime};
use parking_lot::{Condvar, Mutex};

use super::error::{Progress, Step, cancelled};
use super::inbox::Inbox;
use super::request::{Direction, IoRequest};
use super::{IoEngine, IoSettings};

struct Shared {
    inbox: Inbox,
    changed: Condvar,
}

/// A pool of threads with positioned system calls.
pub struct PsyncEngine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<ThreadHandle>>,
}

impl PsyncEngine {
    /// Starts the threads, named `name-0` and so on.
    pub fn open(settings: &IoSettings, runtime: &Runtime, name: &str) -> Result<Self> {
        settings.validate()?;
        let shared = Arc::new(Shared {
            inbox: Inbox::new(settings.queue_limit),
            changed: Condvar::new(),
        });
        // Built first, so that a failure half-way stops the threads that did start.
        let engine = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::default(),
        };
        for number in 0..settings.psync_threads {
            let shared = Arc::clone(&shared);
            let body = Box::new(move || work(&shared));
            let thread = runtime.spawner.spawn(&format!("{name}-{number}"), body)?;
            engine.threads.lock().push(thread);
        }
        Ok(engine)
    }
}

impl IoEngine for PsyncEngine {
    fn name(&self) -> &'static str {
        "psync"
    }

    fn submit(&self, batch: Vec<IoRequest>) {
        for _ in 0..self.shared.inbox.offer(batch) {
            if !self.shared.changed.notify_one() {
                break; // nobody is asleep
            }
        }
    }

    fn queue_depth(&self) -> usize {
        self.shared.inbox.held()
    }

    fn shutdown(&self) {
        self.shared.inbox.close(&cancelled());
        self.shared.changed.notify_all();
        if self.shared.inbox.is_served_here() {
            return;
        }
        // Held while joining, so that every caller returns only when the threads are gone.
        let mut threads = self.threads.lock();
        for thread in threads.drain(..) {
            thread.join();
        }
    }
}

impl Drop for PsyncEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn work(shared: &Shared) {
    shared.inbox.serve();
    loop {
        let request = {
            let mut waiting = shared.inbox.lock();
            loop {
                if let Some(request) = waiting.requests.pop_front() {
                    break request;
                }
                if waiting.closed {
                    return;
                }
                shared.changed.wait(&mut waiting);
            }
        };
        let result = transfer(&request);
        shared.inbox.complete(request, result);
    }
}

fn transfer(request: &IoRequest) -> Result<()> {
    let address = request.address()?;
    let mut progress = Progress::default();
    loop {
        let descriptor = request.file.as_raw_fd();
        let offset = (request.file_offset + progress.done as u64) as libc::off_t;
        let length = request.length - progress.done;
        let result = match request.direction {
            // SAFETY: `address` is valid for `request.length` bytes while the request holds its slot, `done` is
            // at most that, and the kernel is the only one that touches the bytes.
            Direction::Read => unsafe {
                libc::pread(descriptor, address.add(progress.done).cast(), length, offset)
            },
            // SAFETY: as above.
            Direction::Write => unsafe {
                libc::pwrite(descriptor, address.add(progress.done).cast(), length, offset)
            },
        };
        let result = if result < 0 {
            -i64::from(
                std::io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EIO),
            )
        } else {
            result as i64
        };
        match progress.advance(request, result) {
            Step::Done => return Ok(()),
            Step::Again => {}
            Step::Failed(error) => return Err(error),
        }
    }
}
