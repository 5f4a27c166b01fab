//! The master's state machine: what lies where, who may stay, and who must go. No I/O, no clock and no threads of its own:
//! the moment comes with every call, from a steady clock.
//!
//! What holds at every moment:
//!
//! - No two ranges of one segment overlap, and none is given out that its node hasn't confirmed as free.
//! - An object that is leased, soft-pinned (with the exception that operators may allow) or incomplete isn't evicted.
//! - A tenant's replicas never take more than its quota, but for what nodes announce, and for copies from nodes that are
//!   being emptied: of a replica and its copy one counts.
//! - Numbers of puts only grow, so that a range's put is its epoch.
//!
//! Nodes are the truth: a master that starts knows nothing and learns everything from announcements.

mod announce;
mod drains;
mod evict;
mod moves;
mod node;
mod nodes;
mod object;
mod place;
mod puts;
pub mod ranges;
mod reads;
mod recency;
mod removal;
mod report;
mod tenants;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use kvstored_core::{Error, Result};

use crate::settings::MasterSettings;
use crate::types::NodeId;
use node::{Node, Phase};
use object::Objects;
use recency::Recency;
use tenants::Tenants;

/// How many puts an epoch has numbers for before it counts into the next one's: epochs are apart like milliseconds, so
/// that a later master's numbers are higher even where it can't know the earlier one's.
const PUTS_PER_EPOCH_BITS: u32 = 20;
/// The highest epoch that is believed.
pub const MAX_EPOCH: u64 = 1 << 43;
/// The highest number of a put that is believed.
pub const MAX_PUT: u64 = 1 << 63;

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// Events since the start.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[doc = $doc])* pub $name: u64,)* }

        impl Counters {
            /// All of them by name.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Puts that began.
    puts_started,
    /// Puts that became visible.
    puts_completed,
    /// Puts that their writers gave up.
    puts_revoked,
    /// Puts that took too long.
    puts_discarded,
    /// Puts refused for want of room.
    puts_without_room,
    /// Puts refused because of a quota.
    puts_over_quota,
    /// Objects asked for and found.
    get_hits,
    /// Objects asked for in vain.
    get_misses,
    /// Objects whose existence was asked for.
    exist_queries,
    /// Objects removed on request.
    removed_objects,
    /// Objects evicted.
    evicted_objects,
    /// Bytes of evicted objects, each replica counted.
    evicted_bytes,
    /// Evicted objects that were soft-pinned.
    evicted_pinned_objects,
    /// Nodes that mounted.
    nodes_mounted,
    /// Nodes given up because they were silent.
    nodes_lost,
    /// Objects gone with their nodes.
    lost_objects,
    /// Copies from nodes that are being emptied that began.
    moves_started,
    /// Objects that were copied from nodes that are being emptied.
    moved_objects,
    /// Bytes of them.
    moved_bytes,
    /// Copies that failed, took too long, or were called off.
    moves_given_up,
    /// Objects on nodes that are being emptied that fitted on no other one, each time that they were looked at.
    moves_without_room,
    /// Replicas that nodes announced.
    announced_replicas,
    /// Announced replicas that weren't taken: an older put's, or one that contradicts others.
    announced_conflicts,
    /// Ranges that nodes confirmed as free.
    confirmed_ranges,
}

/// What a call means for others, for whoever wakes them.
#[derive(Debug, Default)]
pub struct Effects {
    /// Nodes with new orders.
    pub orders: Vec<NodeId>,
    /// Whether room became free.
    pub room: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct State {
    settings: MasterSettings,
    epoch: u64,
    next_put: u64,
    recovering_until: Instant,
    nodes: Vec<Option<Node>>,
    by_id: HashMap<NodeId, u32>,
    /// Nodes by free bytes.
    by_room: BTreeSet<(u64, u32)>,
    /// When to look whether a node is silent.
    expiries: BTreeSet<(Instant, u32)>,
    /// Nodes that are gone and whose objects are being cleared away.
    gone: Vec<u32>,
    /// When some of them were cleared away last.
    gone_since: Option<Instant>,
    objects: Objects,
    tenants: Tenants,
    recency: Recency,
    /// When soft pins end of objects that aren't leased.
    pins: BTreeSet<(Instant, u32)>,
    /// When puts under way are given up.
    discards: BTreeSet<(Instant, u32)>,
    /// Nodes that are being emptied.
    emptied: BTreeSet<u32>,
    /// When nodes are looked at again that are being emptied without copies.
    drain_look: Option<Instant>,
    /// When copies under way are given up: with their puts, and the nodes that they are for.
    arrivals: BTreeSet<(Instant, u64, u32)>,
    /// When replicas go that were copied: the objects, and the nodes. Those that are over already are still in it.
    departures: BTreeSet<(Instant, u32, u32)>,
    capacity_bytes: u64,
    /// Of objects and of puts under way.
    used_bytes: u64,
    quarantined_bytes: u64,
    counters: Counters,
    effects: Effects,
}

impl State {
    /// A master with that fencing epoch that knows nothing yet. Fails with `InvalidInput` for settings that make no sense.
    pub fn new(settings: MasterSettings, epoch: u64, now: Instant) -> Result<Self> {
        settings.check()?;
        if epoch == 0 || epoch >= MAX_EPOCH {
            return Err(Error::invalid(format!("a master's epoch {epoch}")));
        }
        Ok(Self {
            epoch,
            next_put: epoch << PUTS_PER_EPOCH_BITS,
            recovering_until: now + settings.recovery,
            nodes: Vec::new(),
            by_id: HashMap::new(),
            by_room: BTreeSet::new(),
            expiries: BTreeSet::new(),
            gone: Vec::new(),
            gone_since: None,
            objects: Objects::default(),
            tenants: Tenants::new(settings.quotas.clone(), settings.max_tenants),
            recency: Recency::default(),
            pins: BTreeSet::new(),
            discards: BTreeSet::new(),
            emptied: BTreeSet::new(),
            drain_look: None,
            arrivals: BTreeSet::new(),
            departures: BTreeSet::new(),
            capacity_bytes: 0,
            used_bytes: 0,
            quarantined_bytes: 0,
            counters: Counters::default(),
            effects: Effects::default(),
            settings,
        })
    }

    /// The fencing epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether nodes may be missing whose announcement hasn't come yet.
    pub fn is_recovering(&self, now: Instant) -> bool {
        now < self.recovering_until
    }

    /// The events so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What the calls since the last time mean for others.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// When [`State::tick`] has something to do next.
    pub fn next_wake(&self) -> Option<Instant> {
        [
            self.expiries.first().map(|(at, _)| *at),
            self.discards.first().map(|(at, _)| *at),
            self.arrivals.first().map(|(at, ..)| *at),
            self.departures.first().map(|(at, ..)| *at),
            self.drain_look,
            self.gone_since,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due: gives up silent nodes and puts that take too long, clears away what nodes took with them.
    pub fn tick(&mut self, now: Instant) {
        self.expire_nodes(now);
        self.discard_puts(now);
        self.clear_gone(now);
        self.discard_moves(now);
        self.clear_departed(now);
        self.continue_drains(now);
    }

    fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(number as usize)?.as_ref()
    }

    fn node_mut(&mut self, number: u32) -> Option<&mut Node> {
        self.nodes.get_mut(number as usize)?.as_mut()
    }

    fn is_gone(&self, number: u32) -> bool {
        self.node(number).is_none_or(|node| node.phase == Phase::Gone)
    }

    /// Changes what a node has free, and keeps the order by room.
    fn with_room<T>(&mut self, number: u32, change: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let node = self.nodes.get_mut(number as usize)?.as_mut()?;
        let before = node.free.free_bytes();
        let outcome = change(node);
        let after = node.free.free_bytes();
        if before != after && self.by_room.remove(&(before, number)) {
            self.by_room.insert((after, number));
        }
        Some(outcome)
    }

    /// Ends a replica: its range is quarantined until the node confirms, unless the node is gone.
    fn end_replica(&mut self, tenant: u32, length: u64, replica: object::Replica) {
        let bytes = ranges::rounded(length);
        let charged = self.end_stance(replica).then_some(tenant);
        let gone = self.is_gone(replica.node);
        let Some(node) = self.node_mut(replica.node) else {
            if let Some(tenant) = charged {
                self.tenants.discharge(tenant, bytes);
            }
            return;
        };
        node.puts.remove(&replica.put);
        if gone {
            // the node's bytes left the totals when it did
            if let Some(tenant) = charged {
                self.tenants.discharge(tenant, bytes);
            }
            return;
        }
        node.quarantine(replica.put, replica.offset, length, charged);
        let id = node.id;
        self.used_bytes -= bytes;
        self.quarantined_bytes += bytes;
        if let Some(tenant) = charged {
            self.tenants.quarantine(tenant, bytes);
        }
        if self.effects.orders.last() != Some(&id) {
            self.effects.orders.push(id);
        }
    }

    /// Forgets an object, and ends its replicas. Returns the bytes that they took.
    fn drop_object(&mut self, slot: u32) -> u64 {
        self.unqueue(slot);
        let Some(object) = self.objects.remove(slot) else {
            return 0;
        };
        if let object::Stage::Pending { until, .. } = object.stage {
            self.discards.remove(&(until, slot));
        }
        if let Some(tenant) = self.tenants.get_mut(object.tenant) {
            tenant.objects -= 1;
        }
        for replica in &object.replicas {
            self.end_replica(object.tenant, object.length, *replica);
        }
        object.reserved() * object.replicas.len() as u64
    }

    /// Finds an object, without the replicas that went with their nodes. An object that has none left isn't there.
    fn look_up(&mut self, key: &[u8]) -> Option<u32> {
        let slot = self.objects.find(key)?;
        self.prune(slot).then_some(slot)
    }

    /// Drops replicas on nodes that are gone. Returns whether the object is still there.
    fn prune(&mut self, slot: u32) -> bool {
        let Some(object) = self.objects.get(slot) else {
            return false;
        };
        let is_lost = |replica: &object::Replica| match replica.stance {
            // a copy goes with the one who writes it
            object::Stance::Arrives { from, .. } => self.is_gone(replica.node) || self.is_gone(from),
            _ => self.is_gone(replica.node),
        };
        if !object.replicas.iter().any(is_lost) {
            return true;
        }
        let (tenant, length) = (object.tenant, object.length);
        let (lost, kept): (Vec<_>, Vec<_>) = object.replicas.iter().copied().partition(is_lost);
        if let Some(object) = self.objects.get_mut(slot) {
            object.replicas = kept;
        }
        for replica in lost {
            self.end_replica(tenant, length, replica);
        }
        self.keep_one(slot);
        let empty = self
            .objects
            .get(slot)
            .is_none_or(|object| object.replicas.iter().all(object::Replica::arrives));
        if empty {
            let complete = self.objects.get(slot).is_some_and(object::Object::is_complete);
            self.counters.lost_objects += u64::from(complete);
            self.drop_object(slot);
        }
        !empty
    }
}
