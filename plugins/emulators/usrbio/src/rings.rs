//! Rings: what is prepared, under way and complete.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::abi::Cqe;
use crate::files::Registered;
use crate::iovs::Mapped;
use crate::mounts::{Job, Mount, lock};
use crate::switches::Fate;

/// One I/O.
#[derive(Clone)]
pub struct Io {
    /// None where the memory's link is missing.
    pub memory: Option<Arc<Mapped>>,
    pub memory_offset: usize,
    pub file: Arc<Registered>,
    pub file_offset: u64,
    pub length: usize,
    pub userdata: usize,
}

struct State {
    places: Vec<Option<Io>>,
    /// Prepared, not started.
    prepared: VecDeque<usize>,
    first_prepared: Option<SystemTime>,
    completed: VecDeque<Cqe>,
    running: usize,
}

// SAFETY: the completions' userdata is a number to us.
unsafe impl Send for State {}

/// A ring.
pub struct Ring {
    pub mount: Arc<Mount>,
    pub for_read: bool,
    depth: i32,
    timeout: Duration,
    state: Mutex<State>,
    changed: Condvar,
    preparing: AtomicBool,
    waiting: AtomicBool,
}

/// Ends the process when two threads are where one may be.
struct Alone<'a>(&'a AtomicBool);

impl<'a> Alone<'a> {
    fn enter(flag: &'a AtomicBool, what: &str) -> Self {
        if flag.swap(true, Ordering::SeqCst) {
            eprintln!("usrbio emulator: two threads {what} on one ring at once");
            std::process::abort();
        }
        Self(flag)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Ring {
    pub fn new(
        mount: Arc<Mount>,
        entries: usize,
        for_read: bool,
        depth: i32,
        timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            mount,
            for_read,
            depth,
            timeout,
            state: Mutex::new(State {
                places: vec![None; entries],
                prepared: VecDeque::new(),
                first_prepared: None,
                completed: VecDeque::new(),
                running: 0,
            }),
            changed: Condvar::new(),
            preparing: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
        })
    }

    /// Puts an I/O into a free place. Returns the place, or an error number below zero.
    pub fn prepare(self: &Arc<Self>, io: Io) -> i32 {
        let _alone = Alone::enter(&self.preparing, "prepare");
        if self.mount.switches.finds_full() {
            return -libc::EAGAIN;
        }
        let mut state = lock(&self.state);
        let Some(place) = state.places.iter().position(Option::is_none) else {
            return -libc::EAGAIN;
        };
        if let Some(free) = state.places.get_mut(place) {
            *free = Some(io);
        }
        state.first_prepared.get_or_insert_with(SystemTime::now);
        state.prepared.push_back(place);
        drop(state);
        if self.mount.switches.get("EAGER") != 0 {
            self.submit();
        }
        place as i32
    }

    /// Starts what makes a batch.
    pub fn submit(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let mut jobs = Vec::new();
        while !state.prepared.is_empty() {
            let count = state.prepared.len();
            let batch = match self.depth {
                0 => count,
                depth if depth > 0 && count < depth as usize => break,
                depth if depth > 0 => depth as usize,
                depth => {
                    let most = depth.unsigned_abs() as usize;
                    let waited = state.first_prepared.and_then(|since| since.elapsed().ok());
                    if count < most && waited.is_some_and(|waited| waited < self.timeout) {
                        break;
                    }
                    count.min(most)
                }
            };
            state.running += batch;
            let started = state.prepared.drain(..batch);
            jobs.extend(started.map(|place| Job {
                ring: Arc::clone(self),
                place,
            }));
        }
        if state.prepared.is_empty() {
            state.first_prepared = None;
        }
        drop(state);
        if !jobs.is_empty() {
            self.mount.start(jobs);
        }
    }

    /// Does the I/O at a place; called by the mount's threads.
    pub fn perform(&self, place: usize) {
        let io = lock(&self.state).places.get(place).cloned().flatten();
        let result = io.as_ref().and_then(|io| self.transfer(io));
        let mut state = lock(&self.state);
        state.running -= 1;
        if let (Some(io), Some(result)) = (io, result) {
            let completion = Cqe {
                index: place as i32,
                reserved: 0,
                result,
                userdata: io.userdata as *const c_void,
            };
            if self.mount.switches.get("REORDER") != 0 {
                state.completed.push_front(completion);
            } else {
                state.completed.push_back(completion);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Moves the bytes. None if it never completes.
    fn transfer(&self, io: &Io) -> Option<i64> {
        let Some(memory) = &io.memory else {
            return Some(-i64::from(libc::EACCES));
        };
        let last = io.memory_offset + io.length - 1;
        let Some(address) = memory.address(io.memory_offset, io.length) else {
            return Some(-i64::from(libc::EINVAL));
        };
        if io.memory_offset / memory.block != last / memory.block {
            return Some(-i64::from(libc::EINVAL));
        }
        let latency = self.mount.switches.get("LATENCY_US");
        if latency > 0 {
            std::thread::sleep(Duration::from_micros(latency as u64));
        }
        let length = match self.mount.switches.fate() {
            Fate::Hangs => return None,
            Fate::Fails(errno) => return Some(-i64::from(errno)),
            Fate::Short => io.length.div_ceil(2),
            Fate::Done => io.length,
        };
        let descriptor = io.file.file.as_raw_fd();
        let mut done = 0usize;
        while done < length {
            let offset = (io.file_offset + done as u64) as libc::off_t;
            let rest = length - done;
            let moved = if self.for_read {
                // SAFETY: the range lies in memory that `io` keeps mapped.
                unsafe { libc::pread(descriptor, address.add(done).cast(), rest, offset) }
            } else {
                // SAFETY: as above.
                unsafe { libc::pwrite(descriptor, address.add(done).cast(), rest, offset) }
            };
            match moved {
                0 => break,
                moved if moved > 0 => done += moved as usize,
                _ => {
                    let error = std::io::Error::last_os_error().raw_os_error();
                    match error.unwrap_or(libc::EIO) {
                        libc::EINTR => {}
                        // direct I/O can't go on from where the file ended
                        _ if done > 0 => break,
                        error => return Some(-i64::from(error)),
                    }
                }
            }
        }
        Some(done as i64)
    }

    /// Takes completions until there are `least` or the deadline passes; frees their places.
    pub fn wait(self: &Arc<Self>, most: usize, least: usize, deadline: Option<SystemTime>) -> Vec<Cqe> {
        let _alone = Alone::enter(&self.waiting, "wait");
        let mut reaped = Vec::new();
        let mut state = lock(&self.state);
        loop {
            while reaped.len() < most {
                let Some(completion) = state.completed.pop_front() else {
                    break;
                };
                if let Some(place) = state.places.get_mut(completion.index as usize) {
                    *place = None;
                }
                reaped.push(completion);
            }
            if reaped.len() >= least.min(most) {
                return reaped;
            }
            let Some(deadline) = deadline else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let Ok(left) = deadline.duration_since(SystemTime::now()) else {
                return reaped;
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for what is under way and will end.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        while state.running > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
