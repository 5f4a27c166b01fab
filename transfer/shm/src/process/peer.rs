//! A handle to a peer's process that no other process can slip into.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use kvstored_core::runtime::Clock;
use kvstored_core::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::stat::{StartTime, Stat};
use crate::time::{os, ready};

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessState {
    /// It runs or sleeps.
    Running,
    /// A signal or a debugger stopped it: it won't finish anything until it's continued.
    Stopped,
    /// It has exited, by itself or killed. None of its threads touches memory any more.
    Exited,
}

/// A peer's process, by a pidfd: readable once the process has exited (`AsFd`, for an event loop).
#[derive(Debug)]
pub struct PeerProcess {
    pidfd: OwnedFd,
    pid: Pid,
    started: StartTime,
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the peer's process has exited")
}

impl PeerProcess {
    /// Opens a process by its number, and the start time that it told, so that a later process with the same
    /// number is not taken for it.
    ///
    /// Fails with `Unavailable` where that process has exited, and with `InvalidInput` for a number below 1.
    pub fn open(pid: i32, started: StartTime) -> Result<Self> {
        let pid = (pid > 0)
            .then(|| Pid::from_raw(pid))
            .flatten()
            .ok_or_else(|| Error::invalid(format!("process {pid}")))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
            // the kernel says so for a thread that isn't its process's first: the process has gone
            Errno::INVAL | Errno::NOENT => gone(),
            errno => os(errno, "pidfd_open"),
        })?;
        Self::from_pidfd(pidfd, pid, Some(started))
    }

    /// This process.
    pub fn own() -> Result<Self> {
        Self::open(
            rustix::process::getpid().as_raw_nonzero().get(),
            StartTime::own()?,
        )
    }

    /// Fails with `Unavailable` where the process has exited, or isn't the one that started then.
    pub(crate) fn from_pidfd(pidfd: OwnedFd, pid: Pid, told: Option<StartTime>) -> Result<Self> {
        let started = Stat::of(pid.as_raw_nonzero().get())?.started;
        let process = Self { pidfd, pid, started };
        // what was read is the pidfd's process's only if that hasn't been replaced: it still had its number
        // afterwards
        if process.has_exited() || told.is_some_and(|told| told != started) {
            return Err(gone());
        }
        Ok(process)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// When it started.
    pub fn started(&self) -> StartTime {
        self.started
    }

    /// Whether all of its threads have ended.
    pub fn has_exited(&self) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut polled, Some(&at_once)), Ok(count) if count > 0)
    }

    /// Waits until it has exited. False at the deadline.
    pub fn wait_exited(&self, clock: &dyn Clock, deadline: Instant) -> Result<bool> {
        ready(&self.pidfd, PollFlags::IN, clock, deadline)
    }

    /// What it's doing. A process that is frozen by its control group counts as running.
    pub fn state(&self) -> ProcessState {
        let stat = Stat::of(self.pid());
        if self.has_exited() {
            return ProcessState::Exited;
        }
        match stat {
            Ok(Stat {
                state: b'T' | b't', ..
            }) => ProcessState::Stopped,
            _ => ProcessState::Running,
        }
    }
}

impl AsFd for PeerProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
