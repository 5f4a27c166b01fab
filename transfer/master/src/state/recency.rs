//! Which objects may go, and in which order: the least recently used first, and never one that is leased.
//!
//! A complete object is in one of three queues. A leased one waits in `leased` by the moment at which it's looked at
//! again; a lease that is renewed meanwhile moves nothing, and the object just waits on when its moment comes. The others
//! are in their tenant's queues, by stamp.

use std::collections::BTreeSet;
use std::time::Instant;

use super::State;
use super::object::Queue;

#[derive(Debug, Default)]
pub(super) struct Recency {
    leased: BTreeSet<(Instant, u32)>,
    last_stamp: u64,
}

impl Recency {
    pub fn next_stamp(&mut self) -> u64 {
        self.last_stamp += 1;
        self.last_stamp
    }
}

impl State {
    /// Notes that a complete object is used: it's the most recently used now, and a soft pin begins anew.
    pub(super) fn touch(&mut self, slot: u32, now: Instant) {
        let stamp = self.recency.next_stamp();
        let soft_pin = self.settings.soft_pin;
        let leave = match self.objects.get(slot) {
            Some(object) => matches!(object.queue, Queue::Evictable | Queue::Pinned),
            None => return,
        };
        // its place in a queue is found by its old stamp
        if leave {
            self.unqueue(slot);
        }
        if let Some(object) = self.objects.get_mut(slot) {
            object.stamp = stamp;
            if let Some(until) = &mut object.pin_until {
                *until = now + soft_pin;
            }
        }
        if leave {
            self.enqueue(slot, now);
        }
    }

    /// Leases a complete object, and notes its use.
    pub(super) fn lease(&mut self, slot: u32, now: Instant) {
        let until = now + self.settings.lease;
        if let Some(object) = self.objects.get_mut(slot) {
            object.lease_until = object.lease_until.max(until);
        }
        self.touch(slot, now);
    }

    /// Puts a complete object where it belongs.
    pub(super) fn enqueue(&mut self, slot: u32, now: Instant) {
        let Some(object) = self.objects.get_mut(slot) else {
            return;
        };
        object.queue = if object.is_leased(now) {
            Queue::Leased(object.lease_until)
        } else if object.is_pinned(now) {
            Queue::Pinned
        } else {
            Queue::Evictable
        };
        let (stamp, queue, pin) = (object.stamp, object.queue, object.pin_until);
        let Some(tenant) = self.tenants.get_mut(object.tenant) else {
            return;
        };
        match queue {
            Queue::None => {}
            Queue::Leased(until) => {
                self.recency.leased.insert((until, slot));
            }
            Queue::Evictable => {
                tenant.evictable.insert(stamp, slot);
            }
            Queue::Pinned => {
                tenant.pinned.insert(stamp, slot);
                if let Some(until) = pin {
                    self.pins.insert((until, slot));
                }
            }
        }
    }

    /// Takes an object out of its queue.
    pub(super) fn unqueue(&mut self, slot: u32) {
        let Some(object) = self.objects.get_mut(slot) else {
            return;
        };
        let queue = std::mem::replace(&mut object.queue, Queue::None);
        let (stamp, pin) = (object.stamp, object.pin_until);
        let Some(tenant) = self.tenants.get_mut(object.tenant) else {
            return;
        };
        match queue {
            Queue::None => {}
            Queue::Leased(until) => {
                self.recency.leased.remove(&(until, slot));
            }
            Queue::Evictable => {
                tenant.evictable.remove(&stamp);
            }
            Queue::Pinned => {
                tenant.pinned.remove(&stamp);
                if let Some(until) = pin {
                    self.pins.remove(&(until, slot));
                }
            }
        }
    }

    /// Looks again at objects whose leases or soft pins were to be over by now.
    pub(super) fn settle(&mut self, now: Instant) {
        while let Some(&(at, slot)) = self.recency.leased.first()
            && at <= now
        {
            self.unqueue(slot);
            self.recency.leased.remove(&(at, slot));
            self.enqueue(slot, now);
        }
        while let Some(&(at, slot)) = self.pins.first()
            && at <= now
        {
            self.unqueue(slot);
            self.pins.remove(&(at, slot));
            self.enqueue(slot, now);
        }
    }
}
