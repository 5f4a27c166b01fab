//! A world around the state machine: nodes that hold ranges, and a model of what the master owes its clients.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::super::State;
use super::super::node::Node;
use super::super::ranges::rounded;
use super::{id, lender, start};
use crate::settings::MasterSettings;
use crate::types::*;

pub const NODES: usize = 3;
pub const SEGMENT: u64 = 16 * 256;
pub const TENANTS: [&str; 2] = ["", "t"];

/// A range on a node, which alone decides.
#[derive(Clone, Debug)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
    pub key: Box<[u8]>,
    pub checksum: u64,
    pub sealed: bool,
    pub ordered: bool,
}

#[derive(Default)]
pub struct WorldNode {
    pub alive: bool,
    pub ranges: BTreeMap<u64, Range>,
    /// Puts that the node knows are over, and hasn't confirmed.
    pub releasing: BTreeSet<u64>,
    pub highest_put: u64,
}

/// What the master owes for a complete object.
#[derive(Clone, Debug)]
pub struct Owed {
    pub put: u64,
    /// That of the bytes: the first put that wrote them.
    pub checksum: u64,
    pub nodes: BTreeSet<usize>,
    pub tenant: usize,
    pub leased_until: Instant,
    pub pinned_until: Option<Instant>,
    pub last_use: u64,
}

pub struct Pending {
    pub key: Box<[u8]>,
    pub tenant: usize,
    pub pinned_until: Option<Instant>,
    pub ticket: Ticket,
    pub until: Instant,
}

/// A copy that a node is making.
pub struct Copy {
    pub from: usize,
    pub what: Move,
}

/// A replica that somebody was sent to, and until when it must stay.
pub struct Told {
    pub key: Box<[u8]>,
    pub node: usize,
    pub put: u64,
    pub until: Instant,
}

pub struct World {
    pub state: State,
    pub settings: MasterSettings,
    pub now: Instant,
    pub nodes: Vec<WorldNode>,
    pub owed: HashMap<Box<[u8]>, Owed>,
    pub pending: Vec<Pending>,
    pub copies: Vec<Copy>,
    pub told: Vec<Told>,
    pub draining: [bool; NODES],
    /// Nodes that were drained since they mounted: what began to leave then goes, even after the drain was called off.
    pub had_to_go: [bool; NODES],
    pub uses: u64,
    pub last_put: u64,
}

impl World {
    pub fn new(allow_evict_soft_pinned: bool) -> Self {
        let mut settings = MasterSettings {
            eviction_high_watermark_ratio: 0.8,
            eviction_ratio: 0.2,
            lease: Duration::from_secs(5),
            soft_pin: Duration::from_secs(20),
            allow_evict_soft_pinned,
            ..MasterSettings::default()
        };
        settings.quotas.tenants.insert("t".to_owned(), 12 * 256);
        let now = start();
        let state = State::new(settings.clone(), 100, now).unwrap();
        let mut world = Self {
            state,
            settings,
            now,
            nodes: (0..NODES).map(|_| WorldNode::default()).collect(),
            owed: HashMap::new(),
            pending: Vec::new(),
            copies: Vec::new(),
            told: Vec::new(),
            draining: [false; NODES],
            had_to_go: [false; NODES],
            uses: 0,
            last_put: 0,
        };
        for node in 0..NODES {
            world.mount(node);
        }
        world
    }

    /// A node mounts and announces what it holds. What it holds counts as leased.
    pub fn mount(&mut self, node: usize) {
        let number = self.state.by_id.get(&id(node as u8)).copied();
        let known = number.and_then(|number| self.state.node(number));
        let ended = known.map(Node::ended_puts).unwrap_or_default();
        let mut lender = lender(node as u8, SEGMENT);
        lender.highest_put = self.nodes[node].highest_put;
        let mounted = self
            .state
            .mount(&lender, TokenKey::from_bytes([node as u8; 32]), self.now)
            .unwrap();
        self.nodes[node].alive = true;
        self.forget(node);
        let holdings: Vec<Holding> = self.nodes[node]
            .ranges
            .iter()
            .map(|(put, range)| Holding {
                key: range.key.clone(),
                put: *put,
                offset: range.offset,
                length: range.length,
                checksum: range.checksum,
                state: match (range.ordered, range.sealed) {
                    (true, _) => HoldingState::Releasing,
                    (false, true) => HoldingState::Sealed,
                    (false, false) => HoldingState::Open,
                },
            })
            .collect();
        for part in holdings.chunks(2) {
            self.state
                .announce(&id(node as u8), mounted.epoch, part, false, self.now)
                .unwrap();
            // an answer that got lost
            self.state
                .announce(&id(node as u8), mounted.epoch, part, false, self.now)
                .unwrap();
        }
        self.state
            .announce(&id(node as u8), mounted.epoch, &[], true, self.now)
            .unwrap();
        // what was removed doesn't come back, though its node hadn't heard of that
        let mut left = holdings;
        left.retain(|holding| !ended.contains(&holding.put));
        self.learn(node, &left);
    }

    /// What a node's announcement means for what is owed.
    fn learn(&mut self, node: usize, holdings: &[Holding]) {
        for holding in holdings {
            let (tenant, _) = split_key(&holding.key).unwrap();
            let tenant = TENANTS.iter().position(|name| *name == tenant).unwrap();
            if holding.state != HoldingState::Sealed {
                continue;
            }
            self.pending.retain(|pending| pending.key != holding.key);
            self.uses += 1;
            let owed = self.owed.entry(holding.key.clone()).or_insert(Owed {
                put: holding.put,
                checksum: holding.checksum,
                nodes: BTreeSet::new(),
                tenant,
                leased_until: self.now,
                pinned_until: None,
                last_use: self.uses,
            });
            let same = owed.checksum == holding.checksum;
            if owed.put > holding.put && !same {
                continue;
            }
            if !same || owed.nodes.is_empty() {
                *owed = Owed {
                    put: holding.put,
                    checksum: holding.checksum,
                    nodes: BTreeSet::new(),
                    tenant,
                    leased_until: self.now + self.settings.lease,
                    pinned_until: None,
                    last_use: self.uses,
                };
            }
            owed.nodes.insert(node);
        }
    }

    /// The master loses what it knew of a node. A put that has no place left may go on where its nodes announce it, so
    /// that its writer gets the same one again.
    pub fn forget(&mut self, node: usize) {
        self.owed.retain(|_, owed| {
            owed.nodes.remove(&node);
            !owed.nodes.is_empty()
        });
        for pending in &mut self.pending {
            pending
                .ticket
                .locations
                .retain(|location| location.node != id(node as u8));
        }
    }

    /// The node dies with its memory.
    pub fn kill(&mut self, node: usize) {
        if std::mem::take(&mut self.nodes[node].alive) {
            let highest_put = self.nodes[node].highest_put;
            self.nodes[node] = WorldNode {
                highest_put,
                ..WorldNode::default()
            };
            self.draining[node] = false;
            self.had_to_go[node] = false;
            self.told.retain(|told| told.node != node);
            self.copies.retain(|copy| copy.from != node);
            self.state.unmount(&id(node as u8), self.now);
            self.forget(node);
        }
    }

    /// A new master that knows nothing; the living nodes announce what they hold.
    pub fn restart(&mut self) {
        let epoch = self.state.epoch() + 1;
        self.state = State::new(self.settings.clone(), epoch, self.now).unwrap();
        self.owed.clear();
        self.pending.clear();
        self.copies.clear();
        self.draining = [false; NODES];
        for node in 0..NODES {
            if self.nodes[node].alive {
                self.mount(node);
            }
        }
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        let epoch = self.state.epoch();
        for node in (0..NODES).filter(|node| self.nodes[*node].alive) {
            self.state.heartbeat(&id(node as u8), epoch, &[], self.now);
        }
        self.state.tick(self.now);
        let now = self.now;
        self.pending.retain(|pending| pending.until > now);
    }

    /// A node takes its orders, and confirms some of what it was told.
    pub fn heartbeat(&mut self, node: usize, confirm: bool) {
        if !self.nodes[node].alive {
            return;
        }
        let epoch = self.state.epoch();
        let orders = self.state.orders(&id(node as u8), epoch, self.now);
        assert!(!orders.announce);
        let place = &mut self.nodes[node];
        for put in orders.release {
            let owed = self
                .told
                .iter()
                .find(|told| (told.node, told.put) == (node, put) && told.until > self.now);
            assert!(owed.is_none(), "put {put} goes although somebody was sent to it");
            place.highest_put = place.highest_put.max(put);
            if let Some(range) = place.ranges.get_mut(&put) {
                range.ordered = true;
            }
            place.releasing.insert(put);
        }
        if confirm {
            let done: Vec<u64> = std::mem::take(&mut place.releasing).into_iter().collect();
            place.ranges.retain(|put, _| !done.contains(put));
            self.state.heartbeat(&id(node as u8), epoch, &done, self.now);
        }
    }

    /// A node opens the range that a ticket names. It would refuse what overlaps; the master must never propose that.
    pub fn open(&mut self, ticket: &Ticket, key: &[u8], length: u64) {
        for location in &ticket.locations {
            let node = &mut self.nodes[location.node[0] as usize];
            assert!(node.alive, "a place on a dead node");
            let end = location.offset + rounded(length);
            assert!(end <= SEGMENT, "a place outside the segment");
            for (put, range) in &node.ranges {
                let apart = end <= range.offset || range.offset + rounded(range.length) <= location.offset;
                assert!(
                    apart,
                    "put {} overlaps put {put}, which isn't confirmed as free",
                    ticket.put
                );
            }
            node.highest_put = node.highest_put.max(ticket.put);
            let range = Range {
                offset: location.offset,
                length,
                key: key.into(),
                checksum: ticket.put,
                sealed: false,
                ordered: false,
            };
            assert!(
                node.ranges.insert(ticket.put, range).is_none(),
                "a put's number came twice"
            );
        }
    }

    /// A writer's nodes take the descriptor, and the master is told.
    pub fn end(&mut self, which: usize, nodes: &[bool]) {
        let pending = self.pending.swap_remove(which);
        let mut holders: Vec<NodeId> = Vec::new();
        for (index, location) in pending.ticket.locations.iter().enumerate() {
            let node = &mut self.nodes[location.node[0] as usize];
            let range = node
                .ranges
                .get_mut(&pending.ticket.put)
                .filter(|range| !range.ordered);
            if let Some(range) = range
                && nodes.get(index).copied().unwrap_or(true)
            {
                range.sealed = true;
                holders.push(location.node);
            }
        }
        let finished = Finished {
            key: &pending.key,
            put: pending.ticket.put,
            checksum: pending.ticket.put,
            nodes: &holders,
            master_epoch: self.state.epoch(),
        };
        let ended = self.state.end_put(&finished, self.now);
        assert_eq!(ended.is_ok(), !holders.is_empty(), "{ended:?}");
        if ended.is_ok() {
            self.uses += 1;
            let owed = Owed {
                put: pending.ticket.put,
                checksum: pending.ticket.put,
                nodes: holders.iter().map(|node| node[0] as usize).collect(),
                tenant: pending.tenant,
                leased_until: self.now,
                pinned_until: pending.pinned_until,
                last_use: self.uses,
            };
            self.owed.insert(pending.key, owed);
        }
    }

    /// A node that is being emptied begins the copies that it's told to make.
    pub fn start_copies(&mut self, node: usize) {
        if !self.nodes[node].alive {
            return;
        }
        let epoch = self.state.epoch();
        let moves = self
            .state
            .start_moves(&id(node as u8), epoch, &[], self.now)
            .unwrap();
        assert!(moves.moves.is_empty() || self.draining[node]);
        for what in moves.moves {
            let source = &self.nodes[node].ranges[&what.from_put];
            assert!(source.sealed && !source.ordered && source.key == what.key);
            assert_eq!((source.length, source.checksum), (what.length, what.checksum));
            assert!(what.ticket.put > self.last_put, "numbers of puts don't grow");
            self.last_put = what.ticket.put;
            assert_eq!(what.ticket.locations.len(), 1);
            let target = what.ticket.locations[0].node[0] as usize;
            assert!(!self.draining[target], "a copy to a node that is being emptied");
            assert!(
                !self.owed[&what.key].nodes.contains(&target),
                "a copy to a node that has one"
            );
            self.open(&what.ticket, &what.key, what.length);
            self.copies.push(Copy { from: node, what });
        }
    }

    /// A copy is written, or fails.
    pub fn end_copy(&mut self, which: usize, good: bool) {
        let Copy { from, what } = self.copies.swap_remove(which);
        let put = what.ticket.put;
        let target = what.ticket.locations[0].node[0] as usize;
        let source = self.nodes[from].ranges.get(&what.from_put);
        let readable = source.is_some_and(|range| !range.ordered);
        let range = self.nodes[target].ranges.get_mut(&put);
        let Some(range) = range.filter(|range| good && readable && !range.ordered) else {
            self.state.revoke_put(&what.key, put);
            return;
        };
        range.sealed = true;
        range.checksum = what.checksum;
        let finished = Finished {
            key: &what.key,
            put,
            checksum: what.checksum,
            nodes: &[id(target as u8)],
            master_epoch: self.state.epoch(),
        };
        if self.state.end_put(&finished, self.now).is_ok() {
            self.state.end_put(&finished, self.now).unwrap();
            let owed = self.owed.get_mut(&what.key).expect("a copy of what nobody put");
            assert_eq!(owed.checksum, what.checksum);
            owed.nodes.insert(target);
        }
    }

    /// Bytes that count against no tenant: of copies under way, and of what they were made from.
    pub fn uncharged_bytes(&self) -> u64 {
        let state = &self.state;
        let live = |number: u32| !state.is_gone(number);
        let slots = 0..state.objects.slots() as u32;
        let of_objects: u64 = slots
            .filter_map(|slot| state.objects.get(slot))
            .map(|object| {
                let moving = object.replicas.iter();
                let moving = moving.filter(|one| !one.stays() && live(one.node)).count();
                object.reserved() * moving as u64
            })
            .sum();
        let nodes = state.nodes.iter().flatten();
        let waiting = nodes.flat_map(|node| node.quarantine.values());
        let of_nodes: u64 = waiting
            .filter(|range| range.tenant.is_none())
            .map(|range| range.bytes)
            .sum();
        of_objects + of_nodes
    }
}
