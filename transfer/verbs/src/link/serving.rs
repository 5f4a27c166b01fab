//! What the peer asks of this end.

use std::collections::VecDeque;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::core::Note;
use super::{Admission, Direction, Request, Service, Target, earlier};
use crate::sys::{Remote, Work};

/// A request that was admitted.
struct Job {
    id: u64,
    direction: Direction,
    admission: Box<dyn Admission>,
    target: Target,
    /// Bytes whose move was posted.
    posted: u64,
    /// Moves that haven't completed.
    moving: u32,
    /// Why no more is posted.
    ended: Option<Error>,
    answered: bool,
    /// Moves of memory that mustn't be touched any more have until then to complete.
    until: Option<Instant>,
}

impl Job {
    fn is_posted(&self) -> bool {
        self.ended.is_some() || self.posted == self.target.length
    }
}

/// All of the peer's requests.
pub(super) struct Serving {
    jobs: Vec<Option<Job>>,
    vacant: Vec<usize>,
    /// Jobs with something left to post, in the order of their turns.
    turns: VecDeque<usize>,
    /// Answers to be sent.
    notes: Vec<Note>,
    moving: u32,
    unanswered: u16,
    window: u16,
}

impl Serving {
    pub fn new(window: u16) -> Self {
        Self {
            jobs: Vec::new(),
            vacant: Vec::new(),
            turns: VecDeque::new(),
            notes: Vec::new(),
            moving: 0,
            unanswered: 0,
            window,
        }
    }

    /// Moves that haven't completed.
    pub fn moving(&self) -> u32 {
        self.moving
    }

    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// An answer was sent.
    pub fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    /// The peer asks. Fails with `Corrupt` when it asks for more at once than it was told it may.
    pub fn request(
        &mut self,
        id: u64,
        request: &Request<'_>,
        target: Target,
        service: &dyn Service,
    ) -> Result<()> {
        if self.unanswered >= self.window {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the peer asks for more at once than it may",
            ));
        }
        self.unanswered += 1;
        let admitted = if request.length == 0 || target.remote.address.checked_add(request.length).is_none() {
            Err(Error::invalid("a request for no memory"))
        } else {
            service.admit(request)
        };
        match admitted {
            Ok(admission) if admission.memory().length() == request.length => {
                let job = Job {
                    id,
                    direction: request.direction,
                    admission,
                    target,
                    posted: 0,
                    moving: 0,
                    ended: None,
                    answered: false,
                    until: None,
                };
                let place = self.vacant.pop().unwrap_or(self.jobs.len());
                if place == self.jobs.len() {
                    self.jobs.push(None);
                }
                if let Some(vacant) = self.jobs.get_mut(place) {
                    *vacant = Some(job);
                }
                self.turns.push_back(place);
            }
            Ok(admission) => {
                let error = Error::internal("memory of another length was admitted");
                self.answer(id, Some(error.kind()));
                admission.finish(Err(error));
            }
            Err(error) => self.answer(id, Some(error.kind())),
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, failure: Option<ErrorKind>) {
        self.notes.push(Note::Answer { id, failure });
    }

    /// The peer doesn't want it any more. It may have been answered meanwhile.
    pub fn cancel(&mut self, id: u64) {
        let cancelled = Error::new(ErrorKind::Cancelled, "the peer doesn't want it any more");
        for place in 0..self.jobs.len() {
            if let Some(job) = self.jobs.get_mut(place).and_then(Option::as_mut)
                && job.id == id
                && !job.answered
            {
                job.ended.get_or_insert(cancelled.clone());
                self.settle(place);
            }
        }
    }

    /// The next chunk to move, with the place of its job. What mustn't go on is ended on the way.
    pub fn next(&mut self, chunk: u64) -> Result<Option<(usize, Work)>> {
        while let Some(place) = self.turns.pop_front() {
            let Some(job) = self.jobs.get_mut(place).and_then(Option::as_mut) else {
                continue;
            };
            if job.ended.is_none() && !job.admission.is_valid() {
                job.ended = Some(Error::new(
                    ErrorKind::Fenced,
                    "the memory was released or unregistered",
                ));
            }
            if job.is_posted() {
                self.settle(place);
                continue;
            }
            let length = chunk.min(job.target.length - job.posted);
            let slice = job.admission.memory().part(job.posted, length)?;
            let remote = Remote {
                address: job.target.remote.address + job.posted,
                key: job.target.remote.key,
            };
            job.posted += length;
            job.moving += 1;
            self.moving += 1;
            let work = match job.direction {
                Direction::Read => Work::Write {
                    from: slice,
                    to: remote,
                },
                Direction::Write => Work::Read {
                    into: slice,
                    from: remote,
                },
            };
            if job.is_posted() {
                if job.direction == Direction::Read {
                    // the answer is sent after the bytes, and arrives after them
                    job.answered = true;
                    let id = job.id;
                    self.answer(id, None);
                }
            } else {
                // others have a turn in between
                self.turns.push_back(place);
            }
            return Ok(Some((place, work)));
        }
        Ok(None)
    }

    /// A move completed.
    pub fn moved(&mut self, place: usize) {
        self.moving = self.moving.saturating_sub(1);
        if let Some(job) = self.jobs.get_mut(place).and_then(Option::as_mut) {
            job.moving = job.moving.saturating_sub(1);
            self.settle(place);
        }
    }

    /// Ends a job that has nothing left to post, once its moves have completed.
    fn settle(&mut self, place: usize) {
        let Some(entry) = self.jobs.get_mut(place) else {
            return;
        };
        if entry
            .as_ref()
            .is_none_or(|job| job.moving > 0 || !job.is_posted())
        {
            return;
        }
        let Some(job) = entry.take() else { return };
        self.vacant.push(place);
        self.turns.retain(|turn| *turn != place);
        let failure = job.ended.as_ref().map(Error::kind);
        // let go before the answer, so that who waits for it finds the memory free
        job.admission.finish(job.ended.map_or(Ok(()), Err));
        if !job.answered {
            self.answer(job.id, failure);
        }
    }

    /// Ends jobs whose memory mustn't be touched any more; moves under way have until then.
    pub fn sweep(&mut self, until: Instant) {
        for place in 0..self.jobs.len() {
            if let Some(job) = self.jobs.get_mut(place).and_then(Option::as_mut)
                && job.until.is_none()
                && !job.admission.is_valid()
            {
                job.until = Some(until);
                if !job.answered {
                    job.ended.get_or_insert(Error::new(
                        ErrorKind::Fenced,
                        "the memory was released or unregistered",
                    ));
                }
                self.settle(place);
            }
        }
    }

    /// Fails with `Fenced` when a move didn't complete in the time it had: only the end of the link stops it.
    pub fn check(&self, now: Instant) -> Result<()> {
        let late = |job: &Job| job.until.is_some_and(|until| until <= now);
        if self.jobs.iter().flatten().any(late) {
            return Err(Error::new(
                ErrorKind::Fenced,
                "memory that was released is still being moved",
            ));
        }
        Ok(())
    }

    pub fn next_wake(&self) -> Option<Instant> {
        self.jobs
            .iter()
            .flatten()
            .fold(None, |wake, job| earlier(wake, job.until))
    }

    /// Ends everything. The queue pair is gone.
    pub fn fail(&mut self, reason: &Error) {
        self.turns.clear();
        self.notes.clear();
        for job in std::mem::take(&mut self.jobs).into_iter().flatten() {
            let result = match (job.answered, job.ended) {
                // the answer may have arrived or not
                (_, None) => Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("the RDMA link is dead: {reason}"),
                )),
                (_, Some(error)) => Err(error),
            };
            job.admission.finish(result);
        }
    }
}
