//! What a master does: it decides which object lies where, and never touches memory itself.

use crate::PoolModel;
use crate::rules::SESSION;
use crate::state::{Get, Promise, Put, Rank, Refusal, Slot, State};

/// The epoch by which nodes tell masters apart; a later one is higher.
pub(crate) fn fencing_epoch(master: usize) -> u8 {
    master as u8 + 1
}

impl PoolModel {
    /// Time passes. A leader that runs renews its session; one that stopped doesn't.
    pub(crate) fn tick(&self, state: &mut State) -> Option<()> {
        if state.now >= self.size.last_tick {
            return None;
        }
        let before = state.now;
        state.now += 1;
        for master in &mut state.masters {
            if master.rank == Rank::Leading && master.session_until > before {
                master.session_until = state.now + SESSION;
            }
        }
        Some(())
    }

    /// The second master takes over once the first one's session has lapsed, knowing nothing.
    pub(crate) fn elect(state: &mut State) -> Option<()> {
        let now = state.now;
        let [first, second] = &mut state.masters;
        if second.rank != Rank::Standby || now < first.session_until {
            return None;
        }
        second.rank = Rank::Leading;
        second.session_until = now + SESSION;
        Some(())
    }

    /// Changes what the first master does.
    pub(crate) fn turn(state: &mut State, from: Rank, to: Rank) -> Option<()> {
        let first = state.masters.first_mut()?;
        (first.rank == from).then(|| first.rank = to)
    }

    /// Gives a free range to a put.
    pub(crate) fn start_put(state: &mut State, master: usize, object: usize, range: usize) -> Option<()> {
        if *state.puts.get(object)? != Put::Idle {
            return None;
        }
        let table = state.masters.get_mut(master)?;
        let has_it = |slot: &Slot| matches!(*slot, Slot::Writing { object: o, .. } | Slot::Held { object: o, .. } if usize::from(o) == object);
        if table.rank != Rank::Leading || table.slots.iter().any(has_it) {
            return None;
        }
        let slot = table.slots.get_mut(range)?;
        let Slot::Free { epoch } = *slot else { return None };
        *slot = Slot::Writing {
            object: object as u8,
            epoch,
        };
        *state.puts.get_mut(object)? = Put::Started {
            range: range as u8,
            epoch,
            master: master as u8,
        };
        Some(())
    }

    /// A put says that it's complete. The master acknowledges it if the node that holds it obeys this very master, or
    /// has announced it.
    pub(crate) fn end_put(&self, state: &mut State, master: usize, object: usize) -> Option<()> {
        let (range, epoch, obeyed) = match *state.puts.get(object)? {
            Put::Sealed { range, epoch, master } => (range, epoch, Some(master)),
            Put::Written { range, epoch } if !self.rules.sealed_first => (range, epoch, None),
            _ => return None,
        };
        let now = state.lease_now();
        let table = state.masters.get_mut(master)?;
        if table.rank != Rank::Leading {
            return None;
        }
        let sealed_here =
            !self.rules.fencing || !self.rules.sealed_first || obeyed.map(usize::from) == Some(master);
        let slot = table.slots.get_mut(usize::from(range))?;
        let answer = match *slot {
            Slot::Writing { object: o, epoch: e } if usize::from(o) == object && e == epoch => {
                if !sealed_here {
                    return None;
                }
                *slot = Slot::Held {
                    object: object as u8,
                    epoch,
                    leased_until: now,
                };
                Put::Acknowledged
            }
            Slot::Held {
                object: o, epoch: e, ..
            } if usize::from(o) == object && e == epoch => Put::Acknowledged,
            // the node will announce it
            Slot::Unknown => return None,
            _ if sealed_here => Put::Refused(Refusal::Revoked),
            _ => return None,
        };
        *state.puts.get_mut(object)? = answer;
        if answer == Put::Acknowledged {
            let promise = state.promises.get_mut(object)?;
            if *promise == Promise::Nothing {
                *promise = Promise::Kept;
            }
        }
        Some(())
    }

    /// Gives up a put that took too long, or was revoked by its writer.
    pub(crate) fn discard(state: &mut State, master: usize, range: usize) -> Option<()> {
        let table = state.masters.get_mut(master)?;
        let slot = table.slots.get_mut(range)?;
        let Slot::Writing { epoch, .. } = *slot else {
            return None;
        };
        if table.rank != Rank::Leading {
            return None;
        }
        *slot = Slot::Releasing { epoch };
        Some(())
    }

    /// Makes room: an object that nobody leases goes.
    pub(crate) fn evict(&self, state: &mut State, master: usize, range: usize) -> Option<()> {
        let now = state.lease_now();
        let obeyed = *state.obeys.get(self.size.node_of(range))? == fencing_epoch(master);
        let table = state.masters.get_mut(master)?;
        let slot = table.slots.get_mut(range)?;
        let Slot::Held {
            object,
            epoch,
            leased_until,
        } = *slot
        else {
            return None;
        };
        if table.rank != Rank::Leading || now < leased_until {
            return None;
        }
        *slot = Slot::Releasing { epoch };
        if obeyed {
            *state.promises.get_mut(usize::from(object))? = Promise::Evicted;
        }
        Some(())
    }

    /// Tells a reader where its object is, and leases it. A leader makes sure of its session after the question came;
    /// the answer itself may be late.
    pub(crate) fn answer(state: &mut State, master: usize, reader: usize) -> Option<()> {
        let Get::Asked { object, at } = *state.gets.get(reader)? else {
            return None;
        };
        let lease = State::lease_from(state.lease_now());
        let table = state.masters.get_mut(master)?;
        if table.rank != Rank::Leading || at >= table.session_until {
            return None;
        }
        let found = table
            .slots
            .iter_mut()
            .enumerate()
            .find(|(_, slot)| matches!(**slot, Slot::Held { object: held, .. } if held == object));
        *state.gets.get_mut(reader)? = match found {
            Some((range, slot)) => {
                let Slot::Held {
                    epoch, leased_until, ..
                } = *slot
                else {
                    return None;
                };
                *slot = Slot::Held {
                    object,
                    epoch,
                    leased_until: leased_until.max(lease),
                };
                Get::Located {
                    object,
                    range: range as u8,
                    epoch,
                    leased_until: State::lease_from(at),
                }
            }
            None => Get::Refused,
        };
        Some(())
    }
}
