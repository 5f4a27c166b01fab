//! A stream of the host device: a queue, and the thread that works it off.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::device::Copy;
use kvstored_core::{Arena, Error, ErrorKind, Result, Runtime};
use parking_lot::{Condvar, Mutex};

use super::event::HostEvent;

/// Most tasks that wait in a stream.
const MOST_TASKS: usize = 4096;

/// What a stream does.
pub(super) enum Task {
    /// Copies, and the device memory that they touch.
    Copies(Vec<Copy>, Vec<Arc<Arena>>),
    /// It has come to a record.
    Record(Arc<HostEvent>, u64),
    /// It waits for a record.
    Wait(Arc<HostEvent>, u64),
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// Tasks ever given, and those that ended.
    given: u64,
    ended: u64,
    stopping: bool,
}

/// The queue.
#[derive(Default)]
pub(super) struct HostStream {
    queue: Mutex<Queue>,
    /// A task came, or the stream ends.
    came: Condvar,
    /// A task ended.
    ended: Condvar,
}

impl HostStream {
    /// Appends a task. Fails with `Busy` when too many wait.
    pub(super) fn give(&self, task: Task) -> Result<()> {
        let mut queue = self.queue.lock();
        if queue.tasks.len() >= MOST_TASKS {
            let what = format!("{MOST_TASKS} tasks wait in the stream");
            return Err(Error::new(ErrorKind::Busy, what));
        }
        queue.tasks.push_back(task);
        queue.given += 1;
        drop(queue);
        self.came.notify_one();
        Ok(())
    }

    /// Waits for all that was given by now.
    pub(super) fn synchronize(&self, timeout: Duration, runtime: &Runtime) -> Result<()> {
        let deadline = runtime.deadline(timeout);
        let mut queue = self.queue.lock();
        let wanted = queue.given;
        while queue.ended < wanted {
            let left = deadline.saturating_duration_since(runtime.clock.now());
            if left.is_zero() {
                let what = format!(
                    "{} tasks of a stream were not done in {} ms",
                    wanted - queue.ended,
                    timeout.as_millis()
                );
                return Err(Error::new(ErrorKind::TimedOut, what));
            }
            self.ended.wait_for(&mut queue, left);
        }
        Ok(())
    }

    /// Drops what hasn't begun. Who waits for a record among it waits no longer.
    pub(super) fn abort(&self) {
        let mut queue = self.queue.lock();
        let dropped = std::mem::take(&mut queue.tasks);
        queue.ended += dropped.len() as u64;
        drop(queue);
        self.ended.notify_all();
        for task in dropped {
            if let Task::Record(event, record) = task {
                event.reach(record);
            }
        }
    }

    /// Has the thread end when everything is done. Returns whether it's idle.
    pub(super) fn stop(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.stopping = true;
        let idle = queue.ended == queue.given;
        drop(queue);
        self.came.notify_one();
        idle
    }

    /// The thread.
    pub(super) fn run(&self) {
        loop {
            let task = {
                let mut queue = self.queue.lock();
                loop {
                    match queue.tasks.pop_front() {
                        Some(task) => break task,
                        None if queue.stopping => return,
                        None => self.came.wait(&mut queue),
                    }
                }
            };
            match task {
                Task::Copies(copies, memory) => {
                    for copy in &copies {
                        // SAFETY: whoever gave the copies vouches for the host's side; the device's side was checked
                        // against the allocations, which are held here.
                        unsafe { perform(copy) }
                    }
                    drop(memory);
                }
                Task::Record(event, record) => event.reach(record),
                Task::Wait(event, record) => event.wait(record),
            }
            self.queue.lock().ended += 1;
            self.ended.notify_all();
        }
    }
}

/// # Safety
/// Both ranges must be valid for the copy's bytes.
unsafe fn perform(copy: &Copy) {
    let (source, destination) = (copy.source as *const u8, copy.destination as *mut u8);
    // SAFETY: the caller vouches for both ranges; they may overlap.
    unsafe { std::ptr::copy(source, destination, copy.bytes as usize) }
}
