//! The serving side: where one peer's requests are decided on, and the thread that has them moved.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::transport::{Exposure, Move, RawConnection};
use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};

use super::job::Job;
use super::port::Port;
use super::serving::Serving;
use crate::counters::{Side, Tally};
use crate::grant::GrantKey;
use crate::identity::EngineId;
use crate::settings::TransportKind;
use crate::shared::Shared;
use crate::tcp::Reply;
use crate::transfer::TransferKind;
use crate::wire::{Attach, Moves};

/// Frames of one peer that wait or are under way; past that it's told `Busy`.
const MOST_JOBS: usize = 1024;
/// How long connecting may take.
pub(super) const CONNECT: Duration = Duration::from_secs(2);
/// How long whoever ends it waits for its thread.
const END: Duration = Duration::from_secs(3);

/// A peer that is served over the transport, until this is dropped.
pub(crate) struct Desk(Arc<Inner>);

#[derive(Default)]
pub(super) struct State {
    pub queue: VecDeque<Job>,
    pub under_way: HashMap<u64, Job>,
    pub next: u64,
    pub closed: bool,
    ended: bool,
    /// The transport couldn't end a connection: it's given nothing more.
    pub stuck: bool,
}

pub(super) struct Inner {
    pub shared: Arc<Shared>,
    pub peer: EngineId,
    key: GrantKey,
    pub tally: Tally,
    attach: Attach,
    attached: Mutex<Option<Reply>>,
    pub state: Mutex<State>,
    pub changed: Condvar,
}

/// A connection, and the registrations that it knows.
pub(super) struct Connected {
    pub connection: RawConnection,
    pub own: u64,
    pub peers: u64,
}

impl Desk {
    /// Begins to serve a peer; `reply` says whether its transport could be reached.
    pub fn open(shared: &Arc<Shared>, peer: EngineId, attach: Attach, reply: Reply) -> Result<Self> {
        let inner = Arc::new(Inner {
            shared: shared.clone(),
            peer,
            key: shared.authority.key(peer),
            tally: shared.ledger.tally(peer, TransportKind::Ascend, Side::Served),
            attach,
            attached: Mutex::new(Some(reply)),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        shared.ascend.start(shared, &inner)?;
        Ok(Self(inner))
    }

    /// Checks moves and takes them over. They are answered when nothing touches their memory any more.
    ///
    /// Fails as the check of their grants does, with `Busy` when too many wait, and with `Unavailable` once it's over.
    pub fn take(&self, moves: &Moves, reply: impl FnOnce() -> Reply) -> Result<()> {
        self.0.take(moves, reply).inspect_err(|error| {
            if !matches!(error.kind(), ErrorKind::Busy | ErrorKind::Unavailable) {
                self.0.tally.refused();
            }
        })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Inner {
    fn take(&self, asked: &Moves, reply: impl FnOnce() -> Reply) -> Result<()> {
        let writes = asked.kind == TransferKind::Write;
        let (mut moves, mut spans, mut regions) = (Vec::new(), Vec::new(), Vec::new());
        for entry in &asked.entries {
            let authority = &self.shared.authority;
            let permitted = authority.check(
                &entry.grant,
                self.peer,
                &self.key,
                writes,
                entry.offset,
                entry.length,
            )?;
            let span = permitted.enter()?;
            moves.push(Move {
                local: span.address() as u64,
                remote: entry.address,
                bytes: entry.length,
            });
            spans.push(span);
            regions.push(permitted.publication.region.clone());
        }
        regions.dedup_by_key(|region| region.id());
        let mut state = self.state.lock();
        if state.closed || state.stuck {
            return Err(Error::new(ErrorKind::Unavailable, "the transport is over"));
        }
        if state.queue.len() + state.under_way.len() >= MOST_JOBS {
            return Err(Error::new(ErrorKind::Busy, "too many moves wait"));
        }
        state.queue.push_back(Job {
            kind: asked.kind,
            moves,
            spans,
            regions,
            deadline: self.shared.runtime.deadline(Duration::from_nanos(asked.lasts)),
            generation: asked.generation,
            reply: reply(),
            why: None,
        });
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Makes the thread look at its jobs' memory.
    pub fn look(&self) {
        // under the lock, so that it can't fall between the thread's look and its sleep
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// Ends the thread and what it has under way.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until the thread has ended. False if it's caught in the transport.
    pub fn wait_ended(&self) -> bool {
        let deadline = self.shared.runtime.deadline(END);
        let mut state = self.state.lock();
        while !state.ended {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return state.ended;
            }
        }
        true
    }

    /// What the thread does.
    pub fn run(self: Arc<Self>) {
        let served = self.shared.ascend.port(&self.shared).and_then(|port| {
            if port.transport.name() != self.attach.name {
                let message = format!("the peer's transport is {}", self.attach.name);
                return Err(Error::new(ErrorKind::Unsupported, message).with("ours", port.transport.name()));
            }
            let connected = self.connect(&port, 0, self.shared.runtime.deadline(CONNECT))?;
            Ok((port, connected))
        });
        let (served, answer) = match served {
            Ok(served) => (Some(served), Ok(Vec::new())),
            Err(error) => (None, Err(error)),
        };
        if let Some(reply) = self.attached.lock().take() {
            reply(answer);
        }
        if let Some((port, connected)) = served {
            Serving::new(&self, &port, connected).run();
        }
        let left: Vec<Job> = {
            let mut state = self.state.lock();
            state.closed = true;
            state.ended = true;
            state.queue.drain(..).collect()
        };
        for job in left {
            job.finish(&self.tally, Err(over()));
        }
        self.changed.notify_all();
    }

    pub fn connect(&self, port: &Port, peers: u64, deadline: Instant) -> Result<Connected> {
        let left = deadline.saturating_duration_since(self.shared.runtime.clock.now());
        let own = port.generation(Exposure::Own);
        let connection = port.transport.connect(&self.attach.address, left)?;
        Ok(Connected {
            connection,
            own,
            peers,
        })
    }

    /// A job is over: nothing touches its memory any more.
    pub fn moved(&self, number: u64, result: Result<()>) {
        let job = self.state.lock().under_way.remove(&number);
        if let Some(job) = job {
            job.finish(&self.tally, result);
        }
        self.changed.notify_all();
    }
}

pub(super) fn over() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection to the peer is over")
}
