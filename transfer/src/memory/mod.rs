//! Memory that transfers touch: regions, publications, and guards that count who touches them.

mod region;
mod span;
mod table;
mod usage;

pub use region::{Publication, Region};
pub(crate) use region::{PublicationState, RegionState, Slot};
pub(crate) use span::Span;
pub(crate) use table::Table;
