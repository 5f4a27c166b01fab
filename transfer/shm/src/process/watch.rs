//! Tells which of many processes have exited.

use std::os::fd::OwnedFd;
use std::time::Instant;

use kvstored_core::runtime::Clock;
use kvstored_core::{Error, Result};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use super::PeerProcess;
use crate::time::{left, os, timespec};

/// The key of the wake-up among those of processes.
const WAKE: u64 = u64::MAX;
const MOST_EVENTS: usize = 64;

/// Watches processes under keys of the caller's. One thread waits; any thread adds, removes and wakes.
#[derive(Debug)]
pub struct LivenessWatch {
    epoll: OwnedFd,
    wake: OwnedFd,
}

impl LivenessWatch {
    /// Watches nothing yet.
    pub fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| os(errno, "epoll_create"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| os(errno, "eventfd"))?;
        epoll::add(
            &epoll,
            &wake,
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN,
        )
        .map_err(|errno| os(errno, "epoll_ctl"))?;
        Ok(Self { epoll, wake })
    }

    /// Watches a process. It's told once under this key, also when it has exited already.
    ///
    /// Fails with `InvalidInput` for the key `u64::MAX`, and with `AlreadyExists` for a handle that is
    /// watched.
    pub fn add(&self, key: u64, process: &PeerProcess) -> Result<()> {
        if key == WAKE {
            return Err(Error::invalid("the key is taken"));
        }
        // once: the descriptor stays readable, and would be told for ever
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        epoll::add(&self.epoll, process, epoll::EventData::new_u64(key), flags)
            .map_err(|errno| os(errno, "epoll_ctl"))
    }

    /// Watches it no more. One that isn't watched is fine, and dropping a process does the same.
    pub fn remove(&self, process: &PeerProcess) {
        let _ = epoll::delete(&self.epoll, process);
    }

    /// The keys of processes that have exited and weren't told yet, once there are any. Empty at the
    /// deadline, and after [`LivenessWatch::wake`].
    pub fn wait(&self, clock: &dyn Clock, deadline: Instant) -> Result<Vec<u64>> {
        let mut events = Vec::with_capacity(MOST_EVENTS);
        loop {
            let timeout = timespec(left(clock, deadline));
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(os(errno, "epoll_wait")),
            }
        }
        let keys = events.iter().map(|event| event.data.u64());
        if keys.clone().any(|key| key == WAKE) {
            let mut count = [0; 8];
            // another waiter may have taken it
            let _ = rustix::io::read(&self.wake, &mut count);
        }
        Ok(keys.filter(|key| *key != WAKE).collect())
    }

    /// Makes a wait return.
    pub fn wake(&self) {
        // fails only when it's set already
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}
