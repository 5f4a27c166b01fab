//! How slots are given up: by their users, by name, and on their way in.

use kvstored_core::block::{BlockHash, BlockKey, Namespace};

use super::{SlotState, State};

impl State {
    /// Makes a slot invisible; it's freed with its last pin.
    pub(crate) fn discard(&mut self, number: u32) {
        if self
            .slots
            .get(number as usize)
            .is_none_or(|slot| slot.state == SlotState::Free)
        {
            return;
        }
        self.unlist(number);
        if self.slots.get(number as usize).is_some_and(|slot| slot.pins == 0) {
            self.free(number);
        }
    }

    /// Drops one pin. Returns whether somebody who was told `Busy` should hear of it.
    pub(crate) fn release(&mut self, number: u32) -> bool {
        let keep = self.keep;
        let Some(slot) = self.slots.get_mut(number as usize) else {
            return false;
        };
        slot.pins = slot.pins.saturating_sub(1);
        if slot.pins > 0 {
            return false;
        }
        if slot.state != SlotState::Visible || !keep {
            self.unlist(number);
            self.free(number);
        }
        std::mem::take(&mut self.starved)
    }

    /// Makes blocks invisible that are being filled, so that they don't become visible after a removal.
    pub(crate) fn revoke(&mut self, chosen: impl Fn(&BlockKey) -> bool) {
        let filling = self.filling.iter().filter(|(key, _)| chosen(key));
        let numbers: Vec<u32> = filling.map(|(_, number)| *number).collect();
        for number in numbers {
            self.discard(number);
        }
    }

    /// Drops blocks by hash; returns how many were visible.
    pub(crate) fn remove(&mut self, namespace: &Namespace, hashes: &[BlockHash]) -> u64 {
        let Some(index) = self.index(namespace) else {
            return 0;
        };
        let slots: Vec<u32> = hashes.iter().filter_map(|hash| index.read().get(hash)).collect();
        for number in &slots {
            self.discard(*number);
        }
        slots.len() as u64
    }
}
