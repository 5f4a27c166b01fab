//! Emptying this node: what the master says is to go is copied to other nodes. Each copy is a put of its own, with the
//! master's token, written straight out of the lent memory; the bytes are verified on their way, and the original stays
//! as it is until the master has it released.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{ErrorKind, Result, Runtime};
use kvstored_master::{Drained, Move, NodeId};
use kvstored_transfer::TransferEngine;
use parking_lot::{Condvar, Mutex};

use super::Segment;
use super::segment::Pinned;
use crate::client::{CopyRequest, PoolClient};
use crate::directory::Directory;
use crate::settings::ClientSettings;

/// How soon the master is asked again after it didn't answer, or when no copy succeeded.
const RETRY: Duration = Duration::from_millis(500);
/// How long one batch of copies may take; less than the master gives it.
const BATCH: Duration = Duration::from_secs(10);
/// How long the master may take to answer.
const ASKING: Duration = Duration::from_secs(3);
/// How often whoever waits for the end looks.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    /// Whether the node is being emptied by copying.
    wanted: bool,
    stopping: bool,
}

/// The thread that empties its node, and rests otherwise.
pub(crate) struct Mover {
    node: NodeId,
    segment: Arc<Segment>,
    directory: Arc<dyn Directory>,
    /// Writes the copies.
    client: Arc<PoolClient>,
    runtime: Runtime,
    state: Mutex<State>,
    changed: Condvar,
}

impl Mover {
    pub fn new(
        node: NodeId,
        segment: Arc<Segment>,
        engine: Arc<TransferEngine>,
        directory: Arc<dyn Directory>,
        runtime: Runtime,
    ) -> Result<Self> {
        let settings = ClientSettings {
            // it reads nothing, so it has nothing to remember
            known_objects: 1,
            ..ClientSettings::default()
        };
        let client = PoolClient::new(settings, engine, directory.clone(), None, runtime.clone());
        client.adopt(segment.memory.clone())?;
        Ok(Self {
            node,
            segment,
            directory,
            client,
            runtime,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// What the master wants of this node: `Some(false)` is emptying it by copying.
    pub fn set(&self, draining: Option<bool>) {
        let wanted = draining == Some(false);
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.wanted, wanted) != wanted {
            self.changed.notify_all();
        }
    }

    pub fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Runs until [`Mover::stop`].
    pub fn run(&self) {
        let mut complained = false;
        while self.wait_until_wanted() {
            let pause = match self.round() {
                Ok(pause) => {
                    complained = false;
                    pause
                }
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        tracing::warn!(%error, "what this node holds can't be copied elsewhere now");
                    }
                    RETRY
                }
            };
            self.pause(pause);
        }
    }

    /// Has this node emptied, and waits until nothing more will be copied, or until then. Returns what is left.
    pub fn drain(&self, deadline: Instant) -> Result<Drained> {
        let mut first = None;
        loop {
            let asked_until = deadline.min(self.runtime.deadline(ASKING));
            let drained = self.directory.drain(&self.node, asked_until)?;
            let first = *first.get_or_insert(drained);
            let left = deadline.saturating_duration_since(self.runtime.clock.now());
            if drained.is_settled(&first) || left.is_zero() || self.pause(LOOK.min(left)) {
                return Ok(drained);
            }
        }
    }

    /// One batch of copies. Returns how long to rest.
    fn round(&self) -> Result<Duration> {
        let epoch = self.segment.master_epoch();
        let deadline = self.runtime.deadline(ASKING);
        let told = self
            .directory
            .start_moves(&self.node, epoch, &self.client.shunned(), deadline)?;
        let all = told.moves.len();
        let mut revoked: Vec<(&[u8], u64)> = Vec::new();
        let mut pinned: Vec<(&Move, Pinned)> = Vec::with_capacity(all);
        for one in &told.moves {
            match self.segment.pin(one.from_put, &one.key) {
                Ok(pin) if pin.checksum == one.checksum => pinned.push((one, pin)),
                // it's gone already
                _ => revoked.push((&one.key, one.ticket.put)),
            }
        }
        if !revoked.is_empty() {
            self.directory.revoke_puts(&revoked, deadline)?;
        }
        let copies = pinned.iter().map(|(one, pin)| CopyRequest {
            key: &one.key,
            pieces: &pin.pieces,
            length: one.length,
            checksum: one.checksum,
            ticket: one.ticket.clone(),
        });
        let outcomes = self
            .client
            .put_copies(copies.collect(), self.runtime.deadline(BATCH));
        let mut failed = 0;
        for ((one, _), outcome) in pinned.iter().zip(outcomes) {
            let Err(error) = outcome else { continue };
            failed += 1;
            if error.kind() == ErrorKind::Corrupt {
                tracing::error!(
                    key = %one.key.escape_ascii(),
                    "an object's bytes fail their checksum; they were not copied"
                );
            } else {
                tracing::debug!(%error, "an object wasn't copied");
            }
        }
        let nothing_worked = failed > 0 && failed == all;
        Ok(if nothing_worked {
            told.wait.max(RETRY)
        } else {
            told.wait
        })
    }

    /// Returns whether there is something to do; not so when it stops.
    fn wait_until_wanted(&self) -> bool {
        let mut state = self.state.lock();
        while !state.wanted && !state.stopping {
            self.changed.wait(&mut state);
        }
        !state.stopping
    }

    /// Waits. Returns whether it stops.
    fn pause(&self, length: Duration) -> bool {
        let until = self.runtime.deadline(length);
        let mut state = self.state.lock();
        while !state.stopping {
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.stopping
    }
}
