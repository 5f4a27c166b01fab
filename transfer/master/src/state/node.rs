//! What a master knows of one node.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::object::Replica;
use super::ranges::{FreeRanges, rounded};
use crate::types::{DrainProgress, Lender, Location, NodeId, TokenKey};

/// How soon an order that a node hasn't carried out is given again.
const REPEAT: Duration = Duration::from_secs(1);

/// How far a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Says what it holds; nothing is allocated there.
    Announcing,
    /// Everything is known.
    Ready,
    /// Left, or given up. What it held is being cleared away.
    Gone,
}

/// A range that was released and that the node hasn't confirmed. It isn't free before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quarantined {
    pub offset: u64,
    pub bytes: u64,
    /// The tenant against whose quota it counts; none for a copy that doesn't.
    pub tenant: Option<u32>,
}

/// How the emptying of a node goes.
#[derive(Debug, Default)]
pub(super) struct Emptying {
    pub moved_objects: u64,
    pub moved_bytes: u64,
    /// Puts whose replicas are still to be looked at in this pass, the most recently used first.
    pub to_look_at: VecDeque<u64>,
    /// What fitted nowhere in this pass: objects and bytes.
    pub unplaced: (u64, u64),
    /// What fitted nowhere in the last pass.
    pub unplaced_before: (u64, u64),
    /// Whether a pass has begun and not ended.
    pub is_under_way: bool,
    /// Passes that have ended.
    pub passes: u64,
    /// When the next pass may begin.
    pub next_pass: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub id: NodeId,
    pub name: String,
    pub control: Arc<str>,
    pub engine: Arc<str>,
    pub token_key: TokenKey,
    pub capacity: u64,
    pub phase: Phase,
    /// Nothing more is allocated there; `Some(true)`: its objects go as soon as they may.
    pub draining: Option<bool>,
    pub emptying: Emptying,
    /// Objects that it is copying to other nodes.
    pub moving: u64,
    /// Replicas here that leave.
    pub leaving: u64,
    /// What the node was told of its emptying last, so that it learns of a change at once.
    pub told_draining: Option<bool>,
    /// Its connection broke, and it hasn't shown up since.
    pub suspect: bool,
    pub last_seen: Instant,
    /// When it's given up.
    pub deadline: Instant,
    pub free: FreeRanges,
    /// Numbers of the objects that have a replica here, by their puts.
    pub puts: HashMap<u64, u32>,
    pub quarantine: HashMap<u64, Quarantined>,
    pub quarantined_bytes: u64,
    /// While it announces: puts that were over when it mounted anew, of which it may not have heard.
    pub ended: HashSet<u64>,
    /// Orders that weren't given yet.
    orders: VecDeque<u64>,
    /// Orders that were given, and when.
    given: VecDeque<(Instant, u64)>,
}

impl Node {
    pub fn new(lender: &Lender, token_key: TokenKey, now: Instant, ttl: Duration) -> Self {
        Self {
            id: lender.node,
            name: lender.name.clone(),
            control: lender.control.as_str().into(),
            engine: lender.engine.as_str().into(),
            token_key,
            capacity: lender.segment_bytes,
            phase: Phase::Announcing,
            draining: lender.draining,
            emptying: Emptying::default(),
            moving: 0,
            leaving: 0,
            told_draining: lender.draining,
            suspect: false,
            last_seen: now,
            deadline: now + ttl,
            free: FreeRanges::new(lender.segment_bytes),
            puts: HashMap::new(),
            quarantine: HashMap::new(),
            quarantined_bytes: 0,
            ended: HashSet::new(),
            orders: VecDeque::new(),
            given: VecDeque::new(),
        }
    }

    /// Whether something may be allocated here.
    pub fn takes(&self) -> bool {
        self.phase == Phase::Ready && self.draining.is_none() && !self.suspect
    }

    /// Whether it announced what it holds, and answers as far as is known.
    pub fn is_reachable(&self) -> bool {
        self.phase == Phase::Ready && !self.suspect
    }

    /// Bytes of objects and of puts under way.
    pub fn used_bytes(&self) -> u64 {
        if self.phase == Phase::Gone {
            return 0;
        }
        let usable = self.capacity - self.capacity % super::ranges::GRANULE;
        usable - self.free.free_bytes() - self.quarantined_bytes
    }

    /// For listings.
    pub fn state_name(&self) -> &'static str {
        match self.phase {
            Phase::Announcing => "announcing",
            Phase::Gone => "gone",
            Phase::Ready if self.suspect => "suspect",
            Phase::Ready if self.draining.is_some() => {
                let empty = self.puts.is_empty() && self.quarantine.is_empty();
                if empty { "drained" } else { "draining" }
            }
            Phase::Ready => "ready",
        }
    }

    /// Where a replica is here.
    pub fn location(&self, replica: &Replica) -> Location {
        Location {
            node: self.id,
            control: self.control.clone(),
            engine: self.engine.clone(),
            put: replica.put,
            offset: replica.offset,
            token: Box::default(),
        }
    }

    /// How far its emptying is.
    pub fn progress(&self) -> DrainProgress {
        let (unplaced_objects, unplaced_bytes) = self.emptying.unplaced_before;
        DrainProgress {
            moved_objects: self.emptying.moved_objects,
            moved_bytes: self.emptying.moved_bytes,
            moving_objects: self.moving,
            leaving_replicas: self.leaving,
            unplaced_objects,
            unplaced_bytes,
            passes: self.emptying.passes,
        }
    }

    /// Ends a put's range here: it's free once the node has confirmed.
    pub fn quarantine(&mut self, put: u64, offset: u64, length: u64, tenant: Option<u32>) {
        let bytes = rounded(length);
        let range = Quarantined {
            offset,
            bytes,
            tenant,
        };
        if self.quarantine.insert(put, range).is_none() {
            self.quarantined_bytes += bytes;
            self.orders.push_back(put);
        }
    }

    /// Puts that are over here, of which the node may not have heard.
    pub fn ended_puts(&self) -> HashSet<u64> {
        self.quarantine.keys().chain(&self.ended).copied().collect()
    }

    /// Whether a put is over here, and the node may not have heard of it.
    pub fn is_ending(&self, put: u64) -> bool {
        self.quarantine.contains_key(&put) || self.ended.contains(&put)
    }

    /// The node has confirmed that nothing touches a range any more.
    pub fn confirm(&mut self, put: u64) -> Option<Quarantined> {
        let range = self.quarantine.remove(&put)?;
        self.quarantined_bytes -= range.bytes;
        self.free.release(range.offset, range.bytes);
        Some(range)
    }

    /// Takes orders, those included that were given a while ago in vain.
    pub fn take_orders(&mut self, now: Instant, most: usize) -> Vec<u64> {
        while let Some(&(at, put)) = self.given.front()
            && at + REPEAT <= now
        {
            self.given.pop_front();
            if self.quarantine.contains_key(&put) {
                self.orders.push_back(put);
            }
        }
        let count = self.orders.len().min(most);
        let mut taken: Vec<u64> = self.orders.drain(..count).collect();
        taken.retain(|put| self.quarantine.contains_key(put));
        self.given.extend(taken.iter().map(|put| (now, *put)));
        taken
    }
}
