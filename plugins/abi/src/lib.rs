//! Plugged-in tiers: shared objects behind the C interface of `include/kvstored_plugin.h`.
//!
//! - [`PluginDirectory`] finds a plugin by name, in a directory that nobody else can write, checks it against the
//!   directory's list of SHA-256 sums, tries it in a process of its own and loads it, for good.
//! - [`PluginTier`] is the tier that a pipeline names `Plugin(name)`. It answers lookups from an index of its own, calls
//!   the plugin from one thread, checks what it gives back and bounds how long it may take. What a plugin does wrong ends
//!   as a miss, a log line and a counter; memory that it was lent and didn't give back is never used again.
//!
//! - [`PluginDevice`] is a plugged-in device: calls go straight through, from whichever thread, and what comes back is
//!   checked. Who uses it bounds how long that takes.
//!
//! - [`PluginTransport`] is a plugged-in transport, whose moves end as they should or not at all.
//!
//! A plugin runs in our process: one that writes to memory it was never lent can't be contained, only one that breaks
//! the contract.

mod callbacks;
mod caller;
mod describe;
mod device;
mod device_functions;
mod device_log;
mod directory;
mod flow;
mod index;
mod library;
mod probe;
mod quota;
mod shared;
mod tickets;
mod tier;
mod transport;
mod transport_functions;
mod transport_moves;
mod trust;
mod untold;
mod watch;

pub use device::PluginDevice;
pub use directory::{PluginDirectory, PluginSettings};
pub use library::PluginFacts;
pub use probe::{Probe, run_probe};
pub use tier::PluginTier;
pub use transport::PluginTransport;
