//! A thread with a stream: takes a batch, hands it to the device in one call, waits, and tells the callers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_core::device::{CopyBatch, Direction, Stream};
use kvstored_core::tier::Action;
use kvstored_core::{Error, ErrorKind, Result};

use super::shared::{Shared, Transfer};

/// Streams with copies past their deadline that a thread puts aside before it asks for no new one.
const MOST_STUCK: usize = 4;
/// How long a look at such a stream waits.
const GLANCE: Duration = Duration::from_millis(1);

/// A stream that didn't end its copies in time. It holds the memory that they touch.
struct Stuck {
    stream: Stream,
    bytes: u64,
}

/// The thread's own.
pub(super) struct Worker {
    shared: Arc<Shared>,
    stream: Option<Stream>,
    stuck: Vec<Stuck>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            stream: None,
            stuck: Vec::new(),
        }
    }

    /// Works until the tier stops.
    pub(super) fn run(mut self) {
        while let Some(batch) = self.shared.next() {
            self.look_after_stuck();
            // nothing comes of what took too long in the queue
            let Some(copies) = batch.begin(|transfers| self.gather(batch.direction, transfers)) else {
                continue;
            };
            let copied = self.perform(batch.direction, copies);
            self.shared.settle(&batch, |transfer| {
                copied.clone().and_then(|()| self.finish(transfer))
            });
        }
        let shared = self.shared.clone();
        // the streams end first: they hold what others give back
        drop(self);
        shared.leave();
    }

    /// One copy for each operation; the batch holds what they touch.
    fn gather(&self, direction: Direction, transfers: &[Transfer]) -> Result<CopyBatch> {
        let mut copies = CopyBatch::new(direction);
        for Transfer { operation, slot } in transfers {
            let bytes = operation.namespace.layout.image_bytes();
            copies.slot(&operation.buffer, 0, &self.shared.memory, slot.offset, bytes)?;
            copies.hold(slot.clone());
        }
        Ok(copies)
    }

    /// Copies a batch and waits for it.
    fn perform(&mut self, direction: Direction, copies: Result<CopyBatch>) -> Result<()> {
        let outcome = copies.and_then(|copies| self.attempt(direction, copies));
        match &outcome {
            Ok(()) => self.shared.health.worked(),
            Err(error) => {
                self.shared.counts.faults.fetch_add(1, Ordering::Relaxed);
                self.shared.health.failed(error, &self.shared.runtime);
            }
        }
        outcome
    }

    fn attempt(&mut self, direction: Direction, copies: CopyBatch) -> Result<()> {
        let memory = self.shared.memory.clone();
        memory.device().bind_thread()?;
        let bytes = copies.bytes();
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None if self.stuck.len() < MOST_STUCK => Stream::create(memory.device())?,
            None => {
                let what = format!("{MOST_STUCK} streams have copies that don't end");
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
        };
        let timeout = self.shared.settings.timeout;
        // what failed to be handed over may have been in part, so the stream is waited for either way
        let handed = stream.copy(copies);
        match stream.synchronize(timeout) {
            Ok(()) => {
                self.stream = Some(stream);
                handed.inspect(|()| self.shared.count(direction, bytes))
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                // unsupported is fine: then the copies end when they end
                let _ = stream.abort();
                self.shared.counts.held_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.stuck.push(Stuck { stream, bytes });
                Err(error)
            }
            // a copy failed; with the second synchronization the stream has passed all of them
            Err(error) => {
                if stream.synchronize(timeout).is_err() {
                    self.shared.counts.held_bytes.fetch_add(bytes, Ordering::Relaxed);
                    self.stuck.push(Stuck { stream, bytes });
                    let what = format!("the stream doesn't end after a failure: {error}");
                    return Err(Error::new(ErrorKind::TimedOut, what));
                }
                handed.and(Err(error))
            }
        }
    }

    /// Lets go of streams whose copies have ended after all.
    fn look_after_stuck(&mut self) {
        let counts = &self.shared.counts;
        self.stuck.retain(|stuck| {
            let passed = stuck.stream.synchronize(GLANCE).is_ok();
            if passed {
                counts.held_bytes.fetch_sub(stuck.bytes, Ordering::Relaxed);
            }
            !passed
        });
    }

    /// What remains to do once the bytes are where they belong.
    fn finish(&self, transfer: &Transfer) -> Result<()> {
        let Transfer { operation, slot } = transfer;
        let namespace = &operation.namespace;
        let checked = match operation.action {
            Action::Write(_) => {
                self.shared.publish(slot);
                return Ok(());
            }
            Action::Read => namespace
                .check_descriptor(operation.hash, &operation.buffer)
                .map(drop),
            Action::Verify => namespace.verify_image(operation.hash, &operation.buffer),
        };
        if let Err(error) = &checked {
            let key = operation.namespace.key(operation.hash);
            tracing::error!(%key, %error, "block in device memory failed verification; dropped");
            self.shared
                .counts
                .quarantined_blocks
                .fetch_add(1, Ordering::Relaxed);
            self.shared.discard(slot);
        }
        checked
    }
}

/// The direction of an action's copies.
pub(super) fn direction(action: Action) -> Direction {
    match action {
        Action::Write(_) => Direction::HostToDevice,
        Action::Read | Action::Verify => Direction::DeviceToHost,
    }
}
