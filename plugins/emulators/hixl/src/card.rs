//! A client's card: a thread that runs tasks one after the other.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::faults;
use crate::frames::{GET, PIECE_BYTES, PUT, ask};
use crate::statuses::{COMPLETED, TASK_FAILED};

/// Tasks that were run.
static TASKS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub remote: u64,
    pub local: u64,
    pub bytes: u64,
}

pub(crate) struct Task {
    pub number: u64,
    pub kind: u8,
    pub runs: Vec<Run>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Registered memory by its number.
    pub local: BTreeMap<u64, (u64, u64)>,
    /// What the server exposed when it was asked.
    pub remote: Vec<(u64, u64)>,
    pub queue: VecDeque<Task>,
    /// Tasks that nobody asked about since they ended, with their status.
    pub tasks: BTreeMap<u64, i32>,
    pub stopped: bool,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub state: Mutex<State>,
    pub changed: Condvar,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The card at work.
    pub fn run(&self, mut stream: UnixStream) {
        loop {
            let mut state = self.lock();
            let task = loop {
                if state.stopped {
                    return;
                }
                match state.queue.pop_front() {
                    Some(task) if !faults::HANG.is_on() => break task,
                    Some(task) => state.queue.push_front(task),
                    None => {}
                }
                let woken = self.changed.wait_timeout(state, Duration::from_millis(20));
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
            };
            drop(state);
            let whole = self.move_bytes(&mut stream, &task);
            let count = TASKS.fetch_add(1, Ordering::Relaxed) + 1;
            let every = faults::FAIL_EVERY.get();
            let failed = !whole || (every > 0 && count.is_multiple_of(every));
            let mut state = self.lock();
            if let Some(status) = state.tasks.get_mut(&task.number) {
                *status = if failed { TASK_FAILED } else { COMPLETED };
            }
        }
    }

    /// Moves all of a task, or half of it. Whether it was all.
    fn move_bytes(&self, stream: &mut UnixStream, task: &Task) -> bool {
        let stall = faults::STALL_MS.get();
        if stall > 0 {
            std::thread::park_timeout(Duration::from_millis(stall));
        }
        let short = faults::SHORT.is_on();
        for run in &task.runs {
            let bytes = if short { run.bytes / 2 } else { run.bytes };
            let mut at = 0;
            while at < bytes {
                let length = (bytes - at).min(PIECE_BYTES as u64);
                if self.lock().stopped || !matches!(move_piece(stream, task.kind, run, at, length), Ok(true))
                {
                    return false;
                }
                at += length;
            }
        }
        !short
    }
}

fn move_piece(stream: &mut UnixStream, kind: u8, run: &Run, at: u64, length: u64) -> std::io::Result<bool> {
    let address = (run.local + at) as usize;
    ask(stream, kind, run.remote + at, length)?;
    if kind == PUT {
        let from = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: the range is registered, and the caller keeps it so until the task has ended.
        let bytes = unsafe { std::slice::from_raw_parts(from, length as usize) };
        stream.write_all(bytes)?;
    }
    let mut known = [0];
    stream.read_exact(&mut known)?;
    if known[0] == 0 {
        return Ok(false);
    }
    if kind == GET {
        let to = std::ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to, length as usize) };
        stream.read_exact(bytes)?;
    }
    Ok(true)
}
