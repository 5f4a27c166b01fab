//! Puts: begun with a place and a token, ended when the nodes hold the object, revoked, or discarded.

use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::object::{Object, Queue, Replica, Stage};
use super::ranges::rounded;
use super::{MAX_PUT, Phase, State};
use crate::key::split_key;
use crate::token::TokenRange;
use crate::types::{Finished, Location, NewObject, NodeId, PutOptions, Ticket};

impl State {
    /// Begins a put. The same attempt with the same key is the same put again.
    ///
    /// Fails with `InvalidInput`, `AlreadyExists` for an object that is there or being put, `TooLarge`, `QuotaExceeded`,
    /// `NoSpace` (room is being made: later it may succeed), and `Unavailable` where no node lends memory.
    pub fn start_put(
        &mut self,
        new: &NewObject<'_>,
        attempt: u64,
        options: &PutOptions,
        now: Instant,
    ) -> Result<Ticket> {
        let (tenant_name, _) = split_key(new.key)?;
        if new.length == 0 {
            return Err(Error::invalid("an object of no bytes"));
        }
        if let Some(slot) = self.look_up(new.key) {
            return self.started_already(slot, attempt, new.length);
        }
        let bytes = rounded(new.length);
        self.check_size(new.length)?;
        if self.objects.len() >= self.settings.max_objects {
            self.evict(self.settings.max_objects as u64 / 100 + 1, None, now);
            if self.objects.len() >= self.settings.max_objects {
                return Err(Error::new(
                    ErrorKind::NoSpace,
                    "there are as many objects as the master keeps",
                ));
            }
        }
        let tenant = self.tenants.number(tenant_name)?;
        let allowed = self.within_quota(tenant, bytes, options, now)?;
        self.keep_below_watermark(bytes, now);
        let mut options = options.clone();
        options.replicas = options.replicas.clamp(1, allowed);
        let replicas = self.place(bytes, &options);
        if replicas.is_empty() {
            self.make_room(bytes, now);
            self.counters.puts_without_room += 1;
            return Err(Error::new(ErrorKind::NoSpace, "no node has room now"));
        }
        let put = self.next_put;
        if put >= MAX_PUT {
            self.unplace(bytes, &replicas);
            return Err(Error::internal("the numbers of puts are used up"));
        }
        self.next_put += 1;
        let until = now + self.settings.put_discard;
        let pin_until = options.soft_pin.then_some(now + self.settings.soft_pin);
        let slot = self.objects.insert(Object {
            key: new.key.into(),
            tenant,
            put,
            length: new.length,
            checksum: 0,
            replicas: Vec::new(),
            stage: Stage::Pending {
                attempt: Some(attempt),
                until,
            },
            stamp: 0,
            lease_until: now,
            pin_until,
            queue: Queue::None,
        });
        self.discards.insert((until, slot));
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.objects += 1;
        }
        for replica in replicas {
            self.tenants.charge(tenant, bytes);
            self.used_bytes += bytes;
            self.attach(slot, Replica { put, ..replica });
        }
        self.counters.puts_started += 1;
        self.ticket(slot)
    }

    /// Makes a put visible whose nodes hold it. Doing so twice is fine.
    ///
    /// Fails with `Fenced` when the put is over, and with `Unavailable` when it can't be told yet: the nodes obeyed an
    /// earlier master when they took it, or haven't announced it.
    pub fn end_put(&mut self, finished: &Finished<'_>, now: Instant) -> Result<()> {
        let later = |message: &str| Err(Error::new(ErrorKind::Unavailable, message));
        let over = || Err(Error::new(ErrorKind::Fenced, "the put is over").with("put", finished.put));
        let slot = self.look_up(finished.key);
        if let Some(slot) = slot
            && let Some(object) = self.objects.get(slot).filter(|object| object.is_complete())
            && let Some(copy) = object.by_put(finished.put)
        {
            return self.end_move(slot, copy, finished, now);
        }
        let object = slot.and_then(|slot| Some((slot, self.objects.get(slot)?)));
        let Some((slot, object)) = object.filter(|(_, object)| object.put == finished.put) else {
            return if finished.nodes.iter().any(|node| self.may_announce(node, now)) {
                later("a node that holds the object hasn't announced it yet")
            } else {
                over()
            };
        };
        if object.is_complete() {
            return Ok(());
        }
        if finished.master_epoch != self.epoch {
            return later("the object's nodes obeyed another master when they took it");
        }
        let holds = |replica: &Replica| {
            let node = self.node(replica.node);
            node.is_some_and(|node| finished.nodes.contains(&node.id))
        };
        let (kept, failed): (Vec<_>, Vec<_>) = object.replicas.iter().partition(|replica| holds(replica));
        if kept.is_empty() {
            if finished.nodes.iter().any(|node| self.may_announce(node, now)) {
                return later("a node that holds the object hasn't announced it yet");
            }
            self.drop_object(slot);
            return over();
        }
        self.detach(slot, &failed);
        self.complete(slot, finished.checksum, now);
        self.counters.puts_completed += 1;
        Ok(())
    }

    /// Gives a put up. One that is over already is fine; one that is complete stays.
    pub fn revoke_put(&mut self, key: &[u8], put: u64) {
        let Some(slot) = self.look_up(key) else { return };
        let copy = self.objects.get(slot).and_then(|object| object.by_put(put));
        if let Some(copy) = copy.filter(Replica::arrives) {
            self.give_up_move(slot, copy);
            return;
        }
        let revocable = |object: &Object| object.put == put && !object.is_complete();
        if self.objects.get(slot).is_some_and(revocable) {
            self.counters.puts_revoked += 1;
            self.drop_object(slot);
        }
    }

    /// Gives puts up that take too long.
    pub(super) fn discard_puts(&mut self, now: Instant) {
        while let Some(&(until, slot)) = self.discards.first()
            && until <= now
        {
            self.discards.remove(&(until, slot));
            self.counters.puts_discarded += 1;
            self.drop_object(slot);
        }
    }

    /// Notes a replica of an object.
    pub(super) fn attach(&mut self, slot: u32, replica: Replica) {
        if let Some(node) = self.node_mut(replica.node) {
            node.puts.insert(replica.put, slot);
        }
        if let Some(object) = self.objects.get_mut(slot) {
            object.replicas.push(replica);
        }
    }

    /// Ends some replicas of an object.
    pub(super) fn detach(&mut self, slot: u32, replicas: &[Replica]) {
        let Some(object) = self.objects.get_mut(slot) else {
            return;
        };
        let ends = |replica: &Replica| {
            let same = |one: &Replica| (one.node, one.put) == (replica.node, replica.put);
            replicas.iter().any(same)
        };
        let (ending, kept): (Vec<_>, Vec<_>) = object.replicas.iter().copied().partition(ends);
        object.replicas = kept;
        let (tenant, length) = (object.tenant, object.length);
        for replica in ending {
            self.end_replica(tenant, length, replica);
        }
    }

    /// Makes an object visible.
    pub(super) fn complete(&mut self, slot: u32, checksum: u64, now: Instant) {
        let stamp = self.recency.next_stamp();
        if let Some(object) = self.objects.get_mut(slot) {
            if let Stage::Pending { until, .. } = object.stage {
                self.discards.remove(&(until, slot));
            }
            object.checksum = checksum;
            object.stamp = stamp;
        }
        self.objects.set_complete(slot);
        self.enqueue(slot, now);
    }

    /// Whether a node may yet announce something that this master doesn't know.
    pub(super) fn may_announce(&self, node: &NodeId, now: Instant) -> bool {
        match self.by_id.get(node).and_then(|number| self.node(*number)) {
            Some(node) => node.phase == Phase::Announcing,
            None => self.is_recovering(now),
        }
    }

    fn started_already(&self, slot: u32, attempt: u64, length: u64) -> Result<Ticket> {
        let exists = |message: &str| Err(Error::new(ErrorKind::AlreadyExists, message));
        match self.objects.get(slot) {
            Some(object) if object.is_complete() => exists("the object is there already"),
            Some(object) => match object.stage {
                Stage::Pending {
                    attempt: Some(own), ..
                } if own == attempt && object.length == length => self.ticket(slot),
                _ => exists("the object is being put already"),
            },
            None => Err(Error::internal("an object without a place")),
        }
    }

    fn check_size(&self, length: u64) -> Result<()> {
        let all = || {
            self.nodes
                .iter()
                .flatten()
                .filter(|node| node.phase != Phase::Gone)
        };
        if all().any(|node| node.capacity >= length) {
            return Ok(());
        }
        if all().next().is_none() {
            return Err(Error::new(ErrorKind::Unavailable, "no node lends memory"));
        }
        let message = format!("an object of {length} bytes fits on no node");
        Err(Error::new(ErrorKind::TooLarge, message))
    }

    fn ticket(&self, slot: u32) -> Result<Ticket> {
        let missing = || Error::internal("a put without a place");
        let object = self.objects.get(slot).ok_or_else(missing)?;
        let places = object.replicas.iter();
        Ok(Ticket {
            put: object.put,
            locations: places
                .filter_map(|replica| self.place_to_write(object, replica))
                .collect(),
        })
    }

    /// Where a replica is to be written, with the token for that.
    pub(super) fn place_to_write(&self, object: &Object, replica: &Replica) -> Option<Location> {
        let node = self.node(replica.node)?;
        let range = TokenRange {
            node: &node.id,
            put: replica.put,
            offset: replica.offset,
            length: object.length,
            key: &object.key,
        };
        Some(Location {
            token: node.token_key.sign(self.epoch, &range).into(),
            ..node.location(replica)
        })
    }
}
