//! Copies of what lies on nodes that are being emptied. Each is a put of its own, with a place and a token, that the node
//! which is being emptied writes.
//!
//! Nobody reads a copy before its put has ended. Then the replica that it was made from leaves: nobody is sent there any
//! more, and it goes when the leases are over that were given while it was named. So there is a moment at which both are
//! there, and none at which neither is.

use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result};

use super::drains::DRAIN_PACE;
use super::node::Phase;
use super::object::{Replica, Stance};
use super::{MAX_PUT, State};
use crate::types::{Finished, Move, Moves, NodeId, Ticket};

/// Most copies in one answer.
const MOST_MOVES: usize = 64;
/// Bytes after which an answer is enough.
const ENOUGH_BYTES: u64 = 64 << 20;
/// Most copies that one node makes at once.
const MOST_MOVING: u64 = 256;
/// Most objects that one call looks at.
const MOST_LOOKED_AT: usize = 4096;
/// Objects on a node for each of which a pass takes as much longer as for no object.
const OBJECTS_PER_PACE: usize = 50_000;

impl State {
    /// What a node that is being emptied is to copy, the most recently used objects first. Nothing is evicted elsewhere
    /// for it: objects that fit nowhere below the watermark stay, and are looked at again with the next pass.
    ///
    /// Fails with `NotFound` for a node that must mount first.
    pub fn start_moves(
        &mut self,
        node: &NodeId,
        epoch: u64,
        avoid: &[NodeId],
        now: Instant,
    ) -> Result<Moves> {
        let number = self.by_id.get(node).copied().filter(|_| epoch == self.epoch);
        let number = number.ok_or_else(|| Error::new(ErrorKind::NotFound, "the node isn't mounted"))?;
        let mut moves = Vec::new();
        let is_recovering = self.is_recovering(now);
        let ready = self.node(number).is_some_and(|node| {
            node.phase == Phase::Ready && node.draining == Some(false) && node.moving < MOST_MOVING
        });
        // while nodes are missing, copies that there are already would be made once more
        if !ready || is_recovering {
            return Ok(Moves {
                moves,
                wait: DRAIN_PACE,
            });
        }
        self.begin_pass(number, now);
        let mut bytes = 0;
        for _ in 0..MOST_LOOKED_AT {
            if moves.len() == MOST_MOVES || bytes >= ENOUGH_BYTES {
                break;
            }
            let next = self.node_mut(number).and_then(|node| {
                let put = node.emptying.to_look_at.pop_front()?;
                Some(node.puts.get(&put).copied())
            });
            let Some(slot) = next else { break };
            let Some(slot) = slot.filter(|slot| self.is_to_move(*slot, number)) else {
                continue;
            };
            if let Some(one) = self.start_move(slot, number, avoid, now)? {
                bytes += one.length;
                moves.push(one);
            }
        }
        let wait = self.end_pass(number, now);
        Ok(Moves { moves, wait })
    }

    /// Makes a copy readable, and has the replica leave that it was made from. Doing so twice is fine.
    pub(super) fn end_move(
        &mut self,
        slot: u32,
        copy: Replica,
        finished: &Finished<'_>,
        now: Instant,
    ) -> Result<()> {
        let Stance::Arrives { from, until } = copy.stance else {
            return Ok(());
        };
        if finished.master_epoch != self.epoch {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the copy's node obeyed another master when it took it",
            ));
        }
        let holder = self.node(copy.node).map(|node| node.id);
        let held = holder.is_some_and(|id| finished.nodes.contains(&id));
        let Some(object) = self.objects.get_mut(slot) else {
            return Err(Error::internal("a copy without an object"));
        };
        if !held || finished.checksum != object.checksum {
            let kind = if held {
                ErrorKind::Corrupt
            } else {
                ErrorKind::Fenced
            };
            self.give_up_move(slot, copy);
            return Err(Error::new(kind, "the copy isn't the object").with("put", finished.put));
        }
        object.set_stance(copy.node, Stance::Stays);
        let (tenant, reserved, length) = (object.tenant, object.reserved(), object.length);
        self.arrivals.remove(&(until, copy.put, copy.node));
        self.tenants.charge(tenant, reserved);
        if let Some(node) = self.node_mut(from) {
            node.moving = node.moving.saturating_sub(1);
            node.emptying.moved_objects += 1;
            node.emptying.moved_bytes += length;
        }
        self.counters.moved_objects += 1;
        self.counters.moved_bytes += length;
        self.let_leave(slot, from, now);
        Ok(())
    }

    /// Gives up a copy that is being written.
    pub(super) fn give_up_move(&mut self, slot: u32, copy: Replica) {
        self.counters.moves_given_up += 1;
        self.detach(slot, &[copy]);
    }

    /// Gives up what a node is copying.
    pub(super) fn call_moves_off(&mut self, number: u32) {
        let copies: Vec<(u32, Replica)> = self
            .arrivals
            .iter()
            .filter_map(|(_, put, node)| self.copy_under_way(*put, *node))
            .filter(|(_, copy)| matches!(copy.stance, Stance::Arrives { from, .. } if from == number))
            .collect();
        for (slot, copy) in copies {
            self.give_up_move(slot, copy);
        }
    }

    /// Gives up copies that take too long.
    pub(super) fn discard_moves(&mut self, now: Instant) {
        while let Some(&(until, put, node)) = self.arrivals.first()
            && until <= now
        {
            self.arrivals.remove(&(until, put, node));
            if let Some((slot, copy)) = self.copy_under_way(put, node) {
                self.give_up_move(slot, copy);
            }
        }
    }

    /// A replica is no longer what it was. Returns whether it counted against its tenant's quota.
    pub(super) fn end_stance(&mut self, replica: Replica) -> bool {
        match replica.stance {
            Stance::Stays => true,
            Stance::Arrives { from, until } => {
                self.arrivals.remove(&(until, replica.put, replica.node));
                if let Some(node) = self.node_mut(from) {
                    node.moving = node.moving.saturating_sub(1);
                }
                false
            }
            Stance::Leaves(_) => {
                if let Some(node) = self.node_mut(replica.node) {
                    node.leaving = node.leaving.saturating_sub(1);
                }
                false
            }
        }
    }

    fn copy_under_way(&self, put: u64, node: u32) -> Option<(u32, Replica)> {
        let slot = *self.node(node)?.puts.get(&put)?;
        let copy = self.objects.get(slot)?.by_put(put)?;
        copy.arrives().then_some((slot, copy))
    }

    fn is_to_move(&self, slot: u32, number: u32) -> bool {
        self.objects.get(slot).is_some_and(|object| {
            object.is_complete()
                && object.on(number).is_some_and(|replica| replica.stays())
                && !object.is_moving_from(number)
        })
    }

    fn start_move(&mut self, slot: u32, number: u32, avoid: &[NodeId], now: Instant) -> Result<Option<Move>> {
        if !self.prune(slot) {
            return Ok(None);
        }
        let Some(object) = self.objects.get(slot) else {
            return Ok(None);
        };
        let (reserved, length) = (object.reserved(), object.length);
        let Some((target, offset)) = self.place_copy(slot, reserved, avoid) else {
            self.counters.moves_without_room += 1;
            if self.stays_on_used_node(slot, number) {
                // fewer copies than were wished for, as with a put for which fewer nodes have room
                self.let_leave(slot, number, now);
            } else if let Some(node) = self.node_mut(number) {
                node.emptying.unplaced.0 += 1;
                node.emptying.unplaced.1 += length;
            }
            return Ok(None);
        };
        let put = self.next_put;
        let copy = Replica {
            stance: Stance::Arrives {
                from: number,
                until: now + self.settings.put_discard,
            },
            ..Replica::new(target, offset, put)
        };
        if put >= MAX_PUT {
            self.unplace(reserved, &[copy]);
            return Err(Error::internal("the numbers of puts are used up"));
        }
        self.next_put += 1;
        self.used_bytes += reserved;
        self.arrivals
            .insert((now + self.settings.put_discard, put, target));
        if let Some(node) = self.node_mut(number) {
            node.moving += 1;
        }
        self.attach(slot, copy);
        self.counters.moves_started += 1;
        let missing = || Error::internal("a copy without an object");
        let object = self.objects.get(slot).ok_or_else(missing)?;
        Ok(Some(Move {
            key: object.key.as_ref().into(),
            from_put: object.on(number).map_or(0, |replica| replica.put),
            length,
            checksum: object.checksum,
            ticket: Ticket {
                put,
                locations: self.place_to_write(object, &copy).into_iter().collect(),
            },
        }))
    }

    /// Whether a replica stays on another node that isn't being emptied itself.
    fn stays_on_used_node(&self, slot: u32, number: u32) -> bool {
        let used = |replica: &Replica| {
            let node = self.node(replica.node);
            replica.node != number && replica.stays() && node.is_some_and(super::node::Node::takes)
        };
        let object = self.objects.get(slot);
        object.is_some_and(|object| object.replicas.iter().any(used))
    }

    /// Takes a range for a copy, on the node with the most room that has no replica of the object.
    fn place_copy(&mut self, slot: u32, bytes: u64, avoid: &[NodeId]) -> Option<(u32, u64)> {
        let taken: Vec<u32> = {
            let replicas = self.objects.get(slot)?.replicas.iter();
            replicas.map(|replica| replica.node).collect()
        };
        let ratio = self.settings.eviction_high_watermark_ratio;
        let by_room = self.by_room.range((bytes, 0)..).rev();
        let candidates: Vec<u32> = by_room
            .map(|(_, number)| *number)
            .filter(|number| !taken.contains(number))
            .filter(|number| {
                self.node(*number).is_some_and(|node| {
                    // what goes above the watermark would only have others evicted
                    let after = node.capacity - node.free.free_bytes() + bytes;
                    let fits = after as f64 <= ratio * node.capacity as f64;
                    fits && node.takes() && !avoid.contains(&node.id)
                })
            })
            .collect();
        candidates.into_iter().find_map(|number| {
            let offset = self.with_room(number, |node| node.free.allocate(bytes))??;
            Some((number, offset))
        })
    }

    /// Lines up what a node holds, when it's time to.
    fn begin_pass(&mut self, number: u32, now: Instant) {
        let Some(node) = self.node(number) else { return };
        let emptying = &node.emptying;
        if !emptying.to_look_at.is_empty() || emptying.next_pass.is_some_and(|at| at > now) {
            return;
        }
        let mut puts: Vec<(u64, u64)> = node
            .puts
            .iter()
            .filter(|(_, slot)| self.is_to_move(**slot, number))
            .filter_map(|(put, slot)| Some((self.objects.get(*slot)?.stamp, *put)))
            .collect();
        puts.sort_unstable_by(|one, other| other.cmp(one));
        let pace = DRAIN_PACE * (1 + puts.len() / OBJECTS_PER_PACE) as u32;
        if let Some(node) = self.node_mut(number) {
            node.emptying.to_look_at = puts.into_iter().map(|(_, put)| put).collect();
            node.emptying.unplaced = (0, 0);
            node.emptying.is_under_way = true;
            node.emptying.next_pass = Some(now + pace);
        }
    }

    /// How long a node waits before it asks again.
    fn end_pass(&mut self, number: u32, now: Instant) -> Duration {
        let Some(node) = self.node_mut(number) else {
            return DRAIN_PACE;
        };
        if !node.emptying.to_look_at.is_empty() {
            return Duration::ZERO;
        }
        if node.emptying.is_under_way {
            node.emptying.is_under_way = false;
            node.emptying.unplaced_before = node.emptying.unplaced;
            node.emptying.passes += 1;
        }
        let next = node.emptying.next_pass.unwrap_or(now);
        next.saturating_duration_since(now)
    }
}
