//! A model of the memory pool's hand-off protocol, checked exhaustively at a bounded size.
//!
//! The model has storage nodes that lend ranges of memory, writers and readers that reach those ranges by one-sided
//! transfers, and two masters that decide which object lies where: one leads, the other takes over. Messages may be
//! arbitrarily late, masters may crash or stop and go on, and the wall clock may jump.
//!
//! The rules that make it safe, each of which can be switched off in [`Rules`] to see what it is for:
//!
//! 1. **Epochs.** A range has an epoch. A right to read or write names it, and the node compares before a byte moves.
//!    Releasing a range raises its epoch, so a late reader or writer is refused.
//! 2. **Drained before reuse.** A node confirms a release only when nothing that entered under the old epoch is still
//!    under way; the master gives the range away again only after that.
//! 3. **Steady leases.** While a lease runs, the object stays where it is. Masters measure leases on a clock that never
//!    jumps; a reader counts from the moment it asked.
//! 4. **Fencing.** A node obeys one master, the one with the highest epoch that it ever announced itself to. Orders and
//!    put tokens of an earlier one are refused.
//! 5. **Grace.** A master that takes over knows no leases of its predecessor, so what nodes announce to it counts as
//!    leased for the longest lease there may be.
//! 6. **Sealed before acknowledged.** A put is acknowledged when the node itself holds the object's descriptor, by the
//!    master that the node obeys; so an announcement brings back every acknowledged object.
//!
//! Checksums are left out on purpose: all of this holds without them.

mod clients;
mod masters;
mod model;
mod nodes;
mod properties;
mod rules;
mod state;

pub use model::{Action, PoolModel};
pub use properties::{
    KEEPS_ACKNOWLEDGED, KEEPS_LEASED, KNOWS_ACKNOWLEDGED, ONE_OWNER, OWN_BYTES, UNTOUCHED_AFTER_REUSE,
};
pub use rules::{LeaseClock, Rules, Size};
pub use state::{Get, Master, Owner, Promise, Put, Range, Rank, Refusal, Slot, State};
