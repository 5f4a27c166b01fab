//! Requests between two ends: the requester names a grant, the serving end checks it and moves the bytes.
//!
//! A request goes by SEND and carries the grant as bytes that only the serving end's [`Service`] understands. The requester
//! binds a memory window to exactly the range that the request is about, for this queue pair alone, and sends its key. The
//! serving end writes there for a read and reads there for a write, by one-sided RDMA in chunks, and sends an answer. The
//! requester makes the key worthless before it says that the operation is over. Nothing of the serving end's memory can be reached by a peer, and of the requester's only what
//! it asked about, as long as it asks.

mod ask;
mod asking;
mod core;
mod credit;
pub mod message;
mod serving;
mod settings;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::{Condvar, Mutex};

use self::core::Core;
pub use self::message::{MESSAGE_BYTES, MOST_GRANT_BYTES};
pub use self::settings::LinkSettings;
use crate::address::LinkAddress;
use crate::driver::{Driver, Shared};
use crate::nic::Nic;
use crate::sys::{Remote, Slice};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the serving end to the requester.
    Read,
    /// From the requester to the serving end.
    Write,
}

impl Direction {
    const fn code(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Read),
            2 => Some(Self::Write),
            _ => None,
        }
    }
}

/// Whom an operation belongs to. Called with the link locked: it must not call the link.
pub trait Owner: Send {
    /// Whether the memory may still be touched for it.
    fn is_wanted(&self) -> bool;
    /// It's over, and its memory isn't touched any more.
    fn finish(self: Box<Self>, result: Result<()>);
}

/// Something to ask of the peer.
pub struct Operation {
    /// Which way.
    pub direction: Direction,
    /// This end's memory.
    pub memory: Slice,
    /// The right to the peer's, at most [`MOST_GRANT_BYTES`].
    pub grant: Vec<u8>,
    /// Where in the granted range, as the peer understands it.
    pub offset: u64,
    /// When it's given up, with `TimedOut`.
    pub deadline: Instant,
    /// The caller's name for it, and for others that are to be cancelled together.
    pub tag: u64,
    /// Told when it's over, exactly once.
    pub owner: Box<dyn Owner>,
}

/// What the peer asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Which way.
    pub direction: Direction,
    /// What the peer says gives it the right.
    pub grant: &'a [u8],
    /// Where in the granted range.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// Decides on the peer's requests. Called with the link locked: it must not call the link.
pub trait Service: Send + Sync + 'static {
    /// Checks a request before anything moves. The error's kind is the peer's answer.
    fn admit(&self, request: &Request<'_>) -> Result<Box<dyn Admission>>;
}

/// Memory that a peer may touch for one request, held in place while this lives.
pub trait Admission: Send {
    /// The memory: as many bytes as were asked for.
    fn memory(&self) -> &Slice;
    /// Whether it may still be touched. Asked before each chunk.
    fn is_valid(&self) -> bool;
    /// It's not touched any more.
    fn finish(self: Box<Self>, result: Result<()>);
}

/// Refuses everything: for an end that only asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoService;

impl Service for NoService {
    fn admit(&self, _request: &Request<'_>) -> Result<Box<dyn Admission>> {
        Err(Error::new(ErrorKind::PermissionDenied, "this end serves nothing"))
    }
}

/// One end of a link that doesn't know the other yet: tell each the other's address, over a connection that is
/// authenticated.
pub struct Unconnected {
    nic: Arc<Nic>,
    core: Core,
    address: LinkAddress,
    runtime: Runtime,
}

impl Unconnected {
    /// Makes the queue pair and posts its receives.
    pub fn new(nic: &Arc<Nic>, settings: &LinkSettings, runtime: &Runtime) -> Result<Self> {
        settings.check(nic.limits())?;
        let core = Core::new(nic, settings, runtime.clock.now())?;
        let address = LinkAddress {
            mtu: nic.port().mtu,
            reads_in: nic.limits().reads_in,
            gid: nic.gid().map(|gid| gid.bytes),
            number: core.number(),
            psn: runtime.random.next_u64() as u32 & 0x00ff_ffff,
            lid: nic.port().lid,
            receives: settings.receives,
            window: settings.window,
        };
        Ok(Self {
            nic: nic.clone(),
            core,
            address,
            runtime: runtime.clone(),
        })
    }

    /// What the other end must be told.
    pub fn address(&self) -> LinkAddress {
        self.address
    }

    /// Connects with the other end. The driver, which must be the device's own, works for the link from then on.
    pub fn connect(
        mut self,
        peer: &LinkAddress,
        service: Arc<dyn Service>,
        driver: &Driver,
    ) -> Result<Arc<RequestLink>> {
        if !Arc::ptr_eq(driver.nic(), &self.nic) {
            return Err(Error::invalid("the driver is another port's"));
        }
        self.core.connect(&self.nic, &self.address, peer)?;
        let link = Arc::new(RequestLink {
            core: Mutex::new(self.core),
            changed: Condvar::new(),
            service,
            driver: driver.handle(),
            key: driver.new_key(),
            runtime: self.runtime,
        });
        driver.add(&link)?;
        Ok(link)
    }
}

impl fmt::Debug for Unconnected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Unconnected")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A connected end: asks the peer, and serves what the peer asks, as long as it's held. Methods are called from any thread.
pub struct RequestLink {
    core: Mutex<Core>,
    changed: Condvar,
    service: Arc<dyn Service>,
    driver: Weak<Shared>,
    key: u64,
    runtime: Runtime,
}

impl RequestLink {
    /// Whether it still works.
    pub fn is_alive(&self) -> bool {
        self.core.lock().error().is_none()
    }

    /// Why it doesn't work any more.
    pub fn error(&self) -> Option<Error> {
        self.core.lock().error().cloned()
    }

    /// Takes operations over: all of them, or none. Fails with `Busy` when too many wait, `Unavailable` when the link is
    /// dead, and `InvalidInput` for an operation on no memory or with too long a grant; no owner is told of any then.
    pub fn submit(&self, operations: Vec<Operation>) -> Result<()> {
        let now = self.runtime.clock.now();
        let deadline = operations.iter().map(|operation| operation.deadline).min();
        let mut core = self.core.lock();
        core.submit(operations, now)?;
        let beat = after(now, core.settings.silence / 4);
        self.act(&mut core, |core| core.pump(now));
        drop(core);
        self.arm(earlier(deadline, Some(beat)));
        Ok(())
    }

    /// Does what can be done without waiting.
    pub fn progress(&self) {
        let now = self.runtime.clock.now();
        let mut core = self.core.lock();
        self.act(&mut core, |core| {
            core.turn(now, &*self.service, false).map(|_| ())
        });
    }

    /// Ends the operations of that name, with that error unless they were over before. When this returns, their memory isn't
    /// touched any more and their owners were told.
    ///
    /// The peer is asked to stop first; if it doesn't within the grace, its access is cut off, which costs the link if the
    /// peer is in the middle of it.
    pub fn cancel(&self, tag: u64, reason: &Error) {
        let now = self.runtime.clock.now();
        let mut core = self.core.lock();
        core.cancel(tag, reason, now);
        self.act(&mut core, |core| core.pump(now));
        self.arm(core.next_wake(now));
        // the peer has one grace, the device another
        let last = after(now, core.settings.grace * 4);
        while core.is_pending(tag) {
            if self.changed.wait_until(&mut core, last).timed_out() && core.is_pending(tag) {
                core.fail(&Error::new(
                    ErrorKind::Unavailable,
                    "an operation could not be ended otherwise",
                ));
                self.changed.notify_all();
            }
        }
    }

    /// Ends what touches memory that mustn't be touched any more: own operations that aren't wanted, and the peer's whose
    /// admission isn't valid. It goes on after this returns, for two graces at most.
    pub fn sweep(&self) {
        let now = self.runtime.clock.now();
        let mut core = self.core.lock();
        core.sweep(now);
        self.act(&mut core, |core| core.pump(now));
        let wake = core.next_wake(now);
        drop(core);
        self.arm(wake);
    }

    /// Ends the link. What is under way fails with `Unavailable`, and touches no memory when this returns.
    pub fn close(&self) {
        self.fail(&Error::new(ErrorKind::Unavailable, "the RDMA link was closed"));
    }

    /// Ends the link for a reason.
    pub fn fail(&self, reason: &Error) {
        self.core.lock().fail(reason);
        self.changed.notify_all();
    }

    /// Runs a step; the link is dead if it fails. Whoever waits for an operation looks again.
    fn act(&self, core: &mut Core, step: impl FnOnce(&mut Core) -> Result<()>) {
        if core.error().is_none()
            && let Err(error) = step(core)
        {
            core.fail(&error);
        }
        if core.take_changed() {
            self.changed.notify_all();
        }
    }

    fn arm(&self, at: Option<Instant>) {
        if let (Some(at), Some(driver)) = (at, self.driver.upgrade()) {
            driver.arm(at);
        }
    }

    /// The driver's part when the descriptor is readable. True if there is more to do, which no event tells of.
    pub(crate) fn on_readable(&self) -> bool {
        let now = self.runtime.clock.now();
        let mut more = false;
        self.act(&mut self.core.lock(), |core| {
            more = core.turn(now, &*self.service, true)?;
            Ok(())
        });
        more
    }

    /// The driver's part when time has passed. Returns when the next is due.
    pub(crate) fn on_tick(&self) -> Option<Instant> {
        let now = self.runtime.clock.now();
        let mut core = self.core.lock();
        self.act(&mut core, |core| {
            core.tick(now)?;
            core.pump(now)
        });
        core.next_wake(now)
    }

    /// Runs `with` with the descriptor that is readable when there is something to do, if the link is alive.
    pub(crate) fn with_descriptor<T>(&self, with: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        self.core.lock().with_descriptor(with)
    }

    pub(crate) fn key(&self) -> u64 {
        self.key
    }
}

impl Drop for RequestLink {
    fn drop(&mut self) {
        self.core
            .get_mut()
            .fail(&Error::new(ErrorKind::Unavailable, "the RDMA link is gone"));
        if let Some(driver) = self.driver.upgrade() {
            driver.forget(self.key);
        }
    }
}

impl fmt::Debug for RequestLink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RequestLink")
            .field("is_alive", &self.is_alive())
            .finish_non_exhaustive()
    }
}

/// What the peer is told or says about memory of the requester's.
#[derive(Clone, Copy, Debug)]
struct Target {
    remote: Remote,
    length: u64,
}

/// The earlier of two moments that something waits for.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A moment after another; far enough if the clock can't express it.
fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or(now + Duration::from_hours(24))
}
