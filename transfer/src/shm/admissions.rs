//! What this process has been told that its grants are worth.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_shm::{Channel, ForeignMemory, PeerControl, PeerMemory, Sharing, SocketAddress, StartTime};
use parking_lot::{Mutex, RwLock};

use super::moving::PeerRegion;
use crate::grant::{Grant, Rights};
use crate::wire::{Introduction, MOST_ASKED, Offer, Question, Welcome, Worth, Worths};

/// Grants that are remembered; past that all are forgotten and asked about again.
const MOST_KNOWN: usize = 1 << 16;
/// How often it's looked whether the peer lives, while its answer is awaited.
const LOOK: Duration = Duration::from_millis(20);

type Valued = Result<Worth, ErrorKind>;

/// A grant's worth.
#[derive(Debug)]
pub(super) struct Admission {
    grant: Grant,
    pub rights: Rights,
    pub slot: u32,
    pub epoch: u64,
    pub offset: u64,
    pub until: Instant,
    pub region: Arc<PeerRegion>,
}

#[derive(Debug, Default)]
struct Known {
    by_serial: HashMap<u64, Arc<Admission>>,
    /// How many there were after the last look for those that are over.
    looked_at: usize,
}

/// One peer's grants, and the socket over which they are asked about.
pub(super) struct Admissions {
    /// First, so that the peer finds this process done when the socket goes.
    pub page: Arc<PeerControl>,
    known: RwLock<Known>,
    /// By number, and whether they may be written.
    regions: Mutex<HashMap<(u64, bool), Weak<PeerRegion>>>,
    /// `None` where the kernel doesn't let this process touch the peer's memory.
    foreign: Option<ForeignMemory>,
    runtime: Runtime,
    conversation: Mutex<Conversation>,
}

struct Conversation {
    channel: Channel,
    /// Of the last question.
    number: u32,
}

impl Admissions {
    /// Goes to where the offer points. Fails with `NotFound` or `Unavailable` when the peer is on another host, and with
    /// `PermissionDenied` when it's another user's or refuses.
    pub fn attach(offer: &Offer, runtime: &Runtime, deadline: Instant) -> Result<Self> {
        let address: SocketAddress = offer.address.parse()?;
        let channel = Channel::connect(&address, runtime.clock.clone(), deadline)?;
        let introduction = Introduction {
            started: StartTime::own()?.ticks(),
            ticket: offer.ticket,
        };
        channel.send(&introduction.encode(), &[], deadline)?;
        let answer = channel.receive(deadline)?;
        let welcome = Welcome::decode(&answer.bytes)?;
        if let Some(kind) = welcome.error {
            return Err(Error::new(
                kind,
                "the peer doesn't share its memory with this process",
            ));
        }
        let descriptors: Result<[OwnedFd; 2], _> = answer.descriptors.try_into();
        let [epochs, counts] = descriptors
            .map_err(|_| Error::new(ErrorKind::Corrupt, "a welcome without its two descriptors"))?;
        Ok(Self {
            page: PeerControl::map(epochs, counts, offer.slots)?,
            known: RwLock::default(),
            regions: Mutex::default(),
            foreign: foreign(&channel, &welcome),
            runtime: runtime.clone(),
            conversation: Mutex::new(Conversation { channel, number: 0 }),
        })
    }

    /// What a grant is worth, as far as that's known.
    pub fn known(&self, grant: &Grant) -> Option<Arc<Admission>> {
        let known = self.known.read();
        let found = known.by_serial.get(&grant.serial())?;
        (found.grant == *grant).then(|| found.clone())
    }

    /// Asks about those of the grants that nothing is known of. What's wrong with one is found when it's used.
    pub fn ask_about<'a>(
        &self,
        grants: impl Iterator<Item = &'a Grant>,
        goes_on: &dyn Fn() -> bool,
        deadline: Instant,
    ) -> Result<()> {
        let mut unknown: Vec<Grant> = Vec::new();
        for grant in grants {
            // the entries of a batch often have the same grant
            if unknown.last() != Some(grant) && self.known(grant).is_none() {
                unknown.push(*grant);
            }
        }
        for some in unknown.chunks(MOST_ASKED) {
            self.ask(some, goes_on, deadline)?;
        }
        Ok(())
    }

    /// Takes what a peer said of a grant without being asked, if it's about memory that is known here: a new one comes only
    /// with its descriptor, over the socket.
    pub fn believe(&self, grant: &Grant, told: &[u8]) {
        let Ok(told) = Worths::decode(told) else { return };
        let [Ok(worth)] = told.worths[..] else { return };
        let key = (worth.region, worth.rights.may_write());
        let known = self.regions.lock().get(&key).and_then(Weak::upgrade);
        // nothing is lost where it can't be used: the peer is asked then
        if known.is_some() {
            let _ = self.learn(grant, &worth, None);
        }
    }

    /// Asks what one grant is worth. Fails with what the peer refuses it for.
    pub fn ask_one(
        &self,
        grant: &Grant,
        goes_on: &dyn Fn() -> bool,
        deadline: Instant,
    ) -> Result<Arc<Admission>> {
        let mut answers = self.ask(&[*grant], goes_on, deadline)?;
        answers
            .pop()
            .unwrap_or_else(|| Err(Error::internal("a question without an answer")))
    }

    fn ask(
        &self,
        grants: &[Grant],
        goes_on: &dyn Fn() -> bool,
        deadline: Instant,
    ) -> Result<Vec<Result<Arc<Admission>>>> {
        let (worths, files) = self.converse(grants, goes_on, deadline)?;
        if worths.len() != grants.len() {
            return Err(Error::new(ErrorKind::Corrupt, "an answer to another question"));
        }
        let mut files = files.into_iter();
        let mut answers = Vec::with_capacity(grants.len());
        for (grant, worth) in grants.iter().zip(worths) {
            answers.push(match worth {
                Ok(worth) => {
                    let file = if worth.own { files.next() } else { None };
                    self.learn(grant, &worth, file)
                }
                Err(kind) => Err(Error::new(kind, "the peer refuses the grant")),
            });
        }
        Ok(answers)
    }

    fn converse(
        &self,
        grants: &[Grant],
        goes_on: &dyn Fn() -> bool,
        deadline: Instant,
    ) -> Result<(Vec<Valued>, Vec<OwnedFd>)> {
        let mut conversation = self.patiently(goes_on, deadline, |soon| {
            let turn = self.conversation.try_lock_until(soon);
            turn.ok_or_else(|| Error::new(ErrorKind::TimedOut, "the peer hasn't answered others yet"))
        })?;
        conversation.number = conversation.number.wrapping_add(1);
        let number = conversation.number;
        let question = Question {
            number,
            grants: grants.to_vec(),
        };
        let question = question.encode();
        let channel = &conversation.channel;
        self.patiently(goes_on, deadline, |soon| channel.send(&question, &[], soon))?;
        loop {
            let message = self.patiently(goes_on, deadline, |soon| channel.receive(soon))?;
            let answer = Worths::decode(&message.bytes)?;
            // an earlier one may be the answer to a question that was given up
            if answer.number == number {
                return Ok((answer.worths, message.descriptors));
            }
        }
    }

    /// Tries something until it's done or the deadline has passed, with a look now and then whether it's wanted still: a
    /// stopped peer is given up long before.
    fn patiently<T>(
        &self,
        goes_on: &dyn Fn() -> bool,
        deadline: Instant,
        mut attempt: impl FnMut(Instant) -> Result<T>,
    ) -> Result<T> {
        loop {
            match attempt(self.runtime.deadline(LOOK).min(deadline)) {
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    if !goes_on() {
                        return Err(Error::new(ErrorKind::Unavailable, "the peer has gone"));
                    }
                    if self.runtime.clock.now() >= deadline {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }

    fn learn(&self, grant: &Grant, worth: &Worth, file: Option<OwnedFd>) -> Result<Arc<Admission>> {
        let region = self.region(worth, file)?;
        let admission = Arc::new(Admission {
            grant: *grant,
            rights: worth.rights,
            slot: worth.slot,
            epoch: worth.epoch,
            offset: worth.offset,
            until: self.runtime.deadline(Duration::from_nanos(worth.lasts)),
            region,
        });
        let mut known = self.known.write();
        if known.by_serial.len() >= MOST_KNOWN {
            known.by_serial.clear();
        }
        if known.by_serial.len() >= known.looked_at * 2 + 64 {
            self.forget_stale_in(&mut known);
        }
        known.by_serial.insert(grant.serial(), admission.clone());
        Ok(admission)
    }

    fn region(&self, worth: &Worth, file: Option<OwnedFd>) -> Result<Arc<PeerRegion>> {
        let writable = worth.rights.may_write();
        let key = (worth.region, writable);
        let mut regions = self.regions.lock();
        if let Some(known) = regions.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let region = match (file, &self.foreign) {
            (Some(file), _) => {
                let access = if writable {
                    Sharing::ReadWrite
                } else {
                    Sharing::ReadOnly
                };
                PeerRegion::Shared(PeerMemory::map(file, worth.region_bytes, access)?)
            }
            (None, Some(memory)) => PeerRegion::Private {
                memory: memory.clone(),
                address: worth.address,
                length: worth.region_bytes,
            },
            (None, None) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the kernel doesn't let this process touch the peer's memory",
                ));
            }
        };
        let region = Arc::new(region);
        regions.retain(|_, region| region.strong_count() > 0);
        regions.insert(key, Arc::downgrade(&region));
        Ok(region)
    }

    /// Forgets a grant's worth.
    pub fn forget(&self, admission: &Admission) {
        let mut known = self.known.write();
        let serial = admission.grant.serial();
        if known
            .by_serial
            .get(&serial)
            .is_some_and(|found| found.epoch == admission.epoch)
        {
            known.by_serial.remove(&serial);
        }
    }

    /// Forgets what is over, so that memory which the peer has given up isn't held here.
    pub fn forget_stale(&self) {
        if !self.known.read().by_serial.is_empty() {
            self.forget_stale_in(&mut self.known.write());
        }
    }

    fn forget_stale_in(&self, known: &mut Known) {
        let now = self.runtime.clock.now();
        known.by_serial.retain(|_, admission| {
            admission.until > now && self.page.enter(admission.slot, admission.epoch).is_some()
        });
        known.looked_at = known.by_serial.len();
    }
}

/// The peer's memory, if the kernel lets this process touch it.
fn foreign(channel: &Channel, welcome: &Welcome) -> Option<ForeignMemory> {
    let process = channel.process(None).map(Arc::new);
    let memory = process.map(ForeignMemory::new);
    let usable = memory.and_then(|memory| {
        memory.probe(welcome.probe, welcome.expected)?;
        Ok(memory)
    });
    usable
        .inspect_err(
            |error| tracing::debug!(%error, "memory that a peer registered can't be touched directly"),
        )
        .ok()
}
