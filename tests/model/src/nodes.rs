//! What a storage node does: it alone decides who touches its memory.

use crate::rules::Size;
use crate::state::{Get, Owner, Put, Refusal, Slot, State};
use crate::{PoolModel, masters};

impl PoolModel {
    /// A put presents its token and asks for the right to write.
    pub(crate) fn open(&self, state: &mut State, object: usize) -> Option<()> {
        let Put::Started { range, epoch, master } = *state.puts.get(object)? else {
            return None;
        };
        let obeyed = *state.obeys.get(self.size.node_of(usize::from(range)))?;
        let place = state.ranges.get_mut(usize::from(range))?;
        let put = if self.rules.fencing && obeyed != masters::fencing_epoch(usize::from(master)) {
            Put::Refused(Refusal::Master)
        } else if self.rules.write_epochs && place.epoch != epoch {
            Put::Refused(Refusal::Epoch)
        } else if place.owner == Owner::Nobody {
            place.owner = Owner::Open(object as u8);
            Put::Granted { range, epoch }
        } else {
            Put::Refused(Refusal::Revoked)
        };
        *state.puts.get_mut(object)? = put;
        Some(())
    }

    /// A write arrives and is checked; its bytes are stored later.
    pub(crate) fn enter_write(&self, state: &mut State, object: usize) -> Option<()> {
        let Put::Granted { range, epoch } = *state.puts.get(object)? else {
            return None;
        };
        let place = state.ranges.get(usize::from(range))?;
        let fresh = place.epoch == epoch && place.owner == Owner::Open(object as u8);
        *state.puts.get_mut(object)? = if fresh || !self.rules.write_epochs {
            Put::Inside { range, epoch }
        } else {
            Put::Refused(Refusal::Epoch)
        };
        Some(())
    }

    /// The bytes of a checked write reach memory, whatever happened since.
    pub(crate) fn store(state: &mut State, object: usize) -> Option<()> {
        let Put::Inside { range, epoch } = *state.puts.get(object)? else {
            return None;
        };
        let place = state.ranges.get_mut(usize::from(range))?;
        place.bytes = Some(object as u8);
        state.trampled |= place
            .owner
            .object()
            .is_some_and(|owner| usize::from(owner) != object);
        *state.puts.get_mut(object)? = Put::Written { range, epoch };
        Some(())
    }

    /// A put hands over its descriptor; from now on the node can announce the object.
    pub(crate) fn seal(&self, state: &mut State, object: usize) -> Option<()> {
        let Put::Written { range, epoch } = *state.puts.get(object)? else {
            return None;
        };
        let obeyed = *state.obeys.get(self.size.node_of(usize::from(range)))?;
        let place = state.ranges.get_mut(usize::from(range))?;
        let current = place.epoch == epoch || !self.rules.write_epochs;
        *state.puts.get_mut(object)? = if current && place.owner == Owner::Open(object as u8) {
            place.owner = Owner::Holds(object as u8);
            Put::Sealed {
                range,
                epoch,
                master: obeyed - 1,
            }
        } else {
            Put::Refused(Refusal::Epoch)
        };
        Some(())
    }

    /// A read arrives and is checked; its bytes are taken later.
    pub(crate) fn enter_read(&self, state: &mut State, reader: usize) -> Option<()> {
        let Get::Located {
            object,
            range,
            epoch,
            leased_until,
        } = *state.gets.get(reader)?
        else {
            return None;
        };
        let current = state.ranges.get(usize::from(range))?.epoch == epoch;
        *state.gets.get_mut(reader)? = if current || !self.rules.read_epochs {
            Get::Inside {
                object,
                range,
                epoch,
                leased_until,
            }
        } else {
            Get::Refused
        };
        Some(())
    }

    /// A release arrives: the epoch ends, and with it every right that names it.
    pub(crate) fn fence(&self, state: &mut State, master: usize, range: usize) -> Option<()> {
        let Slot::Releasing { epoch } = *state.masters.get(master)?.slots.get(range)? else {
            return None;
        };
        let obeyed = *state.obeys.get(self.size.node_of(range))?;
        let place = state.ranges.get_mut(range)?;
        let authority = !self.rules.fencing || obeyed == masters::fencing_epoch(master);
        // an order that comes twice, or names an epoch that is over, changes nothing
        if !authority || place.epoch != epoch {
            return None;
        }
        place.epoch += 1;
        place.owner = Owner::Nobody;
        Some(())
    }

    /// The node tells its master that a release is complete.
    pub(crate) fn confirm(&self, state: &mut State, master: usize, range: usize) -> Option<()> {
        let Slot::Releasing { epoch } = *state.masters.get(master)?.slots.get(range)? else {
            return None;
        };
        let obeyed = *state.obeys.get(self.size.node_of(range))?;
        let current = state.ranges.get(range)?.epoch;
        let authority = !self.rules.fencing || obeyed == masters::fencing_epoch(master);
        if !authority || current <= epoch || (self.rules.drain && state.is_occupied(range)) {
            return None;
        }
        *state.masters.get_mut(master)?.slots.get_mut(range)? = Slot::Free { epoch: current };
        Some(())
    }

    /// A node finds out that another master leads: it obeys that one from now on, and tells it what it holds.
    pub(crate) fn announce(&self, state: &mut State, node: usize) -> Option<()> {
        const NEW: usize = 1;
        let epoch = masters::fencing_epoch(NEW);
        if *state.obeys.get(node)? >= epoch {
            return None;
        }
        *state.obeys.get_mut(node)? = epoch;
        let Size { ranges_per_node, .. } = self.size;
        let first = node * usize::from(ranges_per_node);
        for range in first..first + usize::from(ranges_per_node) {
            let place = *state.ranges.get(range)?;
            let leased_until = if self.rules.grace {
                State::lease_from(state.lease_now())
            } else {
                0
            };
            let slot = match place.owner {
                Owner::Nobody if self.rules.drain && state.is_occupied(range) => Slot::Releasing {
                    epoch: place.epoch.saturating_sub(1),
                },
                Owner::Nobody => Slot::Free { epoch: place.epoch },
                Owner::Open(object) => Slot::Writing {
                    object,
                    epoch: place.epoch,
                },
                Owner::Holds(object) => Slot::Held {
                    object,
                    epoch: place.epoch,
                    leased_until,
                },
            };
            *state.masters.get_mut(NEW)?.slots.get_mut(range)? = slot;
        }
        Some(())
    }
}
