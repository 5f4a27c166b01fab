//! Nodes: mounting, staying alive, confirming, leaving.

use std::collections::HashSet;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::node::{Node, Phase};
use super::{MAX_EPOCH, MAX_PUT, State};
use crate::types::{Lender, Mounted, NodeId, Orders, TokenKey};

/// Most orders in one answer.
const MAX_ORDERS: usize = 8192;
/// Most replicas that one call clears away.
pub(super) const CLEARED_AT_ONCE: usize = 4096;
/// The longest name or address of a node, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// The largest segment.
const MAX_SEGMENT_BYTES: u64 = 1 << 50;

impl State {
    /// A node lends memory, or says anew that it does; what was known of it before is forgotten, and it must announce
    /// what it holds before anything is allocated there. `token_key` is fresh and random.
    ///
    /// Fails with `InvalidInput`, with `Busy` when there are too many nodes, and with `Fenced` when the node obeys a later
    /// master: then this one must not go on under its epoch.
    pub fn mount(&mut self, lender: &Lender, token_key: TokenKey, now: Instant) -> Result<Mounted> {
        for text in [&lender.name, &lender.control, &lender.engine] {
            if text.len() > MAX_NAME_BYTES {
                return Err(Error::invalid(format!(
                    "a node's name or address of {} bytes",
                    text.len()
                )));
            }
        }
        if lender.segment_bytes == 0 || lender.segment_bytes > MAX_SEGMENT_BYTES {
            let message = format!("a segment of {} bytes", lender.segment_bytes);
            return Err(Error::invalid(message));
        }
        if lender.obeyed_epoch >= MAX_EPOCH - 1 || lender.highest_put >= MAX_PUT {
            return Err(Error::invalid(
                "a node that obeys an impossible epoch or knows an impossible put",
            ));
        }
        if lender.obeyed_epoch > self.epoch {
            return Err(Error::new(ErrorKind::Fenced, "the node obeys a later master")
                .with("epoch", self.epoch)
                .with("obeyed", lender.obeyed_epoch));
        }
        // a mark that the node has learned from another master counts only where this one doesn't know better
        let mut draining = lender.draining;
        let mut ended = HashSet::new();
        if let Some(number) = self.by_id.get(&lender.node).copied() {
            draining = self.node(number).and_then(|node| node.draining);
            ended = self.node(number).map(Node::ended_puts).unwrap_or_default();
            self.let_go(number, now);
        } else if self.by_id.len() >= self.settings.max_nodes {
            return Err(Error::new(
                ErrorKind::Busy,
                "there are as many nodes as the master takes",
            ));
        }
        self.next_put = self.next_put.max(lender.highest_put + 1);
        let mut node = Node::new(lender, token_key.clone(), now, self.settings.client_ttl);
        node.draining = draining;
        node.ended = ended;
        let deadline = node.deadline;
        let number = self.nodes.iter().position(Option::is_none);
        let number = number.unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        if let Some(place) = self.nodes.get_mut(number) {
            *place = Some(node);
        }
        let number = number as u32;
        if draining.is_some() {
            self.emptied.insert(number);
        }
        self.by_id.insert(lender.node, number);
        self.expiries.insert((deadline, number));
        self.capacity_bytes += lender.segment_bytes;
        self.counters.nodes_mounted += 1;
        Ok(Mounted {
            epoch: self.epoch,
            token_key,
            ttl: self.settings.client_ttl,
        })
    }

    /// A node that mounted under `epoch` is alive, and confirms ranges as free. Its orders come from [`State::orders`].
    pub fn heartbeat(&mut self, node: &NodeId, epoch: u64, released: &[u64], now: Instant) {
        let known = self.by_id.get(node).copied().filter(|_| epoch == self.epoch);
        let Some(number) = known else { return };
        let ttl = self.settings.client_ttl;
        if let Some(node) = self.node_mut(number) {
            node.last_seen = now;
            node.deadline = now + ttl;
            node.suspect = false;
        }
        for put in released {
            if let Some(Some(range)) = self.with_room(number, |node| node.confirm(*put)) {
                self.quarantined_bytes -= range.bytes;
                if let Some(tenant) = range.tenant {
                    self.tenants.confirm(tenant, range.bytes);
                }
                self.counters.confirmed_ranges += 1;
                self.effects.room = true;
            }
        }
    }

    /// What a node that mounted under `epoch` is to do. Says nothing about whether it's alive.
    pub fn orders(&mut self, node: &NodeId, epoch: u64, now: Instant) -> Orders {
        let mut orders = Orders {
            master_epoch: self.epoch,
            announce: true,
            release: Vec::new(),
            draining: None,
        };
        let known = self.by_id.get(node).copied().filter(|_| epoch == self.epoch);
        if let Some(node) = known.and_then(|number| self.node_mut(number)) {
            orders.announce = false;
            orders.release = node.take_orders(now, MAX_ORDERS);
            orders.draining = node.draining;
        }
        orders
    }

    /// Whether the node hasn't been told yet how it's being emptied; then its orders are worth an answer at once.
    pub fn has_news_of_drain(&mut self, node: &NodeId, epoch: u64) -> bool {
        let known = self.by_id.get(node).copied().filter(|_| epoch == self.epoch);
        let Some(node) = known.and_then(|number| self.node_mut(number)) else {
            return false;
        };
        std::mem::replace(&mut node.told_draining, node.draining) != node.draining
    }

    /// A node's connection broke while it waited for orders: nothing is placed there until it shows up, and it's given up
    /// soon if it doesn't.
    pub fn suspect(&mut self, node: &NodeId, epoch: u64, now: Instant) {
        let Some(number) = self.by_id.get(node).copied().filter(|_| epoch == self.epoch) else {
            return;
        };
        let until = now + self.settings.broken_ttl;
        let Some(node) = self.node_mut(number) else { return };
        node.suspect = true;
        if until < node.deadline {
            node.deadline = until;
            self.expiries.insert((until, number));
        }
    }

    /// A node takes its memory back. One that isn't known is fine.
    pub fn unmount(&mut self, node: &NodeId, now: Instant) {
        if let Some(number) = self.by_id.get(node).copied() {
            self.let_go(number, now);
        }
    }

    /// Gives up nodes that were silent for too long.
    pub(super) fn expire_nodes(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.expiries.first()
            && at <= now
        {
            self.expiries.remove(&(at, number));
            let Some(node) = self.node(number).filter(|node| node.phase != Phase::Gone) else {
                continue;
            };
            if node.deadline > now {
                let deadline = node.deadline;
                self.expiries.insert((deadline, number));
                continue;
            }
            tracing::warn!(node = %node.name, control = %node.control, "a node is silent: what it holds is given up");
            self.counters.nodes_lost += 1;
            self.let_go(number, now);
        }
    }

    /// Clears away some of what nodes took with them.
    pub(super) fn clear_gone(&mut self, now: Instant) {
        let mut left = CLEARED_AT_ONCE;
        while left > 0
            && let Some(number) = self.gone.last().copied()
        {
            let puts: Vec<(u64, u32)> = self
                .node(number)
                .map(|node| {
                    node.puts
                        .iter()
                        .map(|(put, slot)| (*put, *slot))
                        .take(left)
                        .collect()
                })
                .unwrap_or_default();
            left -= puts.len();
            let done = puts.is_empty();
            for (put, slot) in puts {
                self.prune(slot);
                if let Some(node) = self.node_mut(number) {
                    node.puts.remove(&put);
                }
            }
            if done {
                self.gone.pop();
                if let Some(place) = self.nodes.get_mut(number as usize) {
                    *place = None;
                }
            }
        }
        self.gone_since = (!self.gone.is_empty()).then_some(now);
    }

    /// A node is gone, at once; what it held is cleared away bit by bit.
    fn let_go(&mut self, number: u32, now: Instant) {
        let Some(node) = self.nodes.get_mut(number as usize).and_then(Option::as_mut) else {
            return;
        };
        if node.phase == Phase::Gone {
            return;
        }
        let (used, waiting, capacity) = (node.used_bytes(), node.quarantined_bytes, node.capacity);
        node.phase = Phase::Gone;
        self.emptied.remove(&number);
        self.by_id.remove(&node.id);
        self.by_room.remove(&(node.free.free_bytes(), number));
        let quarantine = std::mem::take(&mut node.quarantine);
        node.quarantined_bytes = 0;
        node.ended = HashSet::new();
        self.used_bytes -= used;
        self.quarantined_bytes -= waiting;
        self.capacity_bytes -= capacity;
        for range in quarantine.into_values() {
            if let Some(tenant) = range.tenant {
                self.tenants.confirm(tenant, range.bytes);
            }
        }
        self.gone.push(number);
        self.gone_since = Some(now);
        // those who wait for room on this node wait in vain
        self.effects.room = true;
    }
}
