//! One operation that this end asks of the peer.

use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::{Direction, Owner};
use crate::sys::{Exposure, Slice, Window};

/// How far an operation is.
pub(super) enum Stage {
    /// Not sent.
    Queued,
    /// With the peer, which may touch the memory. Once it isn't wanted, the peer has until `until` to answer.
    Asked { window: Window, until: Option<Instant> },
    /// The peer's access is being cut off.
    Closing {
        window: Window,
        answered: bool,
        until: Option<Instant>,
    },
    /// Over, but the peer hasn't answered: it counts the request until it has.
    Abandoned { until: Instant },
    /// Being changed.
    Moving,
}

/// An operation, from its submission until the peer has answered.
pub(super) struct Ask {
    pub direction: Direction,
    pub memory: Option<Slice>,
    pub grant: Vec<u8>,
    pub offset: u64,
    pub deadline: Instant,
    pub tag: u64,
    pub owner: Option<Box<dyn Owner>>,
    pub stage: Stage,
    pub verdict: Option<Result<()>>,
}

impl Ask {
    /// Tells the owner, once.
    pub fn finish(&mut self, result: Result<()>) {
        // let go first, so that the owner may free it
        self.memory = None;
        if let Some(owner) = self.owner.take() {
            owner.finish(result);
        }
    }

    /// Why it mustn't go on, if so.
    pub fn reason_to_end(&self, now: Instant) -> Option<Error> {
        if self.owner.as_ref().is_some_and(|owner| !owner.is_wanted()) {
            return Some(Error::new(
                ErrorKind::Fenced,
                "the memory was released or unregistered",
            ));
        }
        (self.deadline <= now).then(|| Error::new(ErrorKind::TimedOut, "the RDMA peer didn't answer in time"))
    }
}

/// An operation that is about to be sent. It must be put back, sent or not.
pub(super) struct Next {
    pub id: u64,
    pub direction: Direction,
    pub memory: Slice,
    pub grant: Vec<u8>,
    pub offset: u64,
    pub exposure: Exposure,
    pub window: Window,
}
