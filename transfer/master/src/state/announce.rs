//! Announcements: a node says what it holds. Nodes are the truth; where two contradict each other, the later put wins. But
//! what the master had ended on a node that it knew is over, though the node hasn't heard of it.

use std::collections::HashSet;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::node::Phase;
use super::object::{Object, Queue, Replica, Stage};
use super::ranges::rounded;
use super::{MAX_PUT, State};
use crate::key::split_key;
use crate::types::{Holding, HoldingState, NodeId};

impl State {
    /// Takes a part of what a node says it holds, and with the last one places new objects there. Saying a thing twice is
    /// fine. Complete objects are leased, because an earlier master may have leased them.
    ///
    /// Fails with `NotFound` for a node that must mount first, with `Fenced` for an announcement to another master, and
    /// with `InvalidInput` for one that can't be true.
    pub fn announce(
        &mut self,
        node: &NodeId,
        epoch: u64,
        holdings: &[Holding],
        last: bool,
        now: Instant,
    ) -> Result<()> {
        if epoch != self.epoch {
            return Err(
                Error::new(ErrorKind::Fenced, "an announcement to another master").with("epoch", epoch)
            );
        }
        let number = self.by_id.get(node).copied();
        let number = number.ok_or_else(|| Error::new(ErrorKind::NotFound, "the node isn't mounted"))?;
        let ttl = self.settings.client_ttl;
        let Some(known) = self.node_mut(number) else {
            return Err(Error::internal("a node without a place"));
        };
        known.last_seen = now;
        known.deadline = now + ttl;
        known.suspect = false;
        if known.phase == Phase::Ready {
            // the answer to the last part was lost
            return Ok(());
        }
        for holding in holdings {
            self.take_holding(number, holding, now)?;
        }
        if last && let Some(node) = self.node_mut(number) {
            node.phase = Phase::Ready;
            node.ended = HashSet::new();
            let (room, drains) = (node.free.free_bytes(), node.draining.is_some());
            self.by_room.insert((room, number));
            self.effects.room = true;
            if drains {
                // what came back with the announcement is still to go
                self.drain_look = Some(now);
            }
        }
        Ok(())
    }

    fn take_holding(&mut self, number: u32, holding: &Holding, now: Instant) -> Result<()> {
        let wrong = |message: &str| {
            Err(Error::invalid(message)
                .with("put", holding.put)
                .with("offset", holding.offset)
                .with("length", holding.length))
        };
        let (tenant, _) = split_key(&holding.key)?;
        if holding.put == 0 || holding.put >= MAX_PUT || holding.length == 0 {
            return wrong("an announced range that no master gave out");
        }
        let replica = Replica::new(number, holding.offset, holding.put);
        let Some(node) = self.node(number) else {
            return Err(Error::internal("a node without a place"));
        };
        if let Some(known) = node.quarantine.get(&holding.put) {
            let same = known.offset == holding.offset && known.bytes == rounded(holding.length);
            return if same {
                Ok(())
            } else {
                wrong("a put is announced twice")
            };
        }
        if let Some(slot) = node.puts.get(&holding.put).copied() {
            let object = self.objects.get(slot);
            let same = object.is_some_and(|object| {
                object
                    .on(number)
                    .is_some_and(|known| (known.put, known.offset) == (holding.put, holding.offset))
                    && object.length == holding.length
                    && *object.key == *holding.key
            });
            return if same {
                Ok(())
            } else {
                wrong("a put is announced twice")
            };
        }
        let over = holding.state == HoldingState::Releasing || node.ended.contains(&holding.put);
        let bytes = rounded(holding.length);
        if !self
            .with_room(number, |node| node.free.reserve(holding.offset, bytes))
            .unwrap_or(false)
        {
            return wrong("an announced range is outside the segment or overlaps another one");
        }
        self.next_put = self.next_put.max(holding.put + 1);
        let tenant = self.tenants.number(tenant).or_else(|_| self.tenants.number(""))?;
        self.tenants.charge(tenant, bytes);
        self.used_bytes += bytes;
        self.counters.announced_replicas += 1;
        if over || !self.admit(replica, tenant, holding, now) {
            self.counters.announced_conflicts += u64::from(!over);
            self.end_replica(tenant, holding.length, replica);
        }
        Ok(())
    }

    /// Adds a replica to the object that it belongs to. Returns whether it's to stay.
    fn admit(&mut self, replica: Replica, tenant: u32, holding: &Holding, now: Instant) -> bool {
        let sealed = holding.state == HoldingState::Sealed;
        let Some(slot) = self.look_up(&holding.key) else {
            self.admit_new(replica, tenant, holding, now);
            return true;
        };
        let Some(object) = self.objects.get(slot) else {
            return false;
        };
        // a copy has a put of its own, and the same bytes
        let copy = sealed
            && object.is_complete()
            && (object.length, object.checksum) == (holding.length, holding.checksum);
        if copy || object.put == holding.put || object.by_put(holding.put).is_some() {
            if object.on(replica.node).is_some() {
                return false;
            }
            let matches = object.length == holding.length;
            let complete = object.is_complete();
            let same_bytes = object.checksum == holding.checksum;
            return match (sealed, complete) {
                _ if !matches => false,
                (true, true) => {
                    if same_bytes {
                        self.attach(slot, replica);
                    }
                    same_bytes
                }
                (false, false) => {
                    self.attach(slot, replica);
                    true
                }
                // where one node holds the descriptor, those that don't have failed
                (false, true) => false,
                (true, false) => {
                    let open = object.replicas.clone();
                    self.attach(slot, replica);
                    self.detach(slot, &open);
                    self.complete(slot, holding.checksum, now);
                    self.lease(slot, now);
                    true
                }
            };
        }
        let newer = holding.put > object.put && (sealed || !object.is_complete());
        if newer || (sealed && !object.is_complete()) {
            self.drop_object(slot);
            self.admit_new(replica, tenant, holding, now);
            return true;
        }
        false
    }

    fn admit_new(&mut self, replica: Replica, tenant: u32, holding: &Holding, now: Instant) {
        let until = now + self.settings.put_discard;
        let slot = self.objects.insert(Object {
            key: holding.key.as_ref().into(),
            tenant,
            put: holding.put,
            length: holding.length,
            checksum: holding.checksum,
            replicas: Vec::new(),
            stage: Stage::Pending { attempt: None, until },
            stamp: 0,
            lease_until: now,
            pin_until: None,
            queue: Queue::None,
        });
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.objects += 1;
        }
        self.discards.insert((until, slot));
        self.attach(slot, replica);
        if holding.state == HoldingState::Sealed {
            self.complete(slot, holding.checksum, now);
            self.lease(slot, now);
        }
    }
}
