//! All that can happen next.

use stateright::{Model, Property};

use crate::properties;
use crate::rules::{LeaseClock, Rules, Size};
use crate::state::{Get, Put, Rank, Slot, State};

/// The pool under some rules, at some size.
#[derive(Clone, Copy, Debug)]
pub struct PoolModel {
    /// The rules that hold.
    pub rules: Rules,
    /// How much there is.
    pub size: Size,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each step is described where it's done")]
pub enum Action {
    Tick,
    ClockJumps,
    FirstStops,
    FirstGoesOn,
    SecondIsElected,
    Announce {
        node: usize,
    },
    StartPut {
        object: usize,
        master: usize,
        range: usize,
    },
    Open {
        object: usize,
    },
    EnterWrite {
        object: usize,
    },
    Store {
        object: usize,
    },
    Seal {
        object: usize,
    },
    EndPut {
        object: usize,
        master: usize,
    },
    Discard {
        master: usize,
        range: usize,
    },
    Evict {
        master: usize,
        range: usize,
    },
    Fence {
        master: usize,
        range: usize,
    },
    Confirm {
        master: usize,
        range: usize,
    },
    Ask {
        reader: usize,
        object: usize,
    },
    Answer {
        reader: usize,
        master: usize,
    },
    EnterRead {
        reader: usize,
    },
    Take {
        reader: usize,
    },
}

impl Model for PoolModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.size)]
    }

    /// What may be possible; `next_state` has the last word. Each step that is left out here spares a copy of the state.
    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // a master that was never elected has nothing to say
        let masters = || (0..state.masters.len()).filter(|master| *master == 0 || state.in_office(*master));
        actions.extend([Action::Tick, Action::SecondIsElected]);
        actions.push(match state.masters[0].rank {
            Rank::Stopped => Action::FirstGoesOn,
            _ => Action::FirstStops,
        });
        if self.rules.lease_clock == LeaseClock::Wall {
            actions.push(Action::ClockJumps);
        }
        if state.in_office(1) {
            actions.extend((0..state.obeys.len()).map(|node| Action::Announce { node }));
        }
        for (object, put) in state.puts.iter().enumerate() {
            match put {
                Put::Idle => actions.extend(masters().flat_map(|master| {
                    let ranges = 0..state.ranges.len();
                    ranges.map(move |range| Action::StartPut {
                        object,
                        master,
                        range,
                    })
                })),
                Put::Started { .. } => actions.push(Action::Open { object }),
                Put::Granted { .. } => actions.push(Action::EnterWrite { object }),
                Put::Inside { .. } => actions.push(Action::Store { object }),
                Put::Written { .. } => actions.push(Action::Seal { object }),
                Put::Sealed { .. } | Put::Acknowledged | Put::Refused(_) => {}
            }
            if matches!(put, Put::Written { .. } | Put::Sealed { .. }) {
                actions.extend(masters().map(|master| Action::EndPut { object, master }));
            }
        }
        for (reader, get) in state.gets.iter().enumerate() {
            match get {
                Get::Idle => {
                    // objects are alike before anything happens to them, so the first reader's may as well be the first
                    let objects = if reader == 0 { 1 } else { state.puts.len() };
                    actions.extend((0..objects).map(|object| Action::Ask { reader, object }));
                }
                Get::Asked { .. } => {
                    actions.extend(masters().map(|master| Action::Answer { reader, master }));
                }
                Get::Located { .. } => actions.push(Action::EnterRead { reader }),
                Get::Inside { .. } => actions.push(Action::Take { reader }),
                Get::Accepted { .. } | Get::Refused => {}
            }
        }
        for (master, table) in state.masters.iter().enumerate() {
            for (range, slot) in table.slots.iter().enumerate() {
                match slot {
                    Slot::Writing { .. } => actions.push(Action::Discard { master, range }),
                    Slot::Held { .. } => actions.push(Action::Evict { master, range }),
                    Slot::Releasing { .. } => {
                        actions.extend([Action::Fence { master, range }, Action::Confirm { master, range }]);
                    }
                    Slot::Unknown | Slot::Free { .. } => {}
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let state = &mut next;
        match action {
            Action::Tick => self.tick(state),
            Action::ClockJumps => (!state.jumped).then(|| state.jumped = true),
            Action::FirstStops => Self::turn(state, Rank::Leading, Rank::Stopped),
            Action::FirstGoesOn => Self::turn(state, Rank::Stopped, Rank::Leading),
            Action::SecondIsElected => Self::elect(state),
            Action::Announce { node } => self.announce(state, node),
            Action::StartPut {
                object,
                master,
                range,
            } => Self::start_put(state, master, object, range),
            Action::Open { object } => self.open(state, object),
            Action::EnterWrite { object } => self.enter_write(state, object),
            Action::Store { object } => Self::store(state, object),
            Action::Seal { object } => self.seal(state, object),
            Action::EndPut { object, master } => self.end_put(state, master, object),
            Action::Discard { master, range } => Self::discard(state, master, range),
            Action::Evict { master, range } => self.evict(state, master, range),
            Action::Fence { master, range } => self.fence(state, master, range),
            Action::Confirm { master, range } => self.confirm(state, master, range),
            Action::Ask { reader, object } => Self::ask(state, reader, object),
            Action::Answer { reader, master } => Self::answer(state, master, reader),
            Action::EnterRead { reader } => self.enter_read(state, reader),
            Action::Take { reader } => Self::take(state, reader),
        }?;
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self.size)
    }
}
