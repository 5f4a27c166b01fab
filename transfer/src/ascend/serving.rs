//! The thread that has one peer's moves moved.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::transport::{Exposure, RawConnection};
use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::MutexGuard;

use super::desk::{CONNECT, Connected, Inner, State, over};
use super::job::Job;
use super::port::Port;

/// Memory that is being released is taken from the transport if it isn't done in that time.
const GRACE: Duration = Duration::from_millis(100);
/// After a failure no connection is tried for so long.
const REST: Duration = Duration::from_secs(1);

/// What the thread knows.
pub(super) struct Serving<'a> {
    desk: &'a Arc<Inner>,
    port: &'a Port,
    connected: Option<Connected>,
    rests_until: Option<Instant>,
    /// Since when something under way has memory that is being released.
    closed_since: Option<Instant>,
}

enum Next {
    Job(Box<Job>),
    /// Something under way must end now.
    Overdue,
    Closed,
}

impl<'a> Serving<'a> {
    pub fn new(desk: &'a Arc<Inner>, port: &'a Port, connected: Connected) -> Self {
        Self {
            desk,
            port,
            connected: Some(connected),
            rests_until: None,
            closed_since: None,
        }
    }

    /// Until the desk is closed.
    pub fn run(mut self) {
        loop {
            match self.next() {
                Next::Job(job) => self.serve(*job),
                Next::Overdue => self.disconnect(),
                Next::Closed => return self.disconnect(),
            }
        }
    }

    fn now(&self) -> Instant {
        self.desk.shared.runtime.clock.now()
    }

    /// Sleeps until there is something to do.
    fn next(&mut self) -> Next {
        let desk = self.desk;
        let mut state = desk.state.lock();
        loop {
            if state.closed {
                return Next::Closed;
            }
            let now = self.now();
            let mut wake: Option<Instant> = None;
            if state.under_way.values().any(Job::is_closed) {
                let since = *self.closed_since.get_or_insert(now);
                wake = Some(since + GRACE);
            } else {
                self.closed_since = None;
            }
            let earliest = state.under_way.values().map(|job| job.deadline).min();
            wake = wake.into_iter().chain(earliest).min();
            if !state.stuck && wake.is_some_and(|wake| wake <= now) {
                for job in state.under_way.values_mut() {
                    if job.is_closed() {
                        job.why = Some(ErrorKind::Fenced);
                    } else if job.deadline <= now {
                        job.why = Some(ErrorKind::TimedOut);
                    }
                }
                return Next::Overdue;
            }
            if let Some(job) = state.queue.pop_front() {
                return Next::Job(Box::new(job));
            }
            self.sleep(&mut state, wake);
        }
    }

    fn sleep(&self, state: &mut MutexGuard<'_, State>, wake: Option<Instant>) {
        match wake.filter(|_| !state.stuck) {
            Some(wake) => {
                self.desk.changed.wait_until(state, wake);
            }
            None => self.desk.changed.wait(state),
        }
    }

    fn serve(&mut self, job: Job) {
        let refused = if job.is_closed() {
            Some(ErrorKind::Fenced)
        } else if job.deadline <= self.now() {
            Some(ErrorKind::TimedOut)
        } else {
            None
        };
        if let Some(kind) = refused {
            return job.finish(
                &self.desk.tally,
                Err(Error::new(kind, "it was over before it began")),
            );
        }
        match self.connection(&job) {
            Ok(connection) => self.submit(connection, job),
            Err(error) => job.finish(&self.desk.tally, Err(error)),
        }
    }

    /// A connection that knows the job's memory on both sides.
    fn connection(&mut self, job: &Job) -> Result<RawConnection> {
        let mut own = 0;
        for region in &job.regions {
            own = self.port.know(region, Exposure::Own)?;
        }
        if let Some(connected) = &self.connected {
            if connected.own >= own && connected.peers >= job.generation {
                return Ok(connected.connection);
            }
            // what is under way ends first
            self.drain();
            self.disconnect();
        }
        let now = self.now();
        if self.desk.state.lock().stuck || self.rests_until.is_some_and(|until| now < until) {
            return Err(over());
        }
        let deadline = job.deadline.min(self.desk.shared.runtime.deadline(CONNECT));
        let connected = self
            .desk
            .connect(self.port, job.generation, deadline)
            .inspect_err(|error| {
                tracing::warn!(%error, peer = %self.desk.peer, "the transport doesn't reach a peer");
                self.rests_until = Some(self.desk.shared.runtime.deadline(REST));
            })?;
        let connection = connected.connection;
        self.connected = Some(connected);
        Ok(connection)
    }

    /// Waits until nothing is under way, or something is overdue.
    fn drain(&self) {
        let mut state = self.desk.state.lock();
        while !state.under_way.is_empty() && !state.closed {
            let earliest = state.under_way.values().map(|job| job.deadline).min();
            let soon = self.desk.shared.runtime.deadline(GRACE);
            let wake = earliest.map_or(soon, |earliest| earliest.min(soon));
            let late = earliest.is_some_and(|earliest| earliest <= self.now());
            if late || state.under_way.values().any(Job::is_closed) {
                return;
            }
            self.desk.changed.wait_until(&mut state, wake);
        }
    }

    fn submit(&self, connection: RawConnection, job: Job) {
        let direction = job.direction();
        let moves = job.moves.clone();
        let number = {
            let mut state = self.desk.state.lock();
            state.next += 1;
            let number = state.next;
            state.under_way.insert(number, job);
            number
        };
        let desk = self.desk.clone();
        let done = Box::new(move |result| desk.moved(number, result));
        // SAFETY: the connection is open; the job holds its ranges, which are registered, until `done` is called.
        unsafe { self.port.transport.submit(connection, direction, &moves, done) };
    }

    /// Ends the connection, and with it all that is under way.
    fn disconnect(&mut self) {
        let Some(connected) = self.connected.take() else {
            return;
        };
        // SAFETY: the connection is open, and not used again.
        let ended = unsafe { self.port.transport.disconnect(connected.connection) };
        let mut state = self.desk.state.lock();
        let left = state.under_way.len();
        if ended.is_err() || left > 0 {
            // what it has is answered if it's ever done; the asker helps itself
            state.stuck = true;
            drop(state);
            let error = ended.err();
            tracing::error!(?error, left, peer = %self.desk.peer, "a connection can't be ended: memory stays in use");
        }
    }
}
