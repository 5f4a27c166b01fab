//! Making room: evictions for a tenant's quota and for a hole that is large enough.

use std::sync::Arc;

use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::quota::QuotaLedger;
use kvstored_core::tier::NamespaceInfo;

use super::{SlotState, State};

impl State {
    /// What tenants and namespaces take, if there are quotas.
    pub(crate) fn quotas(&self) -> Option<&QuotaLedger> {
        self.quotas.as_deref()
    }

    /// Charges a tenant's quota, evicting the tenant's own blocks where it's exhausted.
    pub(super) fn charge(&mut self, namespace: &Arc<NamespaceInfo>, length: usize) -> Result<bool> {
        let Some(quotas) = self.quotas.clone() else {
            return Ok(false);
        };
        loop {
            let charged = quotas.reserve(&namespace.identity.tenant, &namespace.namespace, length as u64);
            let Err(error) = charged else { return Ok(true) };
            let slots = &self.slots;
            let same = |number: u32| {
                slots.get(number as usize).is_some_and(|slot| {
                    slot.pins == 0
                        && slot
                            .owner
                            .as_ref()
                            .is_some_and(|(owner, _)| owner.identity.tenant == namespace.identity.tenant)
                })
            };
            let Some(victim) = self.policy.evict(&mut { same }) else {
                self.counts.refused_writes += 1;
                return Err(error);
            };
            self.evicted(victim);
        }
    }

    pub(super) fn discharge(&self, namespace: &NamespaceInfo, length: usize) {
        if let Some(quotas) = &self.quotas {
            quotas.release(&namespace.identity.tenant, &namespace.namespace, length as u64);
        }
    }

    /// Why no slot was cut where nothing can be evicted.
    pub(super) fn no_room(&mut self) -> Error {
        if self.used_bytes() == 0 {
            let why = format!(
                "the {}'s capacity doesn't hold a block and its tables",
                self.place
            );
            return Error::new(ErrorKind::TooLarge, why);
        }
        self.starved = true;
        Error::new(
            ErrorKind::Busy,
            format!("every block of the {} is in use", self.place),
        )
    }

    /// Evicts until a hole of that length is there, or nothing more can go.
    pub(super) fn make_room(&mut self, length: usize) -> bool {
        loop {
            let slots = &self.slots;
            let unpinned = |number: u32| slots.get(number as usize).is_some_and(|slot| slot.pins == 0);
            let Some(victim) = self.policy.evict(&mut { unpinned }) else {
                return false;
            };
            let Some(mut hole) = self.evicted(victim) else {
                continue;
            };
            // blocks of several sizes: widen the hole over evictable neighbours
            while hole.length < length {
                let neighbours = [self.extents.slot_after(hole), self.extents.slot_before(hole)];
                let next = neighbours.into_iter().flatten().find(|number| {
                    self.slots
                        .get(*number as usize)
                        .is_some_and(|slot| slot.pins == 0 && slot.state == SlotState::Visible)
                });
                let Some(next) = next else { break };
                self.policy.remove(next);
                match self.evicted(next) {
                    Some(wider) => hole = wider,
                    None => break,
                }
            }
            if hole.length >= length {
                return true;
            }
        }
    }
}
