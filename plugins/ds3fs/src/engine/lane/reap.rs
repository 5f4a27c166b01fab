//! The reaping thread: waits for completions, ends requests or has their next I/O prepared, and watches the time.
#![allow(unsafe_code)]

use std::time::Duration;

use kvstored_backends::io::{Direction, IoRequest, Step};
use kvstored_core::{Error, ErrorKind, Result};

use super::{LONGEST_WAIT, Lane, PAUSE, Running, Way};
use crate::usrbio::Completion;

impl Lane {
    /// The reaping thread.
    pub fn reap(&self) {
        while let Some(wait) = self.next_wait() {
            // SAFETY: only this thread waits.
            match unsafe { self.ring.wait(self.entries, 1, wait) } {
                Ok(completions) => {
                    for completion in completions {
                        self.land(completion);
                    }
                }
                Err(error) => {
                    self.tell(&error, "3FS doesn't say what became of I/O");
                    let mut flight = self.flight.lock();
                    self.started.wait_for(&mut flight, PAUSE);
                }
            }
            self.look_at_deadlines();
        }
        self.room.notify_all();
        self.queue.nudge();
    }

    /// Waits until something flies, and says how long to wait for it; none when nothing will.
    fn next_wait(&self) -> Option<Duration> {
        let mut flight = self.flight.lock();
        if flight.flying == 0 {
            drop(flight);
            self.files.sweep();
            flight = self.flight.lock();
        }
        while flight.flying == 0 {
            if flight.over {
                return None;
            }
            self.started.wait(&mut flight);
        }
        if self.is_over(&flight) {
            return None;
        }
        let now = self.runtime.clock.now();
        let deadlines = flight
            .places
            .iter()
            .flatten()
            .filter_map(|running| running.deadline);
        let next = deadlines.filter(|deadline| *deadline > now).min();
        Some(next.map_or(LONGEST_WAIT, |next| (next - now).min(LONGEST_WAIT)))
    }

    /// Takes a completion in.
    fn land(&self, completion: Completion) {
        let place = completion.userdata;
        let running = {
            let mut flight = self.flight.lock();
            let taken = flight
                .places
                .get_mut(place)
                .filter(|entry| entry.as_ref().is_some_and(|running| running.deadline.is_some()))
                .and_then(Option::take);
            if taken.is_some() {
                flight.flying -= 1;
            }
            taken
        };
        let Some(mut running) = running else {
            let error = Error::internal(format!("a completion for place {place}, where nothing is"));
            return self.tell(&error, "3FS completes what wasn't asked");
        };
        running.deadline = None;
        let Some(request) = running.request.as_ref() else {
            // it ended with a time-out; what came back late is of no use
            return self.vacate(place);
        };
        match &running.way {
            Way::Direct(region) if !region.is_proven() || is_refusal(completion.result) => {
                if completion.result < 0 {
                    region.refuse(-completion.result);
                    running.way = Way::Copied;
                    if self.bounce().is_some() {
                        return self.repeat(place, running);
                    }
                } else {
                    region.prove();
                }
            }
            Way::Direct(_) => {}
            Way::Copied => self.copy_back(place, request, &running, completion.result),
        }
        match running.progress.advance(request, completion.result) {
            Step::Again => self.repeat(place, running),
            Step::Done => self.end(place, running, Ok(())),
            Step::Failed(error) => self.end(place, running, Err(error)),
        }
    }

    /// Copies what was read into the request's buffer.
    fn copy_back(&self, place: usize, request: &IoRequest, running: &Running, result: i64) {
        let moved = usize::try_from(result).unwrap_or(0).min(running.piece);
        if request.direction != Direction::Read || moved == 0 {
            return;
        }
        if let (Some(memory), Ok(address)) = (self.bounce(), request.address()) {
            // SAFETY: `done + piece` is within the range that `address` has checked; the part is this place's, and its
            // I/O has ended.
            unsafe {
                let target = address.add(running.progress.done);
                std::ptr::copy_nonoverlapping(self.part(memory, place), target, moved);
            }
        }
    }

    /// Puts a request back whose next I/O is to be prepared.
    fn repeat(&self, place: usize, running: Running) {
        let mut flight = self.flight.lock();
        if let Some(entry) = flight.places.get_mut(place) {
            *entry = Some(running);
        }
        flight.again.push_back(place);
        drop(flight);
        self.room.notify_all();
        self.queue.nudge();
    }

    fn end(&self, place: usize, running: Running, result: Result<()>) {
        self.vacate(place);
        if let Some(request) = running.request {
            self.queue.complete(request, result);
        }
    }

    /// Ends copied requests whose I/O is out for too long, and says whether the ring is left alone.
    fn look_at_deadlines(&self) {
        let now = self.runtime.clock.now();
        let mut ended = Vec::new();
        let mut flight = self.flight.lock();
        let mut out = 0;
        for running in flight.places.iter_mut().flatten() {
            if running.deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            out += 1;
            if matches!(running.way, Way::Copied) {
                ended.extend(running.request.take());
            }
        }
        let stuck = out > 0;
        let changed = flight.stuck != stuck;
        flight.stuck = stuck;
        drop(flight);
        if changed {
            if stuck {
                tracing::warn!(out, direction = ?self.direction,
                    "3FS doesn't end I/O; its ring is left alone, the mount is used instead");
            } else {
                tracing::info!(direction = ?self.direction, "a ring of 3FS answers again");
            }
            self.room.notify_all();
            self.queue.nudge();
        }
        for request in ended {
            let message = format!("3FS didn't end an I/O in {} ms", self.io_timeout.as_millis());
            self.queue
                .complete(request, Err(Error::new(ErrorKind::TimedOut, message)));
        }
    }
}

/// Whether an outcome says that the other side doesn't have the memory, or no longer.
fn is_refusal(result: i64) -> bool {
    [libc::EACCES, libc::EINVAL]
        .map(|errno| -i64::from(errno))
        .contains(&result)
}
