//! An engine that goes wrong on purpose, by a repeatable plan; for tests and conformance runs.

use std::sync::Arc;

use kvstored_core::memory::SlotOwner;
use kvstored_core::runtime::{Random, SystemRandom};
use kvstored_core::{Arena, Error, ErrorKind, PAGE_BYTES, Result, SlotGuard};
use parking_lot::Mutex;

use super::request::IoCompletion;
use super::{Direction, IoEngine, IoRequest};

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It fails with this error number and moves nothing.
    Fail {
        /// The operating system's error number, such as `ENOSPC`.
        errno: i32,
    },
    /// It succeeds, but one byte is wrong: in the slot after a read, and in the file for a write.
    FlipByte,
    /// It reports success and moves nothing: a write that never reached the device.
    Lost,
    /// Half of it (in whole pages) is moved, then it fails: a torn transfer.
    Short,
}

/// A fault of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which direction's requests are counted.
    pub direction: Direction,
    /// Which of them, from 0, in the order of their submission.
    pub number: u64,
    /// What happens to it.
    pub kind: FaultKind,
}

/// What goes wrong, and when.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// Chooses flipped bytes, random failures and the order in which held completions are released.
    pub seed: u64,
    /// Faults of single requests.
    pub faults: Vec<Fault>,
    /// Of 1,000 requests, how many fail with EIO, chosen by the seed.
    pub failures_per_mille: u32,
    /// How many completions are held back and then released in another order; 0 and 1 hold none.
    pub hold_completions: usize,
}

struct Held {
    buffer: SlotGuard,
    result: Result<()>,
    completion: IoCompletion,
}

#[derive(Default)]
struct State {
    reads: u64,
    writes: u64,
    held: Vec<Held>,
    stopped: bool,
}

struct Shared {
    plan: FaultPlan,
    random: SystemRandom,
    state: Mutex<State>,
}

/// Wraps an engine and makes it fail by a plan.
pub struct FaultyIo {
    inner: Arc<dyn IoEngine>,
    shared: Arc<Shared>,
}

impl FaultyIo {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn IoEngine>, plan: FaultPlan) -> Self {
        let random = SystemRandom::seeded(plan.seed);
        Self {
            inner,
            shared: Arc::new(Shared {
                plan,
                random,
                state: Mutex::default(),
            }),
        }
    }

    /// Releases what is held back, in another order.
    pub fn release_held(&self) {
        self.shared.release();
    }
}

impl IoEngine for FaultyIo {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn submit(&self, batch: Vec<IoRequest>) {
        let mut passed = Vec::with_capacity(batch.len());
        for request in batch {
            let (kind, request) = self.shared.take(request);
            match kind {
                Some(FaultKind::Fail { errno }) => {
                    let error = Error::from_io(std::io::Error::from_raw_os_error(errno), "injected failure");
                    (request.completion)(request.buffer, Err(error));
                }
                Some(FaultKind::Lost) => (request.completion)(request.buffer, Ok(())),
                Some(FaultKind::Short) => passed.push(shorten(request)),
                Some(FaultKind::FlipByte) => passed.extend(self.shared.flip(request)),
                None => passed.push(request),
            }
        }
        if !passed.is_empty() {
            self.inner.submit(passed);
        }
    }

    fn queue_depth(&self) -> usize {
        self.inner.queue_depth() + self.shared.state.lock().held.len()
    }

    fn shutdown(&self) {
        self.shared.state.lock().stopped = true;
        self.shared.release();
        self.inner.shutdown();
        self.shared.release();
    }
}

impl Drop for FaultyIo {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.release();
    }
}

impl Shared {
    /// Counts the request, looks up what happens to it, and lets its completion be held back.
    fn take(self: &Arc<Self>, mut request: IoRequest) -> (Option<FaultKind>, IoRequest) {
        let number = {
            let mut state = self.state.lock();
            let counter = match request.direction {
                Direction::Read => &mut state.reads,
                Direction::Write => &mut state.writes,
            };
            let number = *counter;
            *counter += 1;
            number
        };
        let planned = self
            .plan
            .faults
            .iter()
            .find(|fault| fault.direction == request.direction && fault.number == number)
            .map(|fault| fault.kind);
        let unlucky = self.plan.failures_per_mille > 0
            && self.random.next_u64() % 1000 < u64::from(self.plan.failures_per_mille);
        let kind = planned.or(unlucky.then_some(FaultKind::Fail { errno: libc::EIO }));
        if self.plan.hold_completions > 1 {
            let plan = Arc::clone(self);
            let completion = request.completion;
            request.completion = Box::new(move |buffer, result| {
                plan.hold(Held {
                    buffer,
                    result,
                    completion,
                });
            });
        }
        (kind, request)
    }

    fn hold(&self, held: Held) {
        let release = {
            let mut state = self.state.lock();
            state.held.push(held);
            state.stopped || state.held.len() >= self.plan.hold_completions
        };
        if release {
            self.release();
        }
    }

    fn release(&self) {
        let mut held = std::mem::take(&mut self.state.lock().held);
        while !held.is_empty() {
            let chosen = (self.random.next_u64() % held.len() as u64) as usize;
            let Held {
                buffer,
                result,
                completion,
            } = held.swap_remove(chosen);
            completion(buffer, result);
        }
    }

    /// Damages one byte on the way. `None` if the request could not even be prepared; it's complete then.
    fn flip(&self, mut request: IoRequest) -> Option<IoRequest> {
        if request.length == 0 {
            return Some(request);
        }
        let chosen = (self.random.next_u64() % request.length as u64) as usize;
        let start = request.buffer.offset().saturating_add(request.buffer_offset);
        let completion = request.completion;
        match request.direction {
            Direction::Read => {
                request.completion = Box::new(move |buffer, result| {
                    let result = result.and_then(|()| flip_byte(&buffer, start.saturating_add(chosen)));
                    completion(buffer, result);
                });
            }
            // A damaged copy is written, because others may be reading the slot.
            Direction::Write => match damaged_copy(&request.buffer, start, request.length, chosen) {
                Ok(copy) => {
                    let original = std::mem::replace(&mut request.buffer, copy);
                    request.buffer_offset = 0;
                    request.completion = Box::new(move |_copy, result| completion(original, result));
                }
                Err(error) => {
                    completion(request.buffer, Err(error));
                    return None;
                }
            },
        }
        Some(request)
    }
}

fn shorten(mut request: IoRequest) -> IoRequest {
    let completion = request.completion;
    let asked = request.length;
    request.length = asked / 2 / PAGE_BYTES * PAGE_BYTES;
    let done = request.length;
    request.completion = Box::new(move |buffer, result| {
        let error = || Error::new(ErrorKind::Io, "injected short transfer");
        completion(
            buffer,
            result.and_then(|()| Err(error().with("length", asked).with("done", done))),
        );
    });
    request
}

fn damaged_copy(buffer: &SlotGuard, offset: usize, length: usize, chosen: usize) -> Result<SlotGuard> {
    struct Nobody;
    impl SlotOwner for Nobody {
        fn release(&self, _slot: u32) {}
    }
    let mut bytes = vec![0; length];
    buffer.arena().read(offset, &mut bytes)?;
    let arena = Arena::heap(length)?;
    arena.write(0, &bytes)?;
    let copy = SlotGuard::new(Arc::new(arena), Arc::new(Nobody), 0, 0, length);
    flip_byte(&copy, chosen)?;
    Ok(copy)
}

fn flip_byte(buffer: &SlotGuard, offset: usize) -> Result<()> {
    let mut byte = [0u8];
    buffer.arena().read(offset, &mut byte)?;
    byte[0] ^= 0x10;
    buffer.arena().write(offset, &byte)
}
