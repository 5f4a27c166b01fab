//! What must always hold, and what must be possible at all for that to mean anything.

use stateright::Property;

use crate::PoolModel;
use crate::rules::Size;
use crate::state::{Get, Owner, Promise, Put, Rank, Refusal, Slot, State};

/// A reader's bytes are those of the object it asked for.
pub const OWN_BYTES: &str = "no reader accepts another object's bytes";
/// What a range holds was written by the put that owns it.
pub const UNTOUCHED_AFTER_REUSE: &str = "no late writer changes a reused range";
/// One put, or one object, at a time.
pub const ONE_OWNER: &str = "no two objects own one range";
/// Until the master in office evicts it.
pub const KEEPS_ACKNOWLEDGED: &str = "an acknowledged object stays in some node's memory";
/// Once every node has announced itself.
pub const KNOWS_ACKNOWLEDGED: &str = "the master in office knows every acknowledged object";
/// While the reader's lease runs on the steady clock.
pub const KEEPS_LEASED: &str = "a leased object stays where it is";

pub(crate) fn all(size: Size) -> Vec<Property<PoolModel>> {
    let mut all = laws();
    all.extend(sights());
    if size.readers > 0 {
        all.extend(sights_of_readers());
    }
    all
}

/// What must never be broken.
fn laws() -> Vec<Property<PoolModel>> {
    vec![
        Property::always(OWN_BYTES, |_, state: &State| {
            state.gets.iter().all(|get| match get {
                Get::Accepted { object, bytes } => *bytes == Some(*object),
                _ => true,
            })
        }),
        Property::always(UNTOUCHED_AFTER_REUSE, |_, state: &State| {
            !state.trampled
                && state.ranges.iter().all(|range| match range.owner {
                    Owner::Holds(object) => range.bytes == Some(object),
                    Owner::Open(_) | Owner::Nobody => true,
                })
        }),
        Property::always(ONE_OWNER, one_owner),
        Property::always(KEEPS_ACKNOWLEDGED, |_, state: &State| {
            acknowledged(state).all(|object| {
                state
                    .ranges
                    .iter()
                    .any(|range| range.owner.object() == Some(object) && range.bytes == Some(object))
            })
        }),
        Property::always(KNOWS_ACKNOWLEDGED, knows_acknowledged),
        Property::always(KEEPS_LEASED, |_, state: &State| {
            state.gets.iter().all(|get| match *get {
                Get::Located {
                    range,
                    epoch,
                    leased_until,
                    ..
                }
                | Get::Inside {
                    range,
                    epoch,
                    leased_until,
                    ..
                } => state.now >= leased_until || epoch_of(state, range) == Some(epoch),
                _ => true,
            })
        }),
    ]
}

/// What must be possible, or the laws would mean nothing.
fn sights() -> Vec<Property<PoolModel>> {
    vec![
        Property::sometimes("a range holds a second object", |_, state: &State| {
            state
                .ranges
                .iter()
                .any(|range| range.epoch > 0 && matches!(range.owner, Owner::Holds(_)))
        }),
        Property::sometimes("a late writer meets a reused range", |_, state: &State| {
            state.puts.iter().any(|put| match *put {
                Put::Granted { range, epoch } => reused_since(state, range, epoch),
                _ => false,
            })
        }),
        Property::sometimes("a late write delays reuse", |_, state: &State| {
            (0..state.ranges.len()).any(|range| state.is_occupied(range))
        }),
        Property::sometimes("a token of an earlier master is refused", |_, state: &State| {
            state.puts.contains(&Put::Refused(Refusal::Master))
        }),
        Property::sometimes("a put that was revoked is refused", |_, state: &State| {
            state.puts.contains(&Put::Refused(Refusal::Epoch))
        }),
        Property::sometimes("a deposed master goes on giving orders", |_, state: &State| {
            let [first, _] = &state.masters;
            let orders = |slot: &Slot| matches!(slot, Slot::Releasing { .. });
            state.in_office(1) && first.rank == Rank::Leading && first.slots.iter().any(orders)
        }),
        Property::sometimes(
            "a put begun under one master is acknowledged by the next",
            |_, state: &State| {
                let [first, second] = &state.masters;
                (0..state.puts.len()).any(|object| {
                let writing = |slot: &Slot| matches!(*slot, Slot::Writing { object: o, .. } if usize::from(o) == object);
                let held = |slot: &Slot| matches!(*slot, Slot::Held { object: o, .. } if usize::from(o) == object);
                state.puts.get(object) == Some(&Put::Acknowledged)
                    && first.slots.iter().any(writing)
                    && second.slots.iter().any(held)
            })
            },
        ),
    ]
}

/// What must be possible where somebody reads.
fn sights_of_readers() -> Vec<Property<PoolModel>> {
    vec![
        Property::sometimes(
            "an object is read after another master took over",
            |_, state: &State| {
                state.in_office(1)
                    && state.obeys.iter().all(|epoch| *epoch == 2)
                    && state
                        .gets
                        .iter()
                        .any(|get| matches!(get, Get::Accepted { object, bytes } if *bytes == Some(*object)))
            },
        ),
        Property::sometimes("an object is read while no master leads", |_, state: &State| {
            !state.in_office(1)
                && state.masters[0].rank == Rank::Stopped
                && state.gets.iter().any(|get| matches!(get, Get::Inside { .. }))
        }),
        Property::sometimes("a late reader meets a reused range", |_, state: &State| {
            state.gets.iter().any(|get| match *get {
                Get::Located { range, epoch, .. } => reused_since(state, range, epoch),
                _ => false,
            })
        }),
    ]
}

/// At most one object may write to or be found in each range.
fn one_owner(model: &PoolModel, state: &State) -> bool {
    state.ranges.iter().enumerate().all(|(at, range)| {
        let owner = range.owner.object();
        let mut others = state.puts.iter().enumerate().filter(|(object, put)| {
            let has_right = match **put {
                Put::Inside { range, .. } => usize::from(range) == at,
                Put::Granted { range: r, epoch } => {
                    usize::from(r) == at && (!model.rules.write_epochs || epoch == range.epoch)
                }
                _ => false,
            };
            has_right && owner.map(usize::from) != Some(*object)
        });
        let first = others.next();
        others.next().is_none() && (first.is_none() || owner.is_none())
    })
}

fn knows_acknowledged(_: &PoolModel, state: &State) -> bool {
    let [first, second] = &state.masters;
    let (table, epoch) = if state.in_office(1) {
        (second, 2)
    } else {
        (first, 1)
    };
    state.obeys.iter().any(|obeyed| *obeyed != epoch)
        || acknowledged(state).all(|object| {
            table
                .slots
                .iter()
                .any(|slot| matches!(*slot, Slot::Held { object: held, .. } if held == object))
        })
}

fn acknowledged(state: &State) -> impl Iterator<Item = u8> + '_ {
    let promises = state.promises.iter().enumerate();
    promises
        .filter(|(_, promise)| **promise == Promise::Kept)
        .map(|(object, _)| object as u8)
}

fn epoch_of(state: &State, range: u8) -> Option<u8> {
    state.ranges.get(usize::from(range)).map(|range| range.epoch)
}

fn reused_since(state: &State, range: u8, epoch: u8) -> bool {
    state
        .ranges
        .get(usize::from(range))
        .is_some_and(|range| range.epoch > epoch && range.owner != Owner::Nobody)
}
