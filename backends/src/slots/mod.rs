//! Slots cut from one range of memory, whichever it is, with an index and an eviction policy over them.

mod extents;
mod indexes;
mod state;

pub(crate) use indexes::Indexes;
pub(crate) use state::{Cut, NamespaceIndex, State, TableBudget};
