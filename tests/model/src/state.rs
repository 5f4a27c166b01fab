//! Everything that the model's state is made of. Objects, ranges, nodes and masters are numbered from 0.

use crate::rules::{JUMP, LEASE, SESSION, Size};

/// What a node's range is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Free, or released.
    Nobody,
    /// A put of this object may write.
    Open(u8),
    /// The node holds this object's descriptor.
    Holds(u8),
}

impl Owner {
    /// The object, if there is one.
    pub fn object(self) -> Option<u8> {
        match self {
            Self::Nobody => None,
            Self::Open(object) | Self::Holds(object) => Some(object),
        }
    }
}

/// One range of a node's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Raised by every release.
    pub epoch: u8,
    /// Whose bytes lie there.
    pub bytes: Option<u8>,
    /// What it's used for.
    pub owner: Owner,
}

/// What a master believes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Its node hasn't announced itself.
    Unknown,
    /// May be given to a put.
    Free {
        /// The epoch that the node confirmed.
        epoch: u8,
    },
    /// Given to a put that hasn't ended.
    Writing {
        /// Of this object.
        object: u8,
        /// Under this epoch.
        epoch: u8,
    },
    /// Holds an object that readers may find.
    Held {
        /// This one.
        object: u8,
        /// Under this epoch.
        epoch: u8,
        /// By the master's lease clock.
        leased_until: u8,
    },
    /// The node was told to release it and hasn't confirmed.
    Releasing {
        /// The epoch that is to end.
        epoch: u8,
    },
}

/// What a master does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rank {
    /// Waits to be elected.
    Standby,
    /// Believes that it leads.
    Leading,
    /// Stopped, perhaps for good; messages that it sent may still arrive, and it may go on later with all it believed.
    Stopped,
}

/// One master. Its fencing epoch is its number plus one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Master {
    /// What it does.
    pub rank: Rank,
    /// When its session lapses unless renewed, by the steady clock.
    pub session_until: u8,
    /// What it believes of each range.
    pub slots: Vec<Slot>,
}

/// Why somebody was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The epoch is over.
    Epoch,
    /// The token is of a master that the node doesn't obey any more.
    Master,
    /// The master has revoked the put.
    Revoked,
}

/// Where a put of an object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Put {
    /// Not begun.
    Idle,
    /// Has a token for a range.
    Started {
        /// The range.
        range: u8,
        /// The range's epoch in the token.
        epoch: u8,
        /// Whose token.
        master: u8,
    },
    /// Has the node's right to write.
    Granted {
        /// The range.
        range: u8,
        /// The epoch in the right.
        epoch: u8,
    },
    /// A write has passed the node's check and its bytes are on their way.
    Inside {
        /// The range.
        range: u8,
        /// The epoch that was checked.
        epoch: u8,
    },
    /// The bytes are there.
    Written {
        /// The range.
        range: u8,
        /// The epoch in the right.
        epoch: u8,
    },
    /// The node holds the descriptor.
    Sealed {
        /// The range.
        range: u8,
        /// The epoch that was sealed.
        epoch: u8,
        /// The master that the node obeyed at that moment.
        master: u8,
    },
    /// The master said so.
    Acknowledged,
    /// Over, without effect.
    Refused(Refusal),
}

/// Where a get stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Get {
    /// Not begun.
    Idle,
    /// Has asked a master.
    Asked {
        /// For this object.
        object: u8,
        /// At this moment of the steady clock.
        at: u8,
    },
    /// Knows where it is, perhaps from a master that is gone.
    Located {
        /// The object.
        object: u8,
        /// The range.
        range: u8,
        /// The epoch in the right.
        epoch: u8,
        /// Until then it stays there.
        leased_until: u8,
    },
    /// A read has passed the node's check and its bytes are on their way.
    Inside {
        /// The object.
        object: u8,
        /// The range.
        range: u8,
        /// The epoch that was checked.
        epoch: u8,
        /// As in `Located`.
        leased_until: u8,
    },
    /// Handed bytes to its caller.
    Accepted {
        /// What was asked for.
        object: u8,
        /// Whose bytes they were.
        bytes: Option<u8>,
    },
    /// A miss.
    Refused,
}

/// What the pool owes the caller of a put. Only the properties look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Promise {
    /// Nothing yet.
    Nothing,
    /// To keep the object.
    Kept,
    /// Nothing any more: the master that the object's node obeyed evicted it. An acknowledgement that arrives later says
    /// only that the object was there.
    Evicted,
}

/// The whole system at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The steady clock.
    pub now: u8,
    /// Whether the wall clock has jumped.
    pub jumped: bool,
    /// All nodes' ranges, node by node.
    pub ranges: Vec<Range>,
    /// The fencing epoch of the master that each node obeys.
    pub obeys: Vec<u8>,
    /// The first leads, the second takes over.
    pub masters: [Master; 2],
    /// One put for each object.
    pub puts: Vec<Put>,
    /// The readers.
    pub gets: Vec<Get>,
    /// One promise for each object.
    pub promises: Vec<Promise>,
    /// Whether a put ever stored into a range that another one owned. Only the properties look.
    pub trampled: bool,
}

impl State {
    /// Nothing stored; the first master leads and knows every node.
    pub fn new(size: Size) -> Self {
        let ranges = size.ranges();
        Self {
            now: 0,
            jumped: false,
            ranges: vec![
                Range {
                    epoch: 0,
                    bytes: None,
                    owner: Owner::Nobody,
                };
                ranges
            ],
            obeys: vec![1; usize::from(size.nodes)],
            masters: [
                Master {
                    rank: Rank::Leading,
                    session_until: SESSION,
                    slots: vec![Slot::Free { epoch: 0 }; ranges],
                },
                Master {
                    rank: Rank::Standby,
                    session_until: 0,
                    slots: vec![Slot::Unknown; ranges],
                },
            ],
            puts: vec![Put::Idle; usize::from(size.objects)],
            gets: vec![Get::Idle; usize::from(size.readers)],
            promises: vec![Promise::Nothing; usize::from(size.objects)],
            trampled: false,
        }
    }

    /// Whether that master was elected last.
    pub fn in_office(&self, master: usize) -> bool {
        match self.masters.get(1).map(|second| second.rank) {
            None | Some(Rank::Standby) => master == 0,
            Some(_) => master == 1,
        }
    }

    /// Whether a transfer that entered under an ended epoch is still under way in a range.
    pub fn is_occupied(&self, range: usize) -> bool {
        let Some(current) = self.ranges.get(range).map(|range| range.epoch) else {
            return false;
        };
        let late = |at: u8, epoch: u8| usize::from(at) == range && epoch < current;
        let writing = self
            .puts
            .iter()
            .any(|put| matches!(*put, Put::Inside { range, epoch } if late(range, epoch)));
        let reading = self
            .gets
            .iter()
            .any(|get| matches!(*get, Get::Inside { range, epoch, .. } if late(range, epoch)));
        writing || reading
    }

    /// The clock by which masters measure leases. Where that is a steady one, it never jumps.
    pub fn lease_now(&self) -> u8 {
        self.now + if self.jumped { JUMP } else { 0 }
    }

    /// The end of a lease that begins at `from`.
    pub fn lease_from(from: u8) -> u8 {
        from.saturating_add(LEASE)
    }
}
