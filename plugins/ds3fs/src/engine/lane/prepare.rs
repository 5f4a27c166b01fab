//! The preparing thread: takes requests up, gives them places, prepares their I/O.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use kvstored_backends::io::{Direction, IoRequest, Progress};
use kvstored_core::{Error, ErrorKind, Result};

use super::{HANDED_ON, LONGEST_WAIT, Lane, MOST_REFUSALS, PAUSE, Region, Running, Way};
use crate::lend::Lent;
use crate::usrbio::Memory;

impl Lane {
    /// The preparing thread.
    pub fn prepare(&self) {
        while let Some((again, requests)) = self.next_work() {
            let _turn = self.turn.lock();
            let mut prepared = 0;
            for place in again {
                prepared += self.launch(place);
            }
            for request in requests {
                if let Some(place) = self.seat(request) {
                    prepared += self.launch(place);
                }
            }
            self.submit_prepared(prepared);
        }
        // nobody launches anything from here on, so what flies now is all that the reaping thread waits for
        let _turn = self.turn.lock();
        self.flight.lock().over = true;
        self.started.notify_all();
    }

    /// Prepares those requests at once that need neither a copy nor a wait. Returns the others.
    pub fn launch_now(&self, requests: Vec<IoRequest>) -> Vec<IoRequest> {
        let Some(_turn) = self.turn.try_lock() else {
            return requests;
        };
        let (mut rest, mut prepared) = (Vec::new(), 0);
        for request in requests {
            let ready = {
                let flight = self.flight.lock();
                !flight.stuck && flight.closing.is_none() && !flight.free.is_empty()
            };
            if !ready || request.length == 0 || direct(&request).is_none() || self.queue.is_closed() {
                rest.push(request);
                continue;
            }
            self.queue.enter();
            if let Some(place) = self.seat(request) {
                prepared += self.launch(place);
            }
        }
        self.submit_prepared(prepared);
        rest
    }

    fn submit_prepared(&self, prepared: usize) {
        if prepared == 0 {
            return;
        }
        self.started.notify_one();
        if let Err(error) = self.ring.submit() {
            self.tell(&error, "I/O can't be submitted to 3FS");
        }
    }

    /// Waits for places to prepare again and requests to take up; none when there will be no more.
    fn next_work(&self) -> Option<(VecDeque<usize>, Vec<IoRequest>)> {
        let (room, stuck, again) = {
            let mut flight = self.flight.lock();
            loop {
                let again = std::mem::take(&mut flight.again);
                if flight.stuck {
                    break (HANDED_ON, true, again);
                }
                if !again.is_empty() || !flight.free.is_empty() {
                    break (flight.free.len(), false, again);
                }
                if self.is_over(&flight) {
                    return None;
                }
                self.room.wait_for(&mut flight, LONGEST_WAIT);
            }
        };
        let requests = if again.is_empty() {
            let interrupted = || {
                let flight = self.flight.lock();
                !flight.again.is_empty() || flight.stuck != stuck
            };
            self.queue.take(room, interrupted)
        } else {
            self.queue.take_now(room)
        };
        if again.is_empty() && requests.is_empty() && self.queue.is_closed() {
            let mut flight = self.flight.lock();
            while flight.again.is_empty() {
                if flight.flying == 0 || self.is_over(&flight) {
                    return None;
                }
                self.room.wait_for(&mut flight, LONGEST_WAIT);
            }
        }
        Some((again, requests))
    }

    /// Gives a request a place, or hands it on where that can't be.
    fn seat(&self, request: IoRequest) -> Option<usize> {
        if self.flight.lock().stuck {
            self.hand_on(request);
            return None;
        }
        let Some(descriptor) = self.files.descriptor(&request.file) else {
            self.hand_on(request);
            return None;
        };
        let way = match direct(&request) {
            Some(region) => Way::Direct(region),
            None if self.bounce().is_some() => Way::Copied,
            None => {
                self.hand_on(request);
                return None;
            }
        };
        self.count(usize::from(matches!(way, Way::Copied)));
        let mut flight = self.flight.lock();
        let Some(place) = flight.free.pop() else {
            drop(flight);
            self.hand_on(request);
            return None;
        };
        let running = Running {
            _file: Arc::clone(&request.file),
            request: Some(request),
            descriptor,
            progress: Progress::default(),
            way,
            piece: 0,
            refusals: 0,
            deadline: None,
        };
        if let Some(entry) = flight.places.get_mut(place) {
            *entry = Some(running);
        }
        Some(place)
    }

    /// Prepares the next I/O of a place. Returns how many were prepared: one or none.
    fn launch(&self, place: usize) -> usize {
        let taken = {
            let mut flight = self.flight.lock();
            let stuck = flight.stuck;
            flight
                .places
                .get_mut(place)
                .and_then(Option::take)
                .map(|running| (running, stuck))
        };
        let Some((mut running, stuck)) = taken else {
            return 0;
        };
        let Some(request) = running.request.as_ref().filter(|_| !stuck) else {
            self.vacate(place);
            if let Some(request) = running.request {
                self.hand_on(request);
            }
            return 0;
        };
        let way = running.way.clone();
        let (memory, address, piece) = match self.aim(place, request, &way, running.progress.done) {
            Ok(aimed) => aimed,
            Err(error) => {
                self.vacate(place);
                if let Some(request) = running.request {
                    self.queue.complete(request, Err(error));
                }
                return 0;
            }
        };
        let offset = request.file_offset + running.progress.done as u64;
        let descriptor = running.descriptor;
        running.piece = piece;
        running.deadline = Some(self.runtime.deadline(self.io_timeout));
        let mut flight = self.flight.lock();
        if let Some(entry) = flight.places.get_mut(place) {
            *entry = Some(running);
        }
        flight.flying += 1;
        drop(flight);
        // SAFETY: `aim` has taken the range from the memory; the place keeps the buffer or its part of the ring's memory
        // until the completion is reaped. The turn is ours.
        let outcome = unsafe {
            self.ring
                .prepare(memory, address, piece, descriptor, offset, place)
        };
        match outcome {
            Ok(_) => 1,
            Err(errno) => {
                self.unlaunch(place, errno);
                0
            }
        }
    }

    /// Where the next I/O of a request moves how many bytes; copies what is to be written.
    fn aim<'a>(
        &'a self,
        place: usize,
        request: &IoRequest,
        way: &'a Way,
        done: usize,
    ) -> Result<(&'a Memory, *mut u8, usize)> {
        let done = done.min(request.length);
        let rest = request.length - done;
        // SAFETY: `done` is within the range that `address` has checked.
        let address = unsafe { request.address()?.add(done) };
        let gone = || Error::new(ErrorKind::Unavailable, "the memory for 3FS is gone");
        match way {
            Way::Direct(region) => {
                let memory = region.usable(address, rest).ok_or_else(gone)?;
                Ok((memory, address, rest))
            }
            Way::Copied => {
                let memory = self.bounce().ok_or_else(gone)?;
                let piece = rest.min(self.bounce_bytes);
                let copy = self.part(memory, place);
                if request.direction == Direction::Write {
                    // SAFETY: both ranges are valid for that length and apart: one is the request's buffer, the other
                    // the part of this place, which nothing else uses while the place is ours.
                    unsafe { std::ptr::copy_nonoverlapping(address, copy, piece) };
                }
                Ok((memory, copy, piece))
            }
        }
    }

    /// An I/O that wasn't taken: to be tried again when the ring is full, and done elsewhere otherwise.
    fn unlaunch(&self, place: usize, errno: i32) {
        let mut flight = self.flight.lock();
        flight.flying -= 1;
        let Some(running) = flight.places.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        running.deadline = None;
        running.refusals += 1;
        if errno == libc::EAGAIN && running.refusals < MOST_REFUSALS {
            flight.again.push_back(place);
            self.room.wait_for(&mut flight, PAUSE);
            drop(flight);
            // it may be another thread than the one that takes it up again
            self.queue.nudge();
            return;
        }
        let running = flight.places.get_mut(place).and_then(Option::take);
        flight.free.push(place);
        drop(flight);
        let error = std::io::Error::from_raw_os_error(errno);
        self.tell(
            &Error::from_io(error, "prepare"),
            "3FS doesn't take I/O, which is done on the mount",
        );
        if let Some(request) = running.and_then(|running| running.request) {
            self.hand_on(request);
        }
    }
}

/// The region that a request's buffer lies in, if its bytes can go from and to there.
fn direct(request: &IoRequest) -> Option<Arc<Region>> {
    let lent: &Lent = request.buffer.arena().mapping().downcast_ref()?;
    let region = lent.region.as_ref()?;
    let address = request.address().ok()?;
    region
        .usable(address, request.length)
        .is_some()
        .then(|| Arc::clone(region))
}
