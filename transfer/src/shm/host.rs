//! The serving side: says what grants are worth, and takes ranges back.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};
use kvstored_shm::{AttachmentId, Channel, ControlPage, Listener, SocketAddress, StartTime};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::grant::{Grant, GrantKey};
use crate::identity::EngineId;
use crate::memory::{PublicationState, RegionState, Slot};
use crate::shared::Shared;
use crate::wire::{Introduction, Offer, Question, TICKET_BYTES, Welcome, Worth, Worths};

/// Publications that peers may share at once; what's more goes over another transport.
const SLOTS: u32 = 1 << 16;
/// Tickets that may wait to be used.
const MOST_TICKETS: usize = 1024;
/// How long a ticket is good for, and how long a connection may take to show one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at once.
const MOST_CONNECTIONS: usize = 4096;
/// How often it's looked whether peers that have gone are counted in still.
const LINGER: Duration = Duration::from_millis(100);
/// Answers go into the socket's buffer; an asker that doesn't read them is dropped.
const AT_ONCE: Duration = Duration::ZERO;

struct Ticket {
    peer: EngineId,
    until: Instant,
}

/// What the engine's other parts use.
pub(crate) struct ShmHost {
    control: ControlPage,
    listener: Listener,
    tickets: Mutex<HashMap<[u8; TICKET_BYTES], Ticket>>,
    /// Peers that have shown one, and how often.
    attached: Mutex<HashMap<EngineId, usize>>,
    /// What peers find when they try whether they can read this process's memory.
    probe: Box<[u8; 16]>,
    wake: OwnedFd,
    stopping: AtomicBool,
}

impl ShmHost {
    /// Listens. Fails where the kernel has no memfds or no abstract sockets.
    pub fn new(identity: &crate::handshake::Identity, runtime: &kvstored_core::Runtime) -> Result<Arc<Self>> {
        let mut probe = Box::new([0; 16]);
        for (byte, random) in probe.iter_mut().zip(identity.random()?) {
            *byte = random;
        }
        let address = SocketAddress::unique("kvstored-transfer", &*runtime.random);
        Ok(Arc::new(Self {
            control: ControlPage::new(SLOTS, runtime.clock.clone())?,
            listener: Listener::bind(address, runtime.clock.clone())?,
            tickets: Mutex::default(),
            attached: Mutex::default(),
            probe,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|errno| Error::from_io(errno.into(), "eventfd failed"))?,
            stopping: AtomicBool::new(false),
        }))
    }

    /// Offers a peer, which is authenticated, to share memory. Fails with `Busy` when too many offers are open.
    pub fn offer(&self, shared: &Shared, peer: EngineId) -> Result<Offer> {
        let ticket = shared.identity.random()?;
        let now = shared.runtime.clock.now();
        let mut tickets = self.tickets.lock();
        if tickets.len() >= MOST_TICKETS {
            tickets.retain(|_, ticket| ticket.until > now);
        }
        if tickets.len() >= MOST_TICKETS {
            return Err(Error::new(ErrorKind::Busy, "too many peers attach at once"));
        }
        let until = shared.runtime.deadline(PATIENCE);
        tickets.insert(ticket, Ticket { peer, until });
        Ok(Offer {
            ticket,
            slots: self.control.slots(),
            address: self.listener.address().to_string(),
        })
    }

    /// No peer that shares a publication gets in any more.
    pub fn shut(&self, publication: &PublicationState) {
        let mut slot = publication.slot.lock();
        if let Slot::Open(number) = *slot {
            self.advance(number);
            *slot = Slot::Closing(number);
        }
    }

    /// Whoever shares a publication has to ask again what its grant is worth.
    pub fn disturb(&self, publication: &PublicationState) {
        if let Slot::Open(number) = *publication.slot.lock() {
            self.advance(number);
        }
    }

    fn advance(&self, slot: u32) {
        if let Err(error) = self.control.advance(slot) {
            tracing::error!(%error, slot, "a slot that was claimed isn't there");
        }
    }

    /// Waits until no peer touches a publication that was shut. Fails with `Busy` when one still does at the deadline.
    pub fn wait_left(&self, publication: &PublicationState, deadline: Instant) -> Result<()> {
        let Slot::Closing(number) = *publication.slot.lock() else {
            return Ok(());
        };
        self.control.wait_idle(number, deadline)?;
        let mut slot = publication.slot.lock();
        if *slot == Slot::Closing(number) {
            self.control.give_back(number)?;
            *slot = Slot::None;
        }
        Ok(())
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// The slot of a publication and its epoch. Fails with `Fenced` when it's being released, and with `Busy` when there
    /// are no slots left.
    fn open_slot(&self, publication: &PublicationState) -> Result<(u32, u64)> {
        let mut slot = publication.slot.lock();
        if publication.usage.is_closed() || publication.region.usage.is_closed() {
            return Err(Error::new(ErrorKind::Fenced, "the memory was released"));
        }
        match *slot {
            Slot::Open(number) => Ok((number, self.control.epoch(number)?)),
            Slot::None => {
                let (number, epoch) = self.control.claim()?;
                *slot = Slot::Open(number);
                Ok((number, epoch))
            }
            Slot::Closing(_) => Err(Error::new(ErrorKind::Fenced, "the memory was released")),
        }
    }

    /// What a grant is worth to its peer, before the peer asks. `None` where it shares no memory, or nothing can be said.
    pub fn foretell(&self, shared: &Shared, peer: EngineId, grant: &Grant) -> Option<Vec<u8>> {
        if !self.attached.lock().contains_key(&peer) {
            return None;
        }
        let (worth, _) = self
            .worth(shared, peer, &shared.authority.key(peer), grant)
            .ok()?;
        let told = Worths {
            number: 0,
            worths: vec![Ok(worth)],
        };
        Some(told.encode())
    }

    fn worth(
        &self,
        shared: &Shared,
        peer: EngineId,
        key: &GrantKey,
        grant: &Grant,
    ) -> Result<(Worth, Arc<RegionState>)> {
        let (found, _) = shared.authority.appraise(grant, peer, key)?;
        let (slot, epoch) = self.open_slot(&found.publication)?;
        // again, now that the epoch is read: if the grant is revoked from here on, that epoch is old already
        let (permitted, lasts) = shared.authority.appraise(grant, peer, key)?;
        let region = permitted.publication.region.clone();
        let worth = Worth {
            own: region.descriptor().is_some(),
            rights: grant.rights(),
            region: region.id().value(),
            region_bytes: region.length() as u64,
            offset: permitted.offset_in_region,
            slot,
            epoch,
            lasts,
            address: region.base() as u64,
        };
        Ok((worth, region))
    }

    fn count_in(&self, peer: EngineId) {
        *self.attached.lock().entry(peer).or_default() += 1;
    }

    fn count_out(&self, peer: EngineId) {
        let mut attached = self.attached.lock();
        if let Some(times) = attached.get_mut(&peer) {
            *times -= 1;
            if *times == 0 {
                attached.remove(&peer);
            }
        }
    }
}

/// The region's file, opened anew for reading alone unless the grant allows writing.
fn region_file(region: &RegionState, grant: &Grant) -> Result<Option<OwnedFd>> {
    use rustix::fs::{Mode, OFlags, open};
    use std::os::fd::AsRawFd;
    let Some(file) = region.descriptor() else {
        return Ok(None);
    };
    let access = if grant.rights().may_write() {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let opened = open(path, access | OFlags::CLOEXEC, Mode::empty());
    opened
        .map(Some)
        .map_err(|errno| Error::from_io(errno.into(), "a region's file can't be opened"))
}

/// A peer that showed its ticket.
struct Attached {
    name: EngineId,
    key: GrantKey,
    id: AttachmentId,
}

struct Guest {
    channel: Channel,
    until: Instant,
    attached: Option<Attached>,
}

/// The thread's body.
pub(crate) fn run(host: &ShmHost, shared: &Arc<Shared>) {
    let mut guests: Vec<Guest> = Vec::new();
    while !host.stopping.load(Ordering::Acquire) {
        // who has gone may still be counted in for a moment
        let lingers =
            host.control.attached() > guests.iter().filter(|guest| guest.attached.is_some()).count();
        if lingers {
            host.control.reap();
        }
        let Some(ready) = wait(host, &guests, shared, lingers) else {
            return;
        };
        let now = shared.runtime.clock.now();
        let mut index = 0;
        guests.retain_mut(|guest| {
            let is_ready = ready.get(index + 2).copied().unwrap_or(false);
            index += 1;
            if is_ready {
                serve(host, shared, guest)
            } else {
                guest.attached.is_some() || guest.until > now
            }
        });
        if ready.first().copied().unwrap_or(false) {
            take_in(host, shared, &mut guests);
        }
        if ready.get(1).copied().unwrap_or(false) {
            let _ = rustix::io::read(&host.wake, &mut [0u8; 8]);
        }
    }
}

/// Sleeps until something is ready: the listener, the wake-up, or guests, in that order.
fn wait(host: &ShmHost, guests: &[Guest], shared: &Shared, lingers: bool) -> Option<Vec<bool>> {
    let mut descriptors: Vec<PollFd<'_>> = vec![
        PollFd::from_borrowed_fd(host.listener.as_fd(), PollFlags::IN),
        PollFd::new(&host.wake, PollFlags::IN),
    ];
    let now = shared.runtime.clock.now();
    let mut next = lingers.then_some(LINGER);
    for guest in guests {
        descriptors.push(PollFd::from_borrowed_fd(guest.channel.as_fd(), PollFlags::IN));
        if guest.attached.is_none() {
            let left = guest.until.saturating_duration_since(now);
            next = Some(next.map_or(left, |next| next.min(left)));
        }
    }
    // a full house takes nobody in, and must not be woken for that
    if guests.len() >= MOST_CONNECTIONS
        && let Some(listener) = descriptors.first_mut()
    {
        *listener = PollFd::from_borrowed_fd(host.listener.as_fd(), PollFlags::empty());
    }
    let timeout = next.and_then(|next| Timespec::try_from(next).ok());
    match poll(&mut descriptors, timeout.as_ref()) {
        Ok(_) => Some(
            descriptors
                .iter()
                .map(|each| !each.revents().is_empty())
                .collect(),
        ),
        Err(rustix::io::Errno::INTR) => Some(Vec::new()),
        Err(errno) => {
            tracing::error!(%errno, "poll failed");
            None
        }
    }
}

fn take_in(host: &ShmHost, shared: &Shared, guests: &mut Vec<Guest>) {
    while guests.len() < MOST_CONNECTIONS {
        match host.listener.try_accept() {
            Ok(Some(channel)) => guests.push(Guest {
                channel,
                until: shared.runtime.deadline(PATIENCE),
                attached: None,
            }),
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a process wasn't taken in");
                return;
            }
        }
    }
}

/// Answers what a guest says. Whether it stays.
fn serve(host: &ShmHost, shared: &Shared, guest: &mut Guest) -> bool {
    let outcome = loop {
        match guest.channel.try_receive() {
            Ok(None) => break Ok(()),
            Ok(Some(message)) => {
                let answered = match &guest.attached {
                    None => introduce(host, shared, guest, &message.bytes),
                    Some(peer) => answer(host, shared, &guest.channel, peer, &message.bytes),
                };
                if let Err(error) = answered {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    match outcome {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "a process that shares memory has gone");
            if let Some(peer) = &guest.attached {
                host.count_out(peer.name);
                // it may live on without this connection; its counts go when it does
                let _ = host.control.reset(peer.id);
            }
            false
        }
    }
}

fn introduce(host: &ShmHost, shared: &Shared, guest: &mut Guest, bytes: &[u8]) -> Result<()> {
    let introduction = Introduction::decode(bytes)?;
    let ticket = host.tickets.lock().remove(&introduction.ticket);
    let ticket = ticket.filter(|ticket| ticket.until > shared.runtime.clock.now());
    let Some(ticket) = ticket else {
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            "a process without a ticket",
        ));
    };
    let started = StartTime::from_ticks(introduction.started);
    let attached = guest
        .channel
        .process(Some(started))
        .and_then(|process| host.control.attach(Arc::new(process)));
    let welcome = |error| Welcome {
        error,
        probe: host.probe.as_ptr() as u64,
        expected: *host.probe,
    };
    let deadline = shared.runtime.deadline(AT_ONCE);
    match attached {
        Ok(attached) => {
            let descriptors: [BorrowedFd<'_>; 2] = [host.control.descriptor(), attached.counts.as_fd()];
            host.count_in(ticket.peer);
            guest.attached = Some(Attached {
                name: ticket.peer,
                key: shared.authority.key(ticket.peer),
                id: attached.id,
            });
            guest
                .channel
                .send(&welcome(None).encode(), &descriptors, deadline)
        }
        Err(error) => {
            guest
                .channel
                .send(&welcome(Some(error.kind())).encode(), &[], deadline)?;
            Err(error)
        }
    }
}

fn answer(host: &ShmHost, shared: &Shared, channel: &Channel, peer: &Attached, bytes: &[u8]) -> Result<()> {
    let question = Question::decode(bytes)?;
    let mut worths = Vec::with_capacity(question.grants.len());
    let mut files = Vec::new();
    for grant in &question.grants {
        let found = host.worth(shared, peer.name, &peer.key, grant);
        let found = found.and_then(|(worth, region)| {
            files.extend(region_file(&region, grant)?);
            Ok(worth)
        });
        worths.push(found.map_err(|error| error.kind()));
    }
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let number = question.number;
    let answer = Worths { number, worths };
    channel.send(&answer.encode(), &files, shared.runtime.deadline(AT_ONCE))
}
