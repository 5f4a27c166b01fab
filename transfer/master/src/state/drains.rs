//! Emptying nodes. Nothing more is placed on one that is being emptied, and what it holds goes: by being copied elsewhere
//! (see [`super::moves`]), or without copies as leases and pins run out.

use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};

use super::State;
use super::node::{Emptying, Node, Phase};
use super::nodes::CLEARED_AT_ONCE;
use super::object::{Object, Replica, Stance};
use crate::types::{Drained, NodeId};

/// How often a node is looked at while something keeps objects there.
pub(super) const DRAIN_PACE: Duration = Duration::from_millis(500);

impl State {
    /// Empties a node: nothing more is placed there, and it's given copies to make of what it holds; objects that fit
    /// nowhere stay. With `evict` nothing is copied, and all goes as soon as leases and pins run out. `undo` ends it, and
    /// calls off the copies under way. The node keeps the mark for the next master. Fails with `NotFound`.
    pub fn drain(&mut self, node: &NodeId, evict: bool, undo: bool, now: Instant) -> Result<Drained> {
        let number = self.by_id.get(node).copied();
        let number = number.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such node"))?;
        let wanted = (!undo).then_some(evict);
        if let Some(node) = self.node_mut(number)
            && node.draining != wanted
        {
            if node.draining.is_none() || undo {
                node.emptying = Emptying::default();
            }
            node.draining = wanted;
            let id = node.id;
            self.effects.orders.push(id);
        }
        if undo {
            self.emptied.remove(&number);
        } else {
            self.emptied.insert(number);
        }
        if wanted != Some(false) {
            self.call_moves_off(number);
        }
        if wanted == Some(true) {
            self.drain_look = Some(now);
            self.continue_drains(now);
            self.clear_departed(now);
        }
        let node = self.node(number);
        Ok(Drained {
            replicas: node.map_or(0, |node| node.puts.len() as u64),
            used_bytes: node.map_or(0, |node| node.used_bytes() + node.quarantined_bytes),
            progress: node.map(Node::progress).unwrap_or_default(),
        })
    }

    /// Takes objects off nodes that are being emptied without copies, as far as leases and pins allow.
    pub(super) fn continue_drains(&mut self, now: Instant) {
        if self.drain_look.is_none_or(|at| at > now) {
            return;
        }
        let numbers: Vec<u32> = self.emptied.iter().copied().collect();
        let mut unfinished = false;
        let mut left = CLEARED_AT_ONCE;
        for number in numbers {
            let node = self
                .node(number)
                .filter(|node| node.phase != Phase::Gone && node.draining == Some(true));
            let Some(node) = node else { continue };
            let slots: Vec<u32> = node.puts.values().copied().collect();
            for slot in slots {
                let Some(object) = self.objects.get(slot).filter(|object| object.is_complete()) else {
                    unfinished = true;
                    continue;
                };
                if !object.on(number).is_some_and(|replica| replica.stays()) {
                    // one that leaves goes by itself, and one that arrives becomes one that stays
                    unfinished = true;
                    continue;
                }
                let alone = !object.stays_beside(number);
                let held = alone && (object.is_leased(now) || object.is_pinned(now));
                unfinished |= held || left == 0;
                if held || left == 0 {
                    continue;
                }
                left -= 1;
                if alone {
                    self.counters.evicted_objects += 1;
                    self.counters.evicted_bytes += self.drop_object(slot);
                } else {
                    self.let_leave(slot, number, now);
                }
            }
        }
        let pace = if left == 0 { Duration::ZERO } else { DRAIN_PACE };
        self.drain_look = unfinished.then_some(now + pace);
    }

    /// Sends nobody to a node's replica any more, which goes when the leases are over that were given before. Only where
    /// another one stays.
    pub(super) fn let_leave(&mut self, slot: u32, number: u32, now: Instant) {
        let Some(object) = self.objects.get_mut(slot) else {
            return;
        };
        if !object.on(number).is_some_and(|replica| replica.stays()) {
            return;
        }
        let until = object.lease_until.max(now);
        object.set_stance(number, Stance::Leaves(until));
        let (tenant, bytes) = (object.tenant, object.reserved());
        self.tenants.discharge(tenant, bytes);
        self.departures.insert((until, slot, number));
        if let Some(node) = self.node_mut(number) {
            node.leaving += 1;
        }
    }

    /// Where only replicas are left that leave, they stay after all: what was to take their place went with its node.
    pub(super) fn keep_one(&mut self, slot: u32) {
        let Some(object) = self.objects.get_mut(slot) else {
            return;
        };
        if object.replicas.iter().any(Replica::stays) {
            return;
        }
        let leaves = |replica: &&Replica| matches!(replica.stance, Stance::Leaves(_));
        let kept: Vec<u32> = object
            .replicas
            .iter()
            .filter(leaves)
            .map(|one| one.node)
            .collect();
        for number in &kept {
            object.set_stance(*number, Stance::Stays);
        }
        let (tenant, bytes) = (object.tenant, object.reserved());
        for number in kept {
            self.tenants.charge(tenant, bytes);
            if let Some(node) = self.node_mut(number) {
                node.leaving = node.leaving.saturating_sub(1);
            }
        }
    }

    /// Ends replicas whose last leases are over, where another one can be read.
    pub(super) fn clear_departed(&mut self, now: Instant) {
        let mut left = CLEARED_AT_ONCE;
        while left > 0
            && let Some(&(until, slot, number)) = self.departures.first()
            && until <= now
        {
            left -= 1;
            self.departures.remove(&(until, slot, number));
            let due = |object: &Object| {
                let replica = object.on(number)?;
                (replica.stance == Stance::Leaves(until)).then_some(replica)
            };
            if !self.prune(slot) {
                continue;
            }
            let Some(replica) = self.objects.get(slot).and_then(due) else {
                continue;
            };
            let readable = |other: &Replica| {
                let alive = |number| self.node(number).is_some_and(Node::is_reachable);
                other.node != number && other.stays() && alive(other.node)
            };
            let object = self.objects.get(slot);
            if object.is_some_and(|object| object.replicas.iter().any(readable)) {
                self.detach(slot, &[replica]);
            } else {
                let later = now + DRAIN_PACE;
                if let Some(object) = self.objects.get_mut(slot) {
                    object.set_stance(number, Stance::Leaves(later));
                }
                self.departures.insert((later, slot, number));
            }
        }
    }
}
