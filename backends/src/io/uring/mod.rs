//! The io_uring engine: one reactor thread that owns the ring and the buffers of everything in flight.
//!
//! Submitters put requests into a bounded queue; if the reactor sleeps in the kernel they write to an eventfd
//! that the ring itself reads, so an idle engine takes no CPU and needs no timers.

mod buffers;
mod reactor;
mod ring;
mod slots;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use kvstored_core::runtime::ThreadHandle;
use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::error::cancelled;
use super::inbox::Inbox;
use super::request::IoRequest;
use super::{IoEngine, IoSettings};
use reactor::Reactor;

/// How long the reactor may take to set its ring up.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What submitters and the reactor share.
struct Shared {
    inbox: Inbox,
    /// The reactor may be asleep and wants to hear of new requests.
    asleep: AtomicBool,
    wake: OwnedFd,
}

impl Shared {
    fn wake(&self) {
        // The counter can't overflow: it's written once per sleep. Nothing else can fail on a valid eventfd.
        if let Err(error) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "can't wake the I/O thread");
        }
    }
}

/// The io_uring engine.
pub struct UringEngine {
    shared: Arc<Shared>,
    thread: Mutex<Option<ThreadHandle>>,
}

impl UringEngine {
    /// Starts the reactor, on a thread called `name`. Fails where the system refuses io_uring.
    pub fn open(settings: &IoSettings, runtime: &Runtime, name: &str) -> Result<Self> {
        settings.validate()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| Error::from_io(errno.into(), "can't make an eventfd"))?;
        let shared = Arc::new(Shared {
            inbox: Inbox::new(settings.queue_limit),
            asleep: AtomicBool::new(false),
            wake,
        });
        // The kernel ties the ring to the thread that makes it, so the reactor's thread does.
        let (report, started) = mpsc::sync_channel(1);
        let body = {
            let (shared, settings) = (Arc::clone(&shared), settings.clone());
            Box::new(move || match Reactor::new(shared, &settings) {
                Ok(reactor) => {
                    if report.send(Ok(())).is_ok() {
                        reactor.run();
                    }
                }
                // If nobody listens any more there is nobody to tell.
                Err(error) => drop(report.send(Err(error))),
            })
        };
        let thread = runtime.spawner.spawn(name, body)?;
        match started.recv_timeout(START_TIMEOUT) {
            Ok(Ok(())) => Ok(Self {
                shared,
                thread: Mutex::new(Some(thread)),
            }),
            Ok(Err(error)) => {
                thread.join();
                Err(error)
            }
            Err(_) => {
                shared.inbox.close(&cancelled()); // should it start after all, it ends at once
                Err(Error::new(ErrorKind::TimedOut, "the I/O thread didn't start"))
            }
        }
    }
}

impl IoEngine for UringEngine {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn submit(&self, batch: Vec<IoRequest>) {
        // The reactor says that it sleeps under the queue's lock and when the queue is empty, so whoever adds
        // after that sees it here.
        if self.shared.inbox.offer(batch) > 0 && self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.shared.wake();
        }
    }

    fn queue_depth(&self) -> usize {
        self.shared.inbox.held()
    }

    fn shutdown(&self) {
        self.shared.inbox.close(&cancelled());
        self.shared.wake();
        if self.shared.inbox.is_served_here() {
            return;
        }
        // Held while joining, so that every caller returns only when the thread is gone.
        let mut thread = self.thread.lock();
        if let Some(thread) = thread.take() {
            thread.join();
        }
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}
