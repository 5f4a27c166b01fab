//! The thread that owns the ring.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use io_uring::{IoUring, opcode, squeue, types};
use kvstored_core::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::error::{Step, cancelled};
use super::super::request::Direction;
use super::buffers::RegisteredBuffers;
use super::slots::{Running, Slots};
use super::{IoSettings, Shared, ring};

/// Marks the completion of the eventfd's read.
const WAKE: u64 = u64::MAX;

/// The most one operation moves; the kernel's own limit is a page less than 2 GiB. A multiple of every
/// alignment of direct I/O.
const OPERATION_BYTES: usize = 1 << 30;

/// Where the kernel puts the eventfd's count, which nobody reads. Static, so that it outlives every ring.
static WAKE_COUNT: AtomicU64 = AtomicU64::new(0);

/// The ring, everything in flight, and the shared queue.
pub(super) struct Reactor {
    // Dropped in this order: the kernel lets go of memory before its owners do.
    ring: IoUring,
    buffers: RegisteredBuffers,
    slots: Slots,
    /// Places whose operation must be handed to the kernel.
    ready: VecDeque<usize>,
    completed: Vec<(u64, i32)>,
    wake_armed: bool,
    shared: Arc<Shared>,
}

impl Reactor {
    /// Makes the ring; to be called on the thread that will run it.
    pub(super) fn new(shared: Arc<Shared>, settings: &IoSettings) -> Result<Self> {
        // One entry more than requests, for the eventfd.
        let ring = ring::build(settings.depth as u32 + 1)?;
        let buffers = RegisteredBuffers::new(&ring.submitter(), settings.registered_buffers);
        Ok(Self {
            ring,
            buffers,
            slots: Slots::new(settings.depth),
            ready: VecDeque::with_capacity(settings.depth),
            completed: Vec::with_capacity(settings.depth + 1),
            wake_armed: false,
            shared,
        })
    }

    /// Works until the queue is closed and nothing is in flight.
    pub(super) fn run(mut self) {
        self.shared.inbox.serve();
        loop {
            let closed = self.take_requests();
            if closed && self.slots.is_empty() {
                return;
            }
            if !self.push_entries() {
                continue;
            }
            if let Err(error) = self.enter() {
                self.fail(&error);
                return;
            }
            self.shared.asleep.store(false, Ordering::SeqCst);
            self.reap();
        }
    }

    /// Takes as many waiting requests as there is room for, and says whether the queue is closed.
    fn take_requests(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut waiting = shared.inbox.lock();
        while self.slots.has_room() {
            let Some(request) = waiting.requests.pop_front() else {
                break;
            };
            match self.slots.insert(request) {
                Ok(index) => self.ready.push_back(index),
                Err(request) => {
                    waiting.requests.push_front(*request);
                    break;
                }
            }
        }
        // With no room left a completion has to come first anyway.
        if self.slots.has_room() && waiting.requests.is_empty() {
            shared.asleep.store(true, Ordering::SeqCst);
        }
        waiting.closed
    }

    /// Queues operations for the kernel. `false` says that a request ended here, so that there's room again and
    /// the queue has to be looked at before sleeping.
    fn push_entries(&mut self) -> bool {
        let mut all_live = true;
        if !self.wake_armed {
            let wake = types::Fd(self.shared.wake.as_raw_fd());
            let entry = opcode::Read::new(wake, WAKE_COUNT.as_ptr().cast(), 8)
                .build()
                .user_data(WAKE);
            // SAFETY: the target is static and atomic, and `shared` keeps the eventfd open longer than the ring.
            self.wake_armed = unsafe { self.ring.submission().push(&entry) }.is_ok();
        }
        while let Some(index) = self.ready.front().copied() {
            let Some(running) = self.slots.get_mut(index) else {
                self.ready.pop_front();
                continue;
            };
            let entry = match build_entry(running, &mut self.buffers, &self.ring) {
                Ok(entry) => entry.user_data(index as u64),
                Err(error) => {
                    self.ready.pop_front();
                    self.finish(index, Err(error));
                    all_live = false;
                    continue;
                }
            };
            // SAFETY: the entry's memory and file belong to a request that `slots` holds, and gives away only
            // when the kernel has reported the operation's end.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                break; // full; the rest goes with the next round
            }
            self.ready.pop_front();
        }
        all_live
    }

    /// Hands the entries to the kernel and sleeps until something is complete.
    fn enter(&self) -> Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, or completions have to be taken first.
                Some(libc::EINTR | libc::EBUSY | libc::ETIME) => Ok(()),
                // The kernel is short of memory for the moment: try again soon, without spinning.
                Some(libc::EAGAIN | libc::ENOMEM) => {
                    let pause = Timespec {
                        tv_sec: 0,
                        tv_nsec: 10_000_000,
                    };
                    let mut descriptors = [PollFd::new(&self.shared.wake, PollFlags::empty())];
                    let _timed_out = poll(&mut descriptors, Some(&pause));
                    Ok(())
                }
                _ => Err(Error::from_io(error, "the ring failed")),
            },
        }
    }

    fn reap(&mut self) {
        let mut completed = std::mem::take(&mut self.completed);
        completed.extend(
            self.ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result())),
        );
        for (user_data, result) in completed.drain(..) {
            if user_data == WAKE {
                self.wake_armed = false;
                continue;
            }
            let index = user_data as usize;
            let Some(running) = self.slots.get_mut(index) else {
                continue;
            };
            match running.progress.advance(&running.request, i64::from(result)) {
                Step::Done => self.finish(index, Ok(())),
                Step::Again => self.ready.push_back(index),
                Step::Failed(error) => self.finish(index, Err(error)),
            }
        }
        self.completed = completed;
    }

    fn finish(&mut self, index: usize, result: Result<()>) {
        if let Some(running) = self.slots.remove(index) {
            self.shared.inbox.complete(running.request, result);
        }
    }

    /// The ring is unusable: everybody is told, and buffers that the kernel may still hold are never reused.
    fn fail(&mut self, error: &Error) {
        tracing::error!(%error, "the I/O thread gives up");
        self.shared.inbox.close(&cancelled());
        for request in self.slots.abandon() {
            self.shared.inbox.complete(request, Err(error.clone()));
        }
    }
}

/// The operation for what remains of a request.
fn build_entry(running: &Running, buffers: &mut RegisteredBuffers, ring: &IoUring) -> Result<squeue::Entry> {
    let request = &running.request;
    let done = running.progress.done.min(request.length);
    let length = (request.length - done).min(OPERATION_BYTES);
    // SAFETY: `done` is within the range that `address` has checked.
    let address = unsafe { request.address()?.add(done) };
    let file = types::Fd(request.file.as_raw_fd());
    let file_offset = request.file_offset + done as u64;
    let arena_offset = request.buffer.offset() + request.buffer_offset + done;
    let place = buffers.find(&ring.submitter(), request.buffer.arena(), arena_offset, length);
    let length = length as u32;
    Ok(match (request.direction, place) {
        (Direction::Read, Some(place)) => opcode::ReadFixed::new(file, address, length, place)
            .offset(file_offset)
            .build(),
        (Direction::Read, None) => opcode::Read::new(file, address, length)
            .offset(file_offset)
            .build(),
        (Direction::Write, Some(place)) => opcode::WriteFixed::new(file, address, length, place)
            .offset(file_offset)
            .build(),
        (Direction::Write, None) => opcode::Write::new(file, address, length)
            .offset(file_offset)
            .build(),
    })
}
