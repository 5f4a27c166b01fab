//! The state of a link: its queue pair, its messages, and what is under way in both directions.

mod sending;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::asking::Asking;
use super::credit::Credit;
use super::message::{self, MESSAGE_BYTES, Message};
use super::serving::Serving;
use super::settings::LinkSettings;
use super::{Operation, Request, Service, Target, after, earlier};
use crate::address::LinkAddress;
use crate::nic::Nic;
use crate::sys::{Buffer, Channel, Finished, Remote, Route, Slice, Success, Work};

/// Batches of completions that are handled before others have a turn.
const BATCHES: usize = 8;

/// What a posted request is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    /// The receive with that place in the inbox.
    Receive(u16),
    /// The message with that place in the outbox.
    Message(u16),
    /// A window is bound.
    Bound,
    /// The window of an operation is closed.
    Closed(u64),
    /// Bytes for the job in that place.
    Moved(usize),
}

/// A short message that waits for a credit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Note {
    /// The answer to a request.
    Answer { id: u64, failure: Option<ErrorKind> },
    /// A request isn't wanted any more.
    Cancel { id: u64 },
    /// Say something.
    Probe,
}

pub(super) struct Core {
    channel: Option<Channel<Token>>,
    inbox: Buffer,
    outbox: Buffer,
    vacant: Vec<u16>,
    credit: Credit,
    /// Whether the peer asked to hear something.
    must_tell: bool,
    notes: VecDeque<Note>,
    pub asking: Asking,
    pub serving: Serving,
    pub settings: LinkSettings,
    error: Option<Error>,
    /// Whether an operation ended since that was last looked at.
    changed: bool,
    finished: Vec<Finished<Token>>,
}

impl Core {
    pub fn new(nic: &Arc<Nic>, settings: &LinkSettings, now: Instant) -> Result<Self> {
        let domain = nic.domain();
        let receives = settings.receives;
        let mut channel = Channel::new(domain, nic.number(), settings.sends(), u32::from(receives))?;
        let inbox = Buffer::new(domain, usize::from(receives) * MESSAGE_BYTES)?;
        let outbox = Buffer::new(domain, usize::from(settings.messages()) * MESSAGE_BYTES)?;
        for place in 0..receives {
            let slice = place_of(&inbox, place, MESSAGE_BYTES)?;
            channel
                .post_receive(slice, Token::Receive(place))
                .map_err(|refused| refused.error)?;
        }
        Ok(Self {
            channel: Some(channel),
            inbox,
            outbox,
            vacant: (0..settings.messages()).rev().collect(),
            credit: Credit::new(0, receives),
            must_tell: false,
            notes: VecDeque::new(),
            asking: Asking::new(now),
            serving: Serving::new(settings.window),
            settings: *settings,
            error: None,
            changed: false,
            finished: Vec::new(),
        })
    }

    pub fn number(&self) -> u32 {
        self.channel.as_ref().map_or(0, Channel::number)
    }

    pub fn connect(&mut self, nic: &Nic, own: &LinkAddress, peer: &LinkAddress) -> Result<()> {
        if own.gid.is_some() != peer.gid.is_some() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the two RDMA ports are of different kinds",
            ));
        }
        let route = Route {
            port: nic.number(),
            own_gid: nic.gid().map(|gid| gid.index),
            gid: peer.gid.unwrap_or_default(),
            lid: peer.lid,
            number: peer.number,
            own_psn: own.psn,
            psn: peer.psn,
            mtu: own.mtu.min(peer.mtu),
            reads_in: nic.limits().reads_in,
            reads_out: nic.limits().reads_out.min(peer.reads_in),
            timeout: self.settings.packet_timeout(),
        };
        self.channel()?.connect(&route)?;
        self.credit = Credit::new(peer.receives, self.settings.receives);
        self.asking.set_window(self.settings.window.min(peer.window));
        Ok(())
    }

    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub fn with_descriptor<T>(&self, with: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        self.channel
            .as_ref()
            .map(|channel| with(channel.completions().as_fd()))
    }

    pub fn channel(&mut self) -> Result<&mut Channel<Token>> {
        let error = &self.error;
        self.channel.as_mut().ok_or_else(|| dead(error.as_ref()))
    }

    pub fn submit(&mut self, operations: Vec<Operation>, now: Instant) -> Result<()> {
        if let Some(error) = &self.error {
            return Err(dead(Some(error)));
        }
        self.asking.submit(operations, self.settings.queue_depth, now)
    }

    pub fn is_pending(&self, tag: u64) -> bool {
        self.asking.is_pending(tag)
    }

    pub fn cancel(&mut self, tag: u64, reason: &Error, now: Instant) {
        for id in self.asking.tagged(tag) {
            self.give_up(id, reason.clone(), now);
        }
    }

    fn give_up(&mut self, id: u64, reason: Error, now: Instant) {
        let until = after(now, self.settings.grace);
        if let Some(note) = self.asking.give_up(id, reason, until) {
            self.notes.push_back(note);
        }
        self.changed = true;
    }

    /// Marks what mustn't go on.
    pub fn sweep(&mut self, now: Instant) {
        for (id, reason) in self.asking.overdue(now) {
            self.give_up(id, reason, now);
        }
        self.serving.sweep(after(now, self.settings.grace));
    }

    /// What the passing of time asks for. Fails when the link can't go on.
    pub fn tick(&mut self, now: Instant) -> Result<()> {
        self.sweep(now);
        self.serving.check(now)?;
        for (id, key) in self.asking.unheeded(now, after(now, self.settings.grace))? {
            self.post(Work::Invalidate { key }, Token::Closed(id))?;
        }
        if self.asking.must_probe(now, self.settings.silence)? {
            self.notes.push_back(Note::Probe);
        }
        Ok(())
    }

    /// When the next tick is due.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        if self.error.is_some() {
            return None;
        }
        earlier(
            self.asking.next_wake(now, self.settings.silence),
            self.serving.next_wake(),
        )
    }

    /// Takes what completed and goes on. True if there is more to take, which no event tells of. With `arms`, the next
    /// completion after this makes the descriptor readable.
    pub fn turn(&mut self, now: Instant, service: &dyn Service, arms: bool) -> Result<bool> {
        if arms {
            self.channel()?.completions().take_events();
        }
        let mut more = self.drain(now, service)?;
        if arms && !more {
            self.channel()?.completions().arm()?;
            more = self.drain(now, service)?;
        }
        self.pump(now)?;
        Ok(more)
    }

    /// False when nothing was left.
    fn drain(&mut self, now: Instant, service: &dyn Service) -> Result<bool> {
        for _ in 0..BATCHES {
            let mut finished = std::mem::take(&mut self.finished);
            let any = self.channel()?.poll(&mut finished);
            let mut outcome = Ok(());
            for Finished {
                token,
                outcome: ended,
            } in finished.drain(..)
            {
                if outcome.is_ok() {
                    outcome = ended.and_then(|success| self.completed(token, success, service, now));
                }
            }
            self.finished = finished;
            outcome?;
            if !any? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn completed(
        &mut self,
        token: Token,
        success: Success,
        service: &dyn Service,
        now: Instant,
    ) -> Result<()> {
        match token {
            Token::Receive(place) => self.received(place, success, service, now),
            Token::Message(place) => {
                self.vacant.push(place);
                Ok(())
            }
            Token::Bound => Ok(()),
            Token::Closed(id) => {
                self.changed |= self.asking.closed(id, after(now, self.settings.silence));
                Ok(())
            }
            Token::Moved(place) => {
                self.serving.moved(place);
                Ok(())
            }
        }
    }

    fn received(&mut self, place: u16, success: Success, service: &dyn Service, now: Instant) -> Result<()> {
        let mut bytes = [0; MESSAGE_BYTES];
        self.inbox
            .read(u64::from(place) * MESSAGE_BYTES as u64, &mut bytes)?;
        let slice = place_of(&self.inbox, place, MESSAGE_BYTES)?;
        let reposted = self.channel()?.post_receive(slice, Token::Receive(place));
        reposted.map_err(|refused| refused.error)?;
        let text = bytes.get(..success.bytes as usize).unwrap_or_default();
        let (told, message) = message::decode(text)?;
        self.credit.received(told)?;
        self.asking.heard(now);
        match message {
            Message::Request {
                id,
                direction,
                offset,
                length,
                address,
                key,
                grant,
            } => {
                let request = Request {
                    direction,
                    grant,
                    offset,
                    length,
                };
                let remote = Remote { address, key };
                self.serving
                    .request(id, &request, Target { remote, length }, service)?;
            }
            Message::Answer { id, failure } => {
                self.notes
                    .retain(|note| !matches!(note, Note::Cancel { id: other } if *other == id));
                if let Some(key) = self.asking.answered(id, failure)? {
                    self.post(Work::Invalidate { key }, Token::Closed(id))?;
                }
                self.changed = true;
            }
            Message::Cancel { id } => self.serving.cancel(id),
            Message::Probe => self.must_tell = true,
            Message::Credits => {}
        }
        Ok(())
    }

    pub fn post(&mut self, work: Work, token: Token) -> Result<()> {
        self.channel()?.post(work, token).map_err(|refused| refused.error)
    }

    /// Ends everything. When this returns, no memory is touched any more.
    pub fn fail(&mut self, reason: &Error) {
        if self.error.is_some() {
            return;
        }
        tracing::debug!(%reason, "an RDMA link ends");
        self.error = Some(reason.clone());
        self.changed = true;
        if let Some(channel) = self.channel.take() {
            if let Err(error) = channel.fail() {
                tracing::warn!(%error, "an RDMA link could not be stopped before it was destroyed");
            }
            // first the windows: a bound one holds the queue pair
            self.asking.drop_windows();
            drop(channel);
        }
        self.notes.clear();
        self.serving.fail(reason);
        self.asking.fail(reason);
    }
}

fn place_of(buffer: &Buffer, place: u16, length: usize) -> Result<Slice> {
    buffer
        .registration()
        .slice(u64::from(place) * MESSAGE_BYTES as u64, length as u64)
}

fn dead(error: Option<&Error>) -> Error {
    match error {
        Some(error) => Error::new(ErrorKind::Unavailable, format!("the RDMA link is dead: {error}")),
        None => Error::new(ErrorKind::Unavailable, "the RDMA link is dead"),
    }
}
