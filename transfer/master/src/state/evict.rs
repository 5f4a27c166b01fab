//! Making room: by bytes, the least recently used first, and soft-pinned objects only when nothing else is left.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use super::State;
use super::node::Node;
use super::object::Replica;
use super::tenants::Tenant;
use crate::types::PutOptions;

/// Most objects that one call evicts, so that no call takes long.
const MAX_EVICTED: usize = 16_384;

impl State {
    /// Evicts objects of at least that many bytes, of one tenant or of all. Returns the bytes, which are less where
    /// nothing more may go. Where it's not for a tenant's quota, objects are passed over whose bytes nobody could use: they
    /// lie on nodes that are being emptied.
    pub(super) fn evict(&mut self, wanted: u64, tenant: Option<u32>, now: Instant) -> u64 {
        self.settle(now);
        let mut evicted = 0;
        let mut left = MAX_EVICTED;
        let choosy = tenant.is_none() && !self.emptied.is_empty();
        for pinned in [false, true] {
            if pinned && !self.settings.allow_evict_soft_pinned {
                break;
            }
            // the queues of several tenants, merged by stamp
            let numbers = self.tenants.iter().map(|(number, _)| number);
            let numbers: Vec<u32> = numbers
                .filter(|number| tenant.is_none_or(|one| one == *number))
                .collect();
            let mut heads: BinaryHeap<Reverse<(u64, u32, u32)>> = numbers
                .into_iter()
                .filter_map(|number| self.coldest(number, pinned, 0))
                .map(Reverse)
                .collect();
            while evicted < wanted
                && left > 0
                && let Some(Reverse((stamp, number, slot))) = heads.pop()
            {
                if choosy && !self.frees_room(slot) {
                    left -= 1;
                    heads.extend(self.coldest(number, pinned, stamp + 1).map(Reverse));
                    continue;
                }
                let bytes = self.drop_object(slot);
                evicted += bytes;
                left -= 1;
                self.counters.evicted_objects += 1;
                self.counters.evicted_bytes += bytes;
                self.counters.evicted_pinned_objects += u64::from(pinned);
                heads.extend(self.coldest(number, pinned, stamp + 1).map(Reverse));
            }
        }
        evicted
    }

    /// Evicts down to below the watermark if another `bytes` go above it.
    pub(super) fn keep_below_watermark(&mut self, bytes: u64, now: Instant) {
        let (used, capacity) = self.usable();
        let capacity = capacity as f64;
        let high = (self.settings.eviction_high_watermark_ratio * capacity) as u64;
        let after = used.saturating_add(bytes);
        if after > high {
            let low = high.saturating_sub((self.settings.eviction_ratio * capacity) as u64);
            self.evict(after - low, None, now);
        }
    }

    /// Sees to it that ranges of at least `bytes` are on their way back, and of a part of all lent bytes.
    pub(super) fn make_room(&mut self, bytes: u64, now: Instant) {
        // what no node would take anyway is no reason to lose anything
        let helps = |node: &Node| node.takes() && node.capacity >= bytes;
        if !self.nodes.iter().flatten().any(helps) {
            return;
        }
        let part = (self.settings.eviction_ratio * self.usable().1 as f64) as u64;
        let wanted = bytes.max(part);
        // what is on its way back already counts, or every attempt that waits for it would evict as much again
        if self.quarantined_bytes < wanted {
            self.evict(wanted - self.quarantined_bytes, None, now);
        }
    }

    /// How many replicas of `bytes` a tenant may put, at least one. Evicts of its own objects if need be.
    ///
    /// Fails with `TooLarge` for what its quota can never hold, and with `QuotaExceeded`.
    pub(super) fn within_quota(
        &mut self,
        tenant: u32,
        bytes: u64,
        options: &PutOptions,
        now: Instant,
    ) -> Result<u32> {
        let wanted = options.replicas.clamp(1, super::place::MAX_REPLICAS);
        let usage = |one: &Tenant| Some((one.quota?, one.used_bytes, one.quarantined_bytes));
        let Some((quota, used, waiting)) = self.tenants.get(tenant).and_then(usage) else {
            return Ok(wanted);
        };
        if bytes > quota {
            let message = format!("{bytes} bytes don't fit into the tenant's quota of {quota}");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let fitting = (quota.saturating_sub(used) / bytes).min(u64::from(wanted)) as u32;
        if fitting == wanted {
            return Ok(wanted);
        }
        let need = bytes.saturating_mul(u64::from(wanted)).min(quota);
        let live = used.saturating_sub(waiting);
        let low =
            (quota - need).min(quota - ((self.settings.eviction_ratio * quota as f64) as u64).min(quota));
        if live > low {
            self.evict(live - low, Some(tenant), now);
        }
        if fitting > 0 {
            return Ok(fitting);
        }
        self.counters.puts_over_quota += 1;
        let message = format!("the tenant uses {used} of its {quota} bytes");
        Err(Error::new(ErrorKind::QuotaExceeded, message))
    }

    /// Bytes in use and lent, without those of nodes that are being emptied: nothing can be put there.
    fn usable(&self) -> (u64, u64) {
        let mut levels = (self.used_bytes, self.capacity_bytes);
        for node in self.emptied.iter().filter_map(|number| self.node(*number)) {
            levels.0 -= node.used_bytes();
            levels.1 -= node.capacity;
        }
        levels
    }

    /// Whether something of an object lies where something else can be put.
    fn frees_room(&self, slot: u32) -> bool {
        let object = self.objects.get(slot);
        let usable = |replica: &Replica| !self.emptied.contains(&replica.node);
        object.is_some_and(|object| object.replicas.iter().any(usable))
    }

    /// The object of a tenant that goes first, of those with that stamp or a later one: its stamp, the tenant, its number.
    fn coldest(&self, tenant: u32, pinned: bool, from: u64) -> Option<(u64, u32, u32)> {
        let one = self.tenants.get(tenant)?;
        let queue = if pinned { &one.pinned } else { &one.evictable };
        queue
            .range(from..)
            .next()
            .map(|(stamp, slot)| (*stamp, tenant, *slot))
    }
}
