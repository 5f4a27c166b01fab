//! Who drives the connections of a link.
//!
//! Handing bytes from a reactor's thread to the thread that waits for them costs as much as a small transfer itself. So a
//! thread that waits takes the lead: it polls the connections in the reactors' stead, for everybody. Others that wait
//! meanwhile are followers; one of them gets the lead when the leader has what it waited for. Without followers the
//! connections stay unwatched until the next tick, since the next request often follows at once.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, Result, Runtime};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::connection::Connection;
use crate::transfer::{TransferState, Woken};

/// Bytes that are taken from one connection before the others have their turn.
pub(super) const BUDGET: usize = 4 << 20;
/// Answers up to so many bytes are left in the socket for whoever waits, or for the next tick.
pub(super) const SMALL_BYTES: u64 = 64 << 10;

#[derive(Default)]
struct Lead {
    /// Whether some thread leads.
    leading: bool,
    /// Whether the reactors don't watch the connections.
    led: bool,
    /// Whether somebody led since the last tick.
    fresh: bool,
    followers: VecDeque<Arc<TransferState>>,
}

/// The connections of a link, and who drives them.
pub(crate) struct Team {
    pub connections: Vec<Arc<Connection>>,
    lead: Mutex<Lead>,
    wake: Arc<OwnedFd>,
    runtime: Runtime,
    /// Set when one of the connections is over, and with it the link.
    broken: AtomicBool,
}

impl Team {
    pub fn new(connections: Vec<Arc<Connection>>, runtime: &Runtime) -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::from_io(errno.into(), "eventfd failed"))?;
        Ok(Self {
            connections,
            lead: Mutex::default(),
            wake: Arc::new(wake),
            runtime: runtime.clone(),
            broken: AtomicBool::new(false),
        })
    }

    /// Requests that wait for their answers.
    pub fn outstanding(&self) -> usize {
        let each = self.connections.iter();
        each.map(|connection| connection.outstanding()).sum()
    }

    /// Whether it was broken up, or is about to be.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
            || self.connections.iter().any(|connection| connection.is_closed())
    }

    /// Ends all connections with that error.
    pub fn break_up(&self, error: &Error) {
        self.broken.store(true, Ordering::Release);
        for connection in &self.connections {
            connection.close(error);
        }
        self.wake_leader();
    }

    /// Requests whose answers have up to that many bytes were handed over: makes sure that somebody takes them.
    pub fn began(&self, bytes: u64) {
        let mut lead = self.lead.lock();
        if lead.leading {
            // the leader doesn't watch for what became blocked after it fell asleep
            if self.connections.iter().any(|connection| connection.is_blocked()) {
                self.wake_leader();
            }
        } else if lead.led && bytes > SMALL_BYTES {
            self.hand_to_reactors(&mut lead);
        }
    }

    /// Takes what has arrived, where no other thread would.
    pub fn poll(&self) {
        let unwatched = {
            let lead = self.lead.lock();
            lead.led && !lead.leading
        };
        if unwatched {
            for connection in &self.connections {
                connection.drive_for_others(BUDGET);
            }
        }
    }

    /// Works or sleeps until the transfer is over or the deadline has passed.
    pub fn wait(&self, transfer: &Arc<TransferState>, deadline: Instant) {
        while !transfer.is_done() {
            if self.is_broken() {
                // whoever broke it up finishes the transfer
                self.break_up(&super::connection::gone());
                transfer.sleep(deadline);
            } else if self.take_lead(transfer, deadline) {
                self.drive_until(transfer, deadline);
                self.pass_lead(&mut self.lead.lock());
            }
            if self.runtime.clock.now() >= deadline {
                return;
            }
        }
    }

    /// Makes the leader look whether it still has something to wait for.
    pub fn nudge(&self) {
        if self.lead.lock().leading {
            self.wake_leader();
        }
    }

    /// Lets the reactors watch again if nobody has led since the last time. Whether the next tick should come soon.
    pub fn tick(&self) -> bool {
        let mut lead = self.lead.lock();
        if lead.led && !lead.leading && !std::mem::take(&mut lead.fresh) {
            self.hand_to_reactors(&mut lead);
        }
        lead.led || self.outstanding() > 0
    }

    fn hand_to_reactors(&self, lead: &mut Lead) {
        lead.led = false;
        for connection in &self.connections {
            connection.set_leader(None);
        }
    }

    fn wake_leader(&self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// Takes the lead, or waits for it. False if the transfer ended or the deadline passed before.
    fn take_lead(&self, transfer: &Arc<TransferState>, deadline: Instant) -> bool {
        {
            let mut lead = self.lead.lock();
            if transfer.is_done() {
                return false;
            }
            if !lead.leading {
                lead.leading = true;
                if !lead.led {
                    lead.led = true;
                    for connection in &self.connections {
                        connection.set_leader(Some(self.wake.clone()));
                    }
                }
                return true;
            }
            lead.followers.push_back(transfer.clone());
        }
        if transfer.sleep(deadline) == Woken::Lead {
            return true;
        }
        let mut lead = self.lead.lock();
        let same = |other: &Arc<TransferState>| Arc::ptr_eq(other, transfer);
        if let Some(at) = lead.followers.iter().position(same) {
            lead.followers.remove(at);
        } else if transfer.demote() {
            // given the lead just now: passed on
            self.pass_lead(&mut lead);
        }
        false
    }

    fn pass_lead(&self, lead: &mut Lead) {
        lead.fresh = true;
        while let Some(next) = lead.followers.pop_front() {
            if !next.is_done() {
                next.promote();
                return;
            }
        }
        lead.leading = false;
        if self.outstanding() > 0 {
            self.hand_to_reactors(lead);
        }
    }

    /// Moves bytes until the transfer is over or the deadline has passed.
    fn drive_until(&self, transfer: &Arc<TransferState>, deadline: Instant) {
        while !transfer.is_done() && !self.is_broken() {
            let now = self.runtime.clock.now();
            if now >= deadline {
                return;
            }
            let ready = self.sleep(deadline.saturating_duration_since(now));
            for (index, connection) in self.connections.iter().enumerate() {
                if ready & (1 << index) != 0 {
                    connection.drive(BUDGET);
                }
            }
        }
    }

    /// Sleeps until connections have something to do; returns their bits.
    fn sleep(&self, most: Duration) -> u32 {
        let mut descriptors = Vec::with_capacity(self.connections.len() + 1);
        let mut ready = 0;
        for (index, connection) in self.connections.iter().enumerate() {
            if connection.is_unfinished() {
                ready |= 1 << index;
            }
            let mut flags = PollFlags::IN;
            if connection.is_blocked() {
                flags |= PollFlags::OUT;
            }
            descriptors.push(PollFd::from_borrowed_fd(connection.socket(), flags));
        }
        descriptors.push(PollFd::new(&*self.wake, PollFlags::IN));
        let timeout = if ready == 0 { most } else { Duration::ZERO };
        let timeout = Timespec::try_from(timeout).ok();
        if poll(&mut descriptors, timeout.as_ref()).is_err() {
            return ready;
        }
        for (index, descriptor) in descriptors.iter().enumerate() {
            if descriptor.revents().is_empty() {
                continue;
            }
            if index < self.connections.len() {
                ready |= 1 << index;
            } else {
                let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
            }
        }
        ready
    }
}
