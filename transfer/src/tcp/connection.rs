//! One connection: bytes in, bytes out, and whose turn it is to move them.
//!
//! Locks are taken in this order: intake, sending, pending requests. None is held while a thread sleeps, and every call
//! on the socket returns at once, so whoever wants memory back waits for one such call at most.

mod late;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;

use super::channel::Channel;
use super::ending::{Doomed, end_arriving, end_asked, end_waiting};
use super::gate::Gate;
use super::outgoing::{Outgoing, Sending};
use super::reactor::Reactor;
use super::receiving::{Receiving, Stopped};
use super::requests::{Answers, Pending, Requests};
use super::serving::{Accepted, Intake, Requested};
use crate::handshake::Agreed;
use crate::shared::Shared;
use crate::wire::Header;

/// What has to be done with the reactor's registration.
#[derive(Debug, Default)]
struct Interest {
    /// Wakes the waiting thread that polls this connection instead of the reactor, if there is one.
    leader: Option<Arc<OwnedFd>>,
    paused: bool,
    registered: Option<EventFlags>,
}

/// One connection, shared by the reactor and whoever uses it.
pub(crate) struct Connection {
    me: Weak<Self>,
    /// The reactor's number of it.
    pub token: u64,
    channel: Channel,
    shared: Arc<Shared>,
    reactor: Weak<Reactor>,
    gate: Arc<Gate>,
    intake: Mutex<Intake>,
    sending: Mutex<Sending>,
    /// The opener's side.
    requests: Option<Requests>,
    interest: Mutex<Interest>,
    /// Whether a drive ended before all that had arrived was taken.
    unfinished: AtomicBool,
    /// Whether the socket took no more. Changed under the lock of `sending`, and looked at under that of `interest`.
    blocked: AtomicBool,
    closed: AtomicBool,
    /// Whether an accepted connection counts as one that is served.
    admitted: AtomicBool,
    /// Nanoseconds by the reactor's clock when something last arrived …
    heard: AtomicU64,
    /// … and how long an accepted one may be silent.
    patience: AtomicU64,
}

impl Connection {
    /// A connection that was accepted, before its handshake.
    pub fn accepted(
        channel: Channel,
        shared: &Arc<Shared>,
        reactor: &Arc<Reactor>,
        gate: &Arc<Gate>,
    ) -> Arc<Self> {
        Self::new(channel, shared, reactor, gate, None)
    }

    /// A connection that was opened, after its handshake.
    pub fn opened(
        channel: Channel,
        shared: &Arc<Shared>,
        reactor: &Arc<Reactor>,
        gate: &Arc<Gate>,
        requests: Requests,
    ) -> Arc<Self> {
        Self::new(channel, shared, reactor, gate, Some(requests))
    }

    fn new(
        channel: Channel,
        shared: &Arc<Shared>,
        reactor: &Arc<Reactor>,
        gate: &Arc<Gate>,
        requests: Option<Requests>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            token: reactor.next_token(),
            channel,
            shared: shared.clone(),
            reactor: Arc::downgrade(reactor),
            gate: gate.clone(),
            intake: Mutex::new(Intake {
                receiving: Receiving::new(requests.is_none()),
                accepted: Accepted::new(),
            }),
            sending: Mutex::default(),
            requests,
            interest: Mutex::default(),
            unfinished: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            admitted: AtomicBool::new(false),
            heard: AtomicU64::new(reactor.now()),
            patience: AtomicU64::new(u64::MAX),
        })
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.channel.socket()
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether its handshake is over, for one that was accepted.
    pub fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    /// Requests that wait for their answers.
    pub fn outstanding(&self) -> usize {
        self.requests.as_ref().map_or(0, Requests::count)
    }

    pub fn is_unfinished(&self) -> bool {
        self.unfinished.load(Ordering::Relaxed)
    }

    /// Whether the socket took no more.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    /// Nanoseconds by the reactor's clock when something last arrived.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Whether an accepted connection has been silent for longer than its peer would be.
    pub fn is_silent(&self, now: u64) -> bool {
        now.saturating_sub(self.heard()) > self.patience.load(Ordering::Relaxed)
    }

    /// Takes and sends what can be at this moment. Ends the connection if it fails.
    pub fn drive(&self, budget: usize) {
        if self.is_closed() {
            return;
        }
        let taken = self.take(budget);
        let flushed = self.flush();
        if let Err(error) = taken.and(flushed) {
            self.close(&error);
            return;
        }
        self.update();
    }

    fn take(&self, budget: usize) -> Result<()> {
        loop {
            let mut intake = self.intake.lock();
            if self.is_closed() {
                return Ok(());
            }
            let Intake { receiving, accepted } = &mut *intake;
            let (moved, stopped) = if let Some(requests) = &self.requests {
                receiving.run(&self.channel, &mut Answers(requests), budget)?
            } else {
                let admit = || self.gate.admit();
                let later = |header: &Header| self.reply(*header);
                let mut sink = Requested {
                    shared: &self.shared,
                    channel: &self.channel,
                    accepted,
                    sending: &self.sending,
                    agreed: None,
                    admits: &admit,
                    later: &later,
                };
                let outcome = receiving.run(&self.channel, &mut sink, budget);
                if let Some(agreed) = &sink.agreed {
                    self.admitted(agreed);
                }
                outcome?
            };
            drop(intake);
            if moved > 0
                && let Some(reactor) = self.reactor.upgrade()
            {
                self.heard.store(reactor.now(), Ordering::Relaxed);
            }
            self.unfinished
                .store(stopped == Stopped::Budget, Ordering::Relaxed);
            if stopped == Stopped::Paused {
                self.flush()?;
                // what is staged already raises no event: it has to be taken now, or when the socket takes more
                if !self.is_blocked() {
                    continue;
                }
            }
            self.interest.lock().paused = stopped == Stopped::Paused;
            return Ok(());
        }
    }

    fn admitted(&self, agreed: &Agreed) {
        let patience = (agreed.heartbeat * 3).max(self.shared.settings.peer_timeout);
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        self.patience.store(patience, Ordering::Relaxed);
        self.admitted.store(true, Ordering::Release);
        tracing::debug!(peer = %agreed.peer, "a peer connected");
    }

    /// Sends what can be sent.
    fn flush(&self) -> Result<()> {
        let mut sending = self.sending.lock();
        if sending.queue.is_empty() && !self.channel.has_unsent() {
            self.blocked.store(false, Ordering::Release);
            return Ok(());
        }
        self.flush_in(&mut sending)
    }

    fn flush_in(&self, sending: &mut Sending) -> Result<()> {
        let blocked = sending.flush(&self.channel)?;
        self.blocked.store(blocked, Ordering::Release);
        Ok(())
    }

    /// Queues requests and sends what can be sent of them. Each has its frame; those with a transfer are finished by
    /// their answers, or when the connection fails.
    ///
    /// Fails with `Unavailable` when the connection is over already; then none was taken.
    pub fn request(&self, requests: impl IntoIterator<Item = (Outgoing, Pending)>) -> Result<()> {
        let Some(answers) = &self.requests else {
            return Err(Error::internal("an accepted connection asks nothing"));
        };
        let sent = {
            let mut sending = self.sending.lock();
            if sending.closed {
                return Err(gone());
            }
            let mut idle = answers.count() == 0;
            for (frame, pending) in requests {
                if idle
                    && frame.owner.is_some()
                    && let Some(reactor) = self.reactor.upgrade()
                {
                    // silence counts from the request on; a sign of life is asked for because of it
                    self.heard.store(reactor.now(), Ordering::Relaxed);
                    idle = false;
                }
                answers.push(pending);
                sending.queue.push_back(frame);
            }
            if self.is_blocked() {
                return Ok(());
            }
            self.flush_in(&mut sending)
        };
        match sent {
            Ok(()) => self.update(),
            Err(error) => self.close(&error),
        }
        Ok(())
    }

    /// Ends operations, so that they touch no memory any more.
    pub fn end(&self, doomed: &Doomed<'_>) {
        let requests = self.requests.as_ref();
        let mut intake = self.intake.lock();
        end_arriving(&mut intake, requests, doomed);
        let mut sending = self.sending.lock();
        end_waiting(&mut sending, requests, doomed);
        drop(sending);
        if let Some(requests) = requests {
            end_asked(requests, doomed);
        }
    }

    /// Says whether a waiting thread polls it, which `leader` wakes, or the reactor.
    pub fn set_leader(&self, leader: Option<Arc<OwnedFd>>) {
        self.interest.lock().leader = leader;
        self.update();
    }

    /// Drives it in a thread that isn't the leader. A leader that came meanwhile is woken, since what it waits for may
    /// have been taken before its eyes.
    pub fn drive_for_others(&self, budget: usize) {
        self.drive(budget);
        if let Some(leader) = &self.interest.lock().leader {
            let _ = rustix::io::write(leader, &1u64.to_ne_bytes());
        }
    }

    /// Tells the reactor what to watch for.
    pub fn update(&self) {
        if self.is_closed() {
            return;
        }
        let mut interest = self.interest.lock();
        let mut wanted = EventFlags::empty();
        if interest.leader.is_none() {
            if !interest.paused {
                wanted |= EventFlags::IN;
            }
            if self.is_blocked() {
                wanted |= EventFlags::OUT;
            }
        }
        if interest.registered != Some(wanted)
            && let Some(reactor) = self.reactor.upgrade()
        {
            let first = interest.registered.is_none();
            if reactor.watch(self, wanted, first).is_ok() {
                interest.registered = Some(wanted);
            }
        }
    }

    /// Ends the connection: what is under way fails with that error, and all memory is let go of.
    pub fn close(&self, error: &Error) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let unasked =
            self.requests.is_none() && matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidInput);
        if unasked {
            tracing::debug!(%error, "a connection sent what it must not");
        }
        {
            // what was said last, a refusal perhaps, goes out if it can
            let mut sending = self.sending.lock();
            let _ = sending.flush(&self.channel);
            sending.closed = true;
        }
        self.channel.shut_down();
        let inbound = self.intake.lock().receiving.take_inbound();
        self.sending.lock().queue.clear();
        if let Some(requests) = &self.requests {
            if let Some(inbound) = inbound {
                drop(inbound.span);
                let transfer = inbound.pending.and_then(|pending| pending.transfer);
                requests.finish(transfer, Err(error.clone()), None);
            }
            requests.fail_all(error);
        }
        if self.is_admitted() {
            self.gate.leave();
        }
        if let Some(reactor) = self.reactor.upgrade() {
            reactor.forget(self);
        }
    }
}

/// The error of a connection that is over.
pub(super) fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection to the peer is over")
}
